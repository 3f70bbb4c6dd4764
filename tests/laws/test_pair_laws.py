"""Encoder-decoders: what is cut computes what a plain model computes with the same numbers zeroed or blocks taken out,
masked, cut, stored, read again by transformers alone, and with a cache; what is scored is what the class's own loss
says.

The references know modules by the names of transformers and no anatomy.
"""

from __future__ import annotations

import copy
import shutil
from itertools import product

import numpy as np
import pytest
import torch
from fixtures.folders import questions, refused, save_model, secateur, write_rows
from fixtures.marks import slow_but
from fixtures.zoo import PAIRS
from transformers import AutoModelForSeq2SeqLM, GenerationConfig

from secateur.core.fitted import Fitted
from secateur.core.plan import Linearize, Plan, RemoveDirections, parse_edits
from secateur.core.site import Site
from secateur.errors import ModelError, PlanError, TaskError
from secateur.evaluation.evaluator import Evaluator
from secateur.hf import modeling_secateur
from secateur.hf.anatomy import anatomy
from secateur.hf.families import FAMILIES
from secateur.hf.load import quiet
from secateur.probes.answer_margin import AnswerMargin
from secateur.probes.block_gradients import block_effects, first_order_effects
from secateur.surgery.mask import masked
from secateur.surgery.materialize import cut
from secateur.surgery.operations import resolve
from secateur.surgery.portable import portable_plan
from secateur.surgery.shape import shape_of, stock_config
from secateur.surgery.spectra import spectra_of
from secateur.tasks.encode import encode
from secateur.tasks.example import Example, Task

FIRST = ["t5-gated", "bart"]
NAMES = slow_but(FIRST, PAIRS)
SOURCE = torch.randint(
    3, 90, (2, 17), generator=torch.Generator().manual_seed(1)
)  # beyond T5's largest distance
TARGET = torch.randint(3, 90, (2, 15), generator=torch.Generator().manual_seed(2))
DROPS = {
    "heads": ["enc.b0.attn.h1", "enc.b1.attn.h0", "enc.b1.attn.h3", "dec.b0.attn.h1", "dec.b0.cross.h0"],
    "neurons": [f"enc.b0.mlp.n{n}" for n in range(7)] + ["dec.b1.mlp.n3"],
    "parts": ["enc.b0.attn", "dec.b0.attn", "dec.b1.cross", "enc.b1.mlp"],
    "all heads": [f"enc.b0.attn.h{n}" for n in range(4)] + [f"dec.b1.cross.h{n}" for n in range(4)],
    "first blocks": ["enc.b0", "dec.b0"],
    "more decoder": ["enc.b0", "enc.b2"],
    "mixed": ["enc.b0", "enc.b1.attn", "dec.b0", "dec.b1.attn.h1", "dec.b2.cross.h1", "dec.b1.cross"],
}
STOCK = {"first blocks", "more decoder"}


def sizes(name):
    """Blocks of encoder and decoder, heads of each."""
    return (
        ({"enc": 3, "dec": 2}, {"enc": 4, "dec": 4})
        if "t5" in name
        else ({"enc": 2, "dec": 3}, {"enc": 4, "dec": 2})
    )


def has(name, text):
    site, (blocks, heads) = Site.parse(text.partition("=")[0]), sizes(name)
    return site.block < blocks[site.stack] and (site.unit != "h" or site.index < heads[site.stack])


def run(model):
    with torch.no_grad():
        return model(input_ids=SOURCE, decoder_input_ids=TARGET, use_cache=False).logits


def stacks(model):
    if hasattr(model, "encoder"):
        return {"enc": model.encoder.block, "dec": model.decoder.block}
    return {"enc": model.model.encoder.layers, "dec": model.model.decoder.layers}


def output(model, site):
    """The linear layer that a part's output comes from."""
    block = stacks(model)[site.stack][site.block]
    if hasattr(block, "layer"):
        inner = {"attn": ("layer.0.SelfAttention", "o"), "cross": ("layer.1.EncDecAttention", "o")}
        path, last = inner.get(site.part, (f"layer.{len(block.layer) - 1}.DenseReluDense", "wo"))
    else:
        inner = {"attn": ("self_attn", "out_proj"), "cross": ("encoder_attn", "out_proj")}
        path, last = inner.get(site.part, ("", "fc2"))
    return block.get_submodule(f"{path}.{last}".lstrip("."))


def by_hand(name, model, drops):
    """A plain model with zeros in columns, and blocks out of its lists; what T5's first block holds stays first."""
    model, (_, heads) = copy.deepcopy(model), sizes(name)
    gone = []
    for site in map(Site.parse, drops):
        if not site.part:
            gone.append(site)
            continue
        linear = output(model, site)
        if not site.unit:
            linear.weight.zero_()
            if linear.bias is not None:
                linear.bias.zero_()
            continue
        size = 1 if site.unit == "n" else linear.weight.shape[1] // heads[site.stack]
        linear.weight[:, site.index * size : (site.index + 1) * size] = 0
    for stack, blocks in stacks(model).items():
        first = blocks[0].layer[0].SelfAttention if hasattr(blocks[0], "layer") else None
        for site in sorted((site for site in gone if site.stack == stack), reverse=True):
            del blocks[site.block]
        if first is not None:
            now = blocks[0].layer[0].SelfAttention
            now.has_relative_attention_bias = True
            now.relative_attention_bias = first.relative_attention_bias
    return model


def assert_near(ours, theirs, bound=1e-9):
    assert float((ours - theirs).norm() / theirs.norm()) < bound


def written(model, folder, carved):
    """The model as transformers alone reads it from a folder."""
    with quiet():
        model.save_pretrained(folder)
        if carved:
            shutil.copy(modeling_secateur.__file__, folder)
        again, info = AutoModelForSeq2SeqLM.from_pretrained(
            folder, trust_remote_code=True, dtype=torch.float64, output_loading_info=True
        )
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return again.eval()


def assert_caches(model, whole):
    """Logits step by step with a cache are those at once, and generated with a cache is generated without."""
    with torch.no_grad():
        out = model(input_ids=SOURCE, decoder_input_ids=TARGET[:, :5], use_cache=True)
        steps = [out.logits]
        for place in range(5, TARGET.shape[1]):
            out = model(
                encoder_outputs=(out.encoder_last_hidden_state,),
                decoder_input_ids=TARGET[:, place : place + 1],
                past_key_values=out.past_key_values,
                use_cache=True,
            )
            steps.append(out.logits)
    assert_near(torch.cat(steps, dim=1), whole)
    options = {"max_new_tokens": 8, "do_sample": False, "decoder_start_token_id": 0, "pad_token_id": 0}
    cached, uncached = (
        model.generate(
            SOURCE,
            attention_mask=torch.ones_like(SOURCE),
            generation_config=GenerationConfig(use_cache=on, **options),
        )
        for on in (True, False)
    )
    assert torch.equal(cached, uncached)


def assert_holds(loaded, plan, folder, expected=None, factorize=False):
    model, parts = loaded.model, loaded.anatomy
    before = run(model)
    with masked(model, resolve(plan, parts, loaded.fingerprint)):
        ours = run(model)
    assert torch.equal(run(model), before)
    assert float((ours - before).norm() / before.norm()) > 1e-6, "the plan changes nothing"
    if expected is not None:
        assert_near(ours, run(expected))
    left = cut(loaded, plan, factorize=factorize)
    assert_near(run(left), ours, 1e-8)
    shape = shape_of(plan, parts, factorize=factorize)
    predicted = shape.num_parameters(parts)
    assert sum(p.numel() for p in set(left.parameters())) == predicted == anatomy(left).num_parameters
    carved = isinstance(stock_config(shape, parts), str)
    again = written(left, folder, carved)
    assert_near(run(again), run(left))
    assert_caches(again, run(again))
    return carved


@pytest.fixture(scope="module")
def doubles():
    return {}


@pytest.fixture
def loaded_pair(doubles, as_loaded):
    def give(name):
        if name not in doubles:
            doubles[name] = PAIRS[name]().double()
        return as_loaded(doubles[name])

    return give


# ------------------------------------------------------------------------------------------------------------- the cuts


def test_every_encoder_decoder_is_in_the_zoo():
    known = {name for name, family in FAMILIES.items() if family.encoder is not None}
    assert {type(make()).__name__ for make in PAIRS.values()} == known


QUICK = [
    *(("t5-gated", case) for case in ("heads", "parts", "more decoder", "mixed")),
    *(("bart", case) for case in ("all heads", "mixed")),
]


@pytest.mark.parametrize("asked", slow_but(QUICK, product(PAIRS, DROPS)), ids=" ".join)
def test_drops_are_zeros_and_missing_blocks_of_a_plain_model(asked, loaded_pair, tmp_path):
    name, case = asked
    loaded, drops = loaded_pair(name), [text for text in DROPS[case] if has(name, text)]
    plan = Plan(loaded.fingerprint, parse_edits(f"{text}=drop" for text in drops))
    carved = assert_holds(loaded, plan, tmp_path, by_hand(name, loaded.model, drops))
    # transformers gives a stock T5 a cache with as many layers as its encoder has
    assert carved == (case not in STOCK or (case == "more decoder" and "t5" in name))


@pytest.mark.parametrize(
    "asked",
    slow_but([("t5-gated", "factors"), ("bart", "whole")], product(PAIRS, ("factors", "whole"))),
    ids=" ".join,
)
def test_truncations_and_directions_of_either_stack(asked, loaded_pair, tmp_path):
    name, factorize = asked[0], asked[1] == "factors"
    loaded = loaded_pair(name)
    mean = Fitted.of({"mean": np.linspace(-1, 1, 32, dtype=np.float32)})
    words = (
        "enc.b0.q=3",
        "dec.b0.cross.k=2",
        "dec.b1.cross.o=tail:3",
        "dec.b1.down=4",
        "enc.b1.v=without:0,2",
    )
    more = RemoveDirections(Site.parse("dec.b0.cross.q"), (0, 3), fold=mean)
    plan = Plan(loaded.fingerprint, (*parse_edits(words), *parse_edits(["dec.b1.attn.h0=drop"]), more))
    expected = copy.deepcopy(loaded.model)
    for edit in plan.edits:
        if edit.kind == "drop":
            linear = output(expected, edit.site)
            linear.weight[:, : linear.weight.shape[1] // sizes(name)[1]["dec"]] = 0
            continue
        linear = expected.get_submodule(loaded.anatomy.matrix(edit.site).module)
        u, sigma, vh = torch.linalg.svd(linear.weight, full_matrices=False)
        kept = torch.ones_like(sigma)
        if edit.kind == "truncate":
            kept[edit.rank :] = 0
            kept = kept if edit.side == "top" else kept.flip(0)
        else:
            kept[list(edit.directions)] = 0
        gone = (u * sigma * (1 - kept)) @ vh
        linear.weight -= gone
        if edit is more:
            constant = gone @ torch.from_numpy(mean.content["mean"]).double()
            linear.bias = torch.nn.Parameter(constant + (0 if linear.bias is None else linear.bias))
    assert_holds(loaded, plan, tmp_path, expected, factorize)


@pytest.mark.parametrize("name", FIRST)
def test_a_cut_of_a_cut_is_one_cut(name, loaded_pair, as_loaded):
    first = ["enc.b0.attn.h1", "dec.b0.cross.h0", "dec.b1.attn"]
    loaded = loaded_pair(name)
    once = as_loaded(cut(loaded, Plan(loaded.fingerprint, parse_edits(f"{text}=drop" for text in first))))
    second = ["enc.b0.attn.h1", "dec.b0.attn.h0", "dec.b1.mlp"]  # what was head 2 of enc.b0 is head 1 now
    twice = cut(once, Plan(once.fingerprint, parse_edits(f"{text}=drop" for text in second)))
    drops = [*first, "enc.b0.attn.h2", "dec.b0.attn.h0", "dec.b1.mlp"]
    assert_near(run(twice), run(by_hand(name, loaded.model, drops)))


# ------------------------------------------------------------------------------------------------------------- the task


def rows():
    prompts = ["w5 w6 w7 w8", "w9 w10", "w11 w12 w13 w14", "w15 w16 w17 w18 w19 w20", "w21 w22"]
    choices = [
        (" w30 w31", " w32"),
        (" w33", " w34 w35 w36"),
        (" w30", " w30 w37"),
        (" w38", " w39"),
        (" w40 w41", " w42"),
    ]
    return [
        Example(str(n), prompt, of[n % 2], of)
        for n, (prompt, of) in enumerate(zip(prompts, choices, strict=True))
    ]


def judged(loaded, examples, **task):
    encoded = {n: encode(one, loaded.tokenizer, context=None, start=0) for n, one in enumerate(examples)}
    whole = Task("pairs", task.pop("kind", "choice"), tuple(examples), {"select": tuple(encoded)}, **task)
    return Evaluator(loaded, whole, encoded), encoded


@pytest.mark.parametrize("name", NAMES)
def test_what_is_scored_is_the_loss_of_the_class_whatever_runs_together(name, loaded_pair):
    loaded, examples = loaded_pair(name), rows()
    judge, encoded = judged(loaded, examples)
    plan = Plan(loaded.fingerprint, parse_edits(["enc.b1=drop", "dec.b0.cross.h1=drop"]))
    found = judge([Plan(loaded.fingerprint), plan], range(len(examples)))
    for one, drops in ((Plan(loaded.fingerprint), []), (plan, ["enc.b1", "dec.b0.cross.h1"])):
        model = by_hand(name, loaded.model, drops)
        for number, example in enumerate(examples):
            losses = []
            for choice in example.choices:
                source, labels = (
                    torch.tensor([loaded.tokenizer.encode(text)]) for text in (example.prompt, choice)
                )
                with torch.no_grad():
                    losses.append(float(model(input_ids=source, labels=labels).loss) * labels.numel())
            row = found[one][number]
            tokens = len(encoded[number].pairs[example.gold][1])
            assert row["loss"] == pytest.approx(losses[example.gold] / tokens, rel=1e-6)
            assert row["predicted"] == int(np.argmin(losses))


@pytest.mark.parametrize("name", NAMES)
def test_what_is_generated_is_what_transformers_generates(name, loaded_pair):
    loaded = loaded_pair(name)
    options = GenerationConfig(
        max_new_tokens=4, do_sample=False, decoder_start_token_id=0, pad_token_id=0, eos_token_id=2
    )
    examples = []
    for number, prompt in enumerate(["w5 w6 w7", "w8 w9 w10", "w11 w12"]):
        tokens = torch.tensor([loaded.tokenizer.encode(prompt)])
        made = loaded.model.generate(
            tokens, attention_mask=torch.ones_like(tokens), generation_config=options
        )[0, 1:].tolist()
        said = [token for token in made if token != 2] or [90]
        examples.append(Example(str(number), prompt, f" w{said[-1] if number else 95}"))
    judge, _ = judged(loaded, examples, kind="generation", max_new_tokens=4)
    assert judge([Plan(loaded.fingerprint)], range(3))[Plan(loaded.fingerprint)]["correct"].tolist()[1:] == [
        1,
        1,
    ]


def test_text_and_conversations_are_refused(words):
    text = Example("t", "", "", tokens=(5, 6, 7))
    with pytest.raises(TaskError, match="gives plain text no likelihood without a source"):
        encode(text, words, context=None, start=0)
    with pytest.raises(TaskError, match="holds no conversation"):
        encode(rows()[0], words, context=None, start=0, chat=True)


# ----------------------------------------------------------------------------------------------------------- the screen

EDITS = ("enc.b0.q=3", "enc.b1.down=5", "dec.b0.cross.k=2", "dec.b1.cross.o=3", "dec.b0.v=4")
DROPPED = ("enc.b0.attn.h1=drop", "dec.b1.cross=drop", "dec.b0.mlp=drop")


def margins(margin, batches):
    """The margin of each example, in the order of examples."""
    found = {}
    for batch in batches:
        found |= margin.of_batch(batch, {})
    return torch.stack([found[n] for n in sorted(found)])


@pytest.mark.parametrize("name", FIRST)
def test_the_screen_is_the_slope_of_the_margin(name, loaded_pair):
    loaded, examples = loaded_pair(name), range(5)
    judge, encoded = judged(loaded, rows())
    margin = AnswerMargin.of(loaded, encoded, examples, contrast=False)
    plans = [Plan(loaded.fingerprint, parse_edits([word])) for word in (*EDITS, *DROPPED)]
    how = {"spectra": spectra_of(2**30, None), "packing": judge.packing}
    first = first_order_effects(margin, examples, plans, **how)
    exact = block_effects(margin, examples, plans, **how)
    batches = judge.packing.pack(margin.encoded, examples)
    before = {path: parameter.clone() for path, parameter in loaded.model.named_parameters()}
    for plan in plans:
        (operation,) = [o for o in resolve(plan, loaded.anatomy, loaded.fingerprint) if hasattr(o, "matrix")][
            :1
        ]
        weight = loaded.model.get_parameter(operation.matrix.weight)
        with masked(loaded.model, resolve(plan, loaded.anatomy, loaded.fingerprint)):
            change = loaded.parameter(operation.matrix.weight) - before[operation.matrix.weight]
        weight.requires_grad_()
        odds = margins(margin, batches)
        gradients = [torch.autograd.grad(one, weight, retain_graph=True)[0] for one in odds]
        weight.requires_grad_(False)
        if plan.edits[0].kind == "truncate" or plan.edits[0].site.unit or "t5" in name:  # no bias goes too
            slopes = [float((gradient * change).sum()) for gradient in gradients]
            np.testing.assert_allclose(first.changes[plan], slopes, rtol=1e-5, atol=1e-9, err_msg=str(plan))
        found = by_whole_model(loaded, plan, margin, judge.packing)
        np.testing.assert_allclose(exact.changes[plan], found, rtol=1e-5, atol=1e-8, err_msg=str(plan))


def by_whole_model(loaded, plan, margin, packing):
    """⟨change of the edited block's output in the whole model, gradient of the margin there⟩."""
    site = plan.edits[0].site
    block = stacks(loaded.model)[site.stack][site.block]
    changes = []
    for example in margin.encoded:
        batches, kept = packing.pack(margin.encoded, [example]), []

        def keep(module, args, out, kept=kept):
            hidden = out[0] if isinstance(out, tuple) else out
            if torch.is_grad_enabled():
                hidden = hidden.detach().requires_grad_()
            kept.append(hidden)
            return (hidden, *out[1:]) if isinstance(out, tuple) else hidden

        handle = block.register_forward_hook(keep)
        with torch.enable_grad():
            odds = margins(margin, batches).sum()
        (gradient,) = torch.autograd.grad(odds, [kept[0]])
        with torch.no_grad(), masked(loaded.model, resolve(plan, loaded.anatomy, loaded.fingerprint)):
            margins(margin, batches)
        handle.remove()
        changes.append(float(((kept[1] - kept[0].detach()) * gradient).sum()))
    return changes


# -------------------------------------------------------------------------------------------------------------- refused


def test_what_is_not_possible_is_refused_in_one_line(loaded_pair):
    loaded = loaded_pair("t5-gated")

    def plan(*words):
        return Plan(loaded.fingerprint, parse_edits(words))

    linear = Plan(loaded.fingerprint, (Linearize((1,), "fold", Fitted("0" * 64)),))
    with pytest.raises(PlanError, match="not replaced by linear maps"):
        resolve(linear, loaded.anatomy, loaded.fingerprint)
    with pytest.raises(PlanError, match="every block of the encoder"):
        resolve(plan("enc.b0=drop", "enc.b1=drop", "enc.b2=drop"), loaded.anatomy, loaded.fingerprint)
    with pytest.raises(PlanError, match="no stock class of transformers holds"):
        portable_plan(plan("dec.b0.cross.h1=drop"), loaded)
    with pytest.raises(ModelError, match="does not know encoder-decoders"):
        loaded.anatomy.refuse_pairs("this")
    model = copy.deepcopy(loaded.model)
    model.config.decoder_start_token_id = None
    with pytest.raises(ModelError, match="decoder_start_token_id None"):
        anatomy(model)


@pytest.fixture(scope="module")
def on_disk(tmp_path_factory, words):
    place = tmp_path_factory.mktemp("pairs")
    write_rows(place / "q.jsonl", questions(30))
    for name in FIRST:
        with quiet():
            save_model(place / name, PAIRS[name](), words)
    return place


def pruned(place, name, out, *words):
    done = secateur("prune", place / name, "--task", place / "q.jsonl", "-o", out, "--allow-small", *words)
    assert done.exit_code == 0, (done.stderr, done.exception)
    return out


@pytest.mark.parametrize("name", slow_but(["t5-gated"], FIRST))
def test_a_checkpoint_on_disk_goes_through_laser_and_apply(name, on_disk, tmp_path):
    words = ("--method", "laser", "--matrices", "cross.q", "--keep-unproven", "--report", "quick")
    out = pruned(on_disk, name, tmp_path / "laser", *words)
    assert type(AutoModelForSeq2SeqLM.from_pretrained(out)).__name__ == type(PAIRS[name]()).__name__
    edits = ("dec.b1.cross.h1=drop", "enc.b0=drop", "dec.b0.cross.q=3", "dec.b0.attn=drop")
    done = secateur("apply", out, *(w for edit in edits for w in ("--edit", edit)), "-o", tmp_path / "cut")
    assert done.exit_code == 0, done.stderr
    again = secateur("eval", tmp_path / "cut", "--task", on_disk / "q.jsonl", "--allow-small", "--json")
    assert again.exit_code == 0, again.stderr


@pytest.mark.slow
@pytest.mark.parametrize("name", FIRST)
@pytest.mark.parametrize(
    "words",
    ["directions", "heads", "ffns", "components", "attention", "depth --form drop"],
    ids=lambda w: w.split()[0],
)
def test_every_method_writes_a_checkpoint_that_transformers_reads(name, words, on_disk, tmp_path):
    bounds = () if words == "directions" else ("--max-loss", "50")
    out = pruned(on_disk, name, tmp_path / "out", "--method", *words.split(), *bounds, "--report", "full")
    with quiet():
        model = AutoModelForSeq2SeqLM.from_pretrained(out, trust_remote_code=True)
    assert torch.isfinite(run(model)).all()
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "enc.b0" in page
    assert "dec.b0" in page


def test_methods_and_verbs_that_do_not_know_them_say_so(on_disk, tmp_path):
    model, task = on_disk / "bart", ("--task", on_disk / "q.jsonl", "--allow-small", "-o", tmp_path / "out")
    for words, said in (
        (("--method", "budget", "--params", "0.9"), "--method budget does not know encoder-decoders"),
        (("--method", "ffns", "--portable"), "--portable does not know encoder-decoders"),
        (("--method", "depth"), "Take --form drop"),
        (("--method", "depth", "--form", "drop", "--by", "cosine"), "Take --by loss"),
    ):
        done = secateur("prune", model, *task, *words, "--quiet")
        assert done.exit_code == 2
        assert said in done.stderr
    refused(secateur("models", model), "no tiny copy is proved")
    refused(
        secateur("apply", model, "--edit", "b0.attn.h1=drop", "-o", tmp_path / "x"),
        "2 blocks enc.bN and 3 dec.bN",
    )
