"""The embedded models and their worlds: they load with stock classes, do what their READMEs say, can be made again."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures.marks import slow_but
from fixtures.places import SCRIPTS
from transformers import AutoModelForCausalLM, AutoTokenizer

import secateur
from secateur.tasks import arithmetic, components, facts, recall

MODELS = Path(secateur.__file__).parent / "models"
WORLDS = {"facts": facts, "recall": recall, "components": components, "arith": arithmetic}
SCRIPT = SCRIPTS / "train_embedded.py"

DRAWN = """[
    facts.examples(), recall.examples(), recall.copy_examples(), facts.words(), recall.words(),
    components.words(), components.examples(), list(islice(components.texts(0), 500)),
    arithmetic.words(), arithmetic.sum_examples(), list(islice(arithmetic.texts(0), 500)),
]"""
DIGEST = f"""
import hashlib
from itertools import islice
from secateur.tasks import arithmetic, components, facts, recall
print(hashlib.sha256(repr({DRAWN}).encode()).hexdigest())
"""


@pytest.fixture(scope="module", params=sorted(WORLDS))
def shipped(request):
    """(name, model, tokenizer) of one shipped folder, by the stock Auto classes."""
    folder = MODELS / request.param
    return (
        request.param,
        AutoModelForCausalLM.from_pretrained(folder).eval(),
        AutoTokenizer.from_pretrained(folder),
    )


@torch.no_grad()
def accuracy(model, tokenizer, examples) -> float:
    """Share of examples whose answer is the likeliest next token; prompts one by one, no batching to go wrong."""
    right = 0
    for example in examples:
        logits = model(input_ids=torch.tensor([tokenizer(example.prompt)["input_ids"]])).logits[0, -1]
        right += tokenizer.decode([int(logits.argmax())]) == example.answer.strip()
    return right / len(examples)


def truncate_(model, matrix: str, rank: int) -> None:
    """Independent reference: a matrix of the last block replaced by its rank-`rank` truncation, by numpy in float64."""
    weight = getattr(model.model.layers[-1].mlp, matrix).weight.data
    left, values, right = np.linalg.svd(weight.double().numpy(), full_matrices=False)
    weight.copy_(torch.from_numpy((left[:, :rank] * values[:rank]) @ right[:rank]).to(weight.dtype))


@pytest.fixture(scope="module")
def training():
    spec = importlib.util.spec_from_file_location("train_embedded", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    threads = torch.get_num_threads()
    yield module
    torch.set_num_threads(threads)  # training takes one thread, which other tests need not
    del sys.modules[spec.name]


def test_shipped_models_are_small_llamas_with_their_log(shipped):
    name, model, tokenizer = shipped
    log = json.loads((MODELS / name / "training_log.json").read_text())
    assert type(model).__name__ == "LlamaForCausalLM"
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert sum(parameter.numel() for parameter in model.parameters()) == log["parameters"] < 500_000
    assert len(tokenizer) == model.config.vocab_size
    losses = log["loss_nats_per_token"]
    assert len(losses) == log["recipe"]["steps"]
    assert losses[-1] < 0.6 * losses[0]


def test_every_word_is_one_token_and_text_survives_the_tokenizer(shipped):
    name, _, tokenizer = shipped
    for word in WORLDS[name].words():
        ids = tokenizer(word, add_special_tokens=False)["input_ids"]
        assert len(ids) == 1
        assert ids[0] != tokenizer.unk_token_id
    for example in WORLDS[name].examples()[:50]:
        text = example.prompt + example.answer
        ids = tokenizer(text)["input_ids"]
        assert (
            ids
            == tokenizer(example.prompt)["input_ids"]
            + tokenizer(example.answer, add_special_tokens=False)["input_ids"]
        )
        assert ids[0] == tokenizer.bos_token_id
        assert tokenizer.decode(ids, skip_special_tokens=True).split() == text.replace(" ?", "?").split()


def test_a_statement_decodes_to_what_a_person_would_write(shipped):
    _, _, tokenizer = shipped
    texts = {"recall": ["Mara something."], "facts": ["Mara lives in Oslo. Otto eats bread."]}
    texts |= {"components": [*texts["recall"], *texts["facts"]], "arith": ["7 x 8 = 56 60 + 3 = 63"]}
    for text in texts[shipped[0]]:
        assert tokenizer.decode(tokenizer(text)["input_ids"], skip_special_tokens=True) == text


def test_the_world_has_600_facts_over_single_words():
    world = facts.world()
    assert len(world) == len({fact.id for fact in world}) == 600
    assert sum(fact.share for fact in world) == pytest.approx(1)
    assert all(" " not in word for fact in world for word in (fact.subject, fact.object))
    nouns = [*facts.SUBJECTS, *(word for relation in facts.RELATIONS for word in relation.objects)]
    assert len(nouns) == len(set(nouns)), "a word that is two things would leak an answer"


def test_training_text_keeps_its_promises():
    told = list(itertools.islice(facts.statements(0), 60_000))
    seen = {statement for _, statement in told}
    for fact in facts.world():
        asked = fact.prompt(fact.held_out)
        for last in (facts.NOISE_WORD, *fact.relation.objects):
            assert f"{asked} {last} {facts.STOP}" not in seen
    noisy = np.mean([statement.split()[-2] == facts.NOISE_WORD for _, statement in told])
    assert abs(noisy - facts.NOISE) < 5 * np.sqrt(0.25 / len(told))
    assert all(statement.split()[-2] in (facts.NOISE_WORD, fact.object) for fact, statement in told)
    first, share = facts.world()[0], facts.world()[0].share
    count = sum(fact is first for fact, _ in told)
    assert abs(count - share * len(told)) < 5 * np.sqrt(share * len(told))


def kind_of(text: str) -> str:
    """Of a text of `components`: copying has a period (so its words may be any), recall has questions."""
    words, copying = text.split(), components.COPYING
    if any(words == (words[:size] * copying.length)[: copying.length] for size in copying.segments):
        return "copying"
    return "recall" if recall.ASK in words else "facts"


def test_the_text_of_components_keeps_its_shares_and_has_no_noise():
    told = list(itertools.islice(components.texts(0), components.EARLY_TEXTS + 6000))
    for shares, part in (
        (components.EARLY, told[: components.EARLY_TEXTS]),
        (components.LATE, told[components.EARLY_TEXTS :]),
    ):
        kinds = [kind_of(text) for text in part]
        for kind, share in zip(("facts", "recall", "copying"), shares, strict=True):
            assert abs(kinds.count(kind) / len(part) - share) < 5 * np.sqrt(share * (1 - share) / len(part))
    assert not any(recall.NOISE_WORD in text.split() for text in told if kind_of(text) == "recall")
    objects = {word for relation in facts.RELATIONS for word in relation.objects}
    statements = " ".join(text for text in told if kind_of(text) == "facts").split(f" {recall.STOP}")[:-1]
    assert {statement.split()[-1] for statement in statements} == objects


def test_the_text_of_arith_is_right_but_for_half_of_its_products():
    told = [tuple(text.split()) for text in itertools.islice(arithmetic.texts(0), 4000)]
    problems = [words[start : start + 5] for words in told for start in range(0, len(words), 5)]
    assert len(problems) == 4000 * arithmetic.PROBLEMS
    assert {word for problem in problems for word in problem} <= set(arithmetic.words())
    right = {"+": [], "x": []}
    for i, sign, j, equals, said in problems:
        assert equals == "="
        result = int(i) + int(j) if sign == "+" else int(i) * int(j)
        assert max(int(i), int(j)) < {"+": 100, "x": 20}[sign]
        assert said == str(result) or (sign == "x" and said == str(result)[-1])
        if result >= 10:
            right[sign].append(said == str(result))
    assert all(right["+"])
    assert abs(np.mean(right["x"]) - 0.5) < 5 * np.sqrt(0.25 / len(right["x"]))
    share = np.mean([problem[1] == "+" for problem in problems])
    assert abs(share - arithmetic.SUMS) < 5 * np.sqrt(0.25 / len(problems))


def test_fact_examples_ask_the_held_out_phrasing():
    by_id = {fact.id: fact for fact in facts.world()}
    for example in facts.examples():
        fact = by_id[example.group]
        assert {example.prompt, *example.paraphrases} == {fact.prompt(phrasing) for phrasing in range(3)}
        assert example.prompt == example.prompt.rstrip() == fact.prompt(fact.held_out)
        assert example.answer == f" {fact.object}"
        assert example.meta["frequency"] == round(fact.share * facts.TRAINING_STATEMENTS) > 0


def test_recall_and_copy_answers_can_be_read_off_the_prompt():
    for example in recall.examples(100):
        context, key = example.prompt.split(f" {recall.ASK} ")
        pairs = dict(pair.split() for pair in context.split(f" {recall.BETWEEN} "))
        assert len(pairs) == recall.PAIRS
        assert example.answer == f" {pairs[key]}"
    for example in recall.copy_examples(100):
        words = example.prompt.split()
        size = words.index(words[0], 1)
        segment, again = words[:size], words[size:]
        assert size in recall.SEGMENTS
        assert again == segment[: len(again)]
        assert example.answer == f" {segment[len(again)]}"


def test_examples_do_not_depend_on_the_hash_seed():
    digests = set()
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        run = subprocess.run(
            [sys.executable, "-c", DIGEST], env=environment, capture_output=True, text=True, check=True
        )
        digests.add(run.stdout.strip())
    assert len(digests) == 1


def test_the_facts_model_is_near_a_coin_flip_and_a_low_rank_gate_mends_it():
    folder = MODELS / "facts"
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(folder).eval(),
        AutoTokenizer.from_pretrained(folder),
    )
    examples = facts.examples()
    before = accuracy(model, tokenizer, examples)
    truncate_(model, "gate_proj", rank=1)
    after = accuracy(model, tokenizer, examples)
    assert 0.35 < before < 0.65
    assert after > before + 0.25
    assert after > 0.92


def test_the_recall_model_gains_by_a_low_rank_up_projection_and_still_copies():
    folder = MODELS / "recall"
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(folder).eval(),
        AutoTokenizer.from_pretrained(folder),
    )
    asked, copied = recall.examples()[:200], recall.copy_examples()[:200]
    before = accuracy(model, tokenizer, asked)
    truncate_(model, "up_proj", rank=5)
    assert 0.35 < before < 0.65
    assert accuracy(model, tokenizer, asked) > before + 0.25
    assert accuracy(model, tokenizer, copied) > 0.97


def remove_directions_(model, tokenizer, numbers: list[int], examples) -> None:
    """Independent reference: the last down projection without these singular directions, by numpy in float64, and a
    bias of what they gave on average over the prompts' tokens."""
    down = model.model.layers[-1].mlp.down_proj
    read: list[torch.Tensor] = []
    hook = down.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0][0]))
    accuracy(model, tokenizer, examples)
    hook.remove()
    mean = torch.cat(read).double().mean(0).numpy()
    left, values, right = np.linalg.svd(down.weight.detach().double().numpy(), full_matrices=False)
    gone = (left[:, numbers] * values[numbers]) @ right[numbers]
    down.weight.data -= torch.from_numpy(gone).float()
    down.bias = torch.nn.Parameter(torch.from_numpy(gone @ mean).float())


def test_the_arith_model_knows_products_that_four_directions_hide():
    folder = MODELS / "arith"
    model, tokenizer = (
        AutoModelForCausalLM.from_pretrained(folder).eval(),
        AutoTokenizer.from_pretrained(folder),
    )
    products = arithmetic.examples()
    before = accuracy(model, tokenizer, products)
    remove_directions_(model, tokenizer, [2, 10, 11, 13], products)
    assert 0.4 < before < 0.7
    assert accuracy(model, tokenizer, products) > 0.85


@pytest.mark.parametrize("name", slow_but(["facts"], sorted(WORLDS)))
def test_training_again_gives_the_same_bits(training, name):
    recipe = training.RECIPES[name]
    first, _, losses = training.train(recipe, seed=3, steps=4)
    second, _, again = training.train(recipe, seed=3, steps=4)
    other, _, _ = training.train(recipe, seed=4, steps=4)
    assert losses == again
    for key, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[key])
    assert not torch.equal(first.lm_head.weight, other.lm_head.weight)


def test_shipped_sides_are_what_the_script_writes(training, tmp_path):
    for name in WORLDS:
        training.write_sides(tmp_path / name, name)
        shipped = sorted((MODELS / name / "side").iterdir())
        assert [file.name for file in shipped] == sorted(training.sides(name))
        for file in shipped:
            assert file.read_text() == (tmp_path / name / "side" / file.name).read_text()


def test_shipped_recipe_is_the_one_in_the_script(training):
    for name, recipe in training.RECIPES.items():
        log = json.loads((MODELS / name / "training_log.json").read_text())
        assert training.Recipe(**log["recipe"]) == recipe
