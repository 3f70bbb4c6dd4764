"""Our accuracy on a task of the evaluation harness is the harness's own, to the example, on the same
model."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures.marks import slow_but
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

pytest.importorskip("lm_eval", reason="the lm-eval extra is not installed")
pytestmark = pytest.mark.filterwarnings("ignore")  # lm_eval and datasets warn at will

from secateur.errors import TaskError, UnknownName  # noqa: E402
from secateur.tasks.encode import _wording, encode  # noqa: E402
from secateur.tasks.example import Example  # noqa: E402
from secateur.tasks.harness import _load, read_harness  # noqa: E402
from secateur.tasks.shots import demonstrations, with_shots  # noqa: E402
from secateur.tasks.splits import make_task  # noqa: E402

SPLIT = {"split_seed": 0, "limit": None, "allow_small": True, "shares": None}

ANIMALS = ["a cat", "two black dogs", "the old grey horse", "hen", "some very small mice", "fox"]


def documents(count: int) -> list[dict]:
    """Choices of unequal length, one question with two choices that read alike, one that ends in white
    space."""
    made = []
    for i in range(count):
        choices = [ANIMALS[(i + k * (1 + i % 3)) % 6] for k in range(3)]
        question = f"Number {i}: who crossed the {'river' if i % 2 else 'street and the bridge'}?" + "  " * (
            i % 3 == 0
        )
        made.append({"question": question, "choices": choices, "label": (i * 7) % 3, "word": f"Mr{i} _ ran."})
    made[5]["choices"] = ["hen", "hen", "fox"]
    made[5]["label"] = 1
    return made


def make_tokenizer(form: str) -> PreTrainedTokenizerFast:
    """`form` says what is put around a text: "<s> $A"."""
    text = " ".join(ANIMALS) + " Number who crossed the river street and bridge? Answer: ran 0123456789"
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<s>", "</s>", "<pad>"]
    inner.train_from_iterator(
        [text] * 5,
        trainers.BpeTrainer(
            vocab_size=320, special_tokens=special, initial_alphabet=alphabet, show_progress=False
        ),
    )
    names = [("<s>", 0), ("</s>", 1)]
    inner.post_processor = processors.TemplateProcessing(single=form, special_tokens=names)
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


@pytest.fixture(scope="module", params=["<s> $A", "$A"], ids=["bos", "no-bos"])
def model_and_tokenizer(request):
    tokenizer = make_tokenizer(request.param)
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=320,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=256,
        initializer_range=0.4,
    )
    return LlamaForCausalLM(config).eval(), tokenizer


TASKS = {
    "delimiter": {
        "doc_to_text": "{{question}}\nAnswer:",
        "doc_to_choice": "choices",
        "doc_to_target": "label",
    },
    "trailing space": {
        "doc_to_text": "{{question}}\nAnswer: ",
        "doc_to_choice": "choices",
        "doc_to_target": "label",
    },
    "no delimiter": {
        "doc_to_text": "{{question}} ",
        "doc_to_choice": "choices",
        "doc_to_target": "label",
        "target_delimiter": "",
    },
    "newline": {
        "doc_to_text": "{{question}}",
        "doc_to_choice": "choices",
        "doc_to_target": "{{choices[label]}}",
        "target_delimiter": "\n",
        "description": "Animals on the way.\n\n",
    },
    "part of the prompt's last token": {
        "doc_to_text": "{{question}}\nAnswer: t",
        "doc_to_choice": ["he old grey horse", "wo black dogs", "hen"],
        "doc_to_target": "label",
        "target_delimiter": "",
    },
    "empty context": {"doc_to_text": "", "doc_to_choice": "choices", "doc_to_target": "label"},
    "choice in the question": {
        "doc_to_text": "label",
        "doc_to_choice": "{{[word.replace('_', choices[0]), word.replace('_', choices[2])]}}",
        "doc_to_target": "{{question.strip()}}",
    },
}


def write_task(folder: Path, name: str, body: dict, *, count: int = 40, train: int = 0) -> str:
    made = documents(count)
    if name == "choice in the question":
        made = [doc | {"label": doc["label"] % 2} for doc in made]
    files = {"validation": str(folder / "validation.json")}
    (folder / "validation.json").write_text("\n".join(json.dumps(doc) for doc in made))
    more = {}
    if train:
        files["train"], more = str(folder / "train.json"), {"training_split": "train"}
        rows = [doc | {"question": "Before: " + doc["question"]} for doc in made[:train]] + made[:2]
        (folder / "train.json").write_text("\n".join(json.dumps(doc) for doc in rows))
    config = {
        "task": name.replace(" ", "_"),
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": files, "cache_dir": str(folder / "cache")},
        "output_type": "multiple_choice",
        "validation_split": "validation",
        "metric_list": [
            {"metric": m, "aggregation": "mean", "higher_is_better": True} for m in ("acc", "acc_norm")
        ],
    }
    (folder / "task.yaml").write_text(json.dumps(config | more | body))  # JSON is YAML
    return str(folder / "task.yaml")


@torch.no_grad()
def log_likelihood(model, context, continuation) -> tuple[float, bool]:
    """One row, one forward pass: the sum of log p over the continuation, and whether each of its tokens is
    greedy."""
    ids = torch.tensor([context + continuation])
    logp = model(ids).logits[0, len(context) - 1 : -1].log_softmax(-1)
    target = torch.tensor(continuation)
    return logp.gather(1, target[:, None]).sum().item(), bool((logp.argmax(-1) == target).all())


def harness_samples(path, model, tokenizer):
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    language_model = HFLM(pretrained=model, tokenizer=tokenizer, batch_size=8, max_length=256)
    manager = TaskManager(include_defaults=False)
    result = simple_evaluate(
        language_model, tasks=[path], task_manager=manager, log_samples=True, bootstrap_iters=0
    )
    (name,) = result["results"]
    return result["results"][name], sorted(result["samples"][name], key=lambda sample: sample["doc_id"])


@pytest.mark.parametrize("name", slow_but(["delimiter", "empty context"], TASKS))
def test_choice_accuracy_equals_the_harness(name, tmp_path, model_and_tokenizer):
    model, tokenizer = model_and_tokenizer
    path = write_task(tmp_path, name, TASKS[name])
    theirs, samples = harness_samples(path, model, tokenizer)
    source = read_harness(path)
    assert source.kind == "choice"
    correct, correct_norm = [], []
    for example, sample in zip(source.examples, samples, strict=True):
        encoded = encode(example, tokenizer, context=256)
        logps = np.array([log_likelihood(model, *pair)[0] for pair in encoded.pairs])
        expected = [float(response[0][0]) for response in sample["resps"]]
        np.testing.assert_allclose(logps, expected, atol=2e-4)
        correct.append(logps.argmax() == encoded.gold)
        correct_norm.append((logps / np.array(encoded.lengths)).argmax() == encoded.gold)
        assert (correct[-1], correct_norm[-1]) == (sample["acc"], sample["acc_norm"])
    assert np.mean(correct) == pytest.approx(theirs["acc,none"])
    assert np.mean(correct_norm) == pytest.approx(theirs["acc_norm,none"])


def test_some_answers_begin_within_the_prompts_last_token(tmp_path, model_and_tokenizer):
    name = "part of the prompt's last token"
    for example in read_harness(write_task(tmp_path, name, TASKS[name])).examples:
        assert encode(example, model_and_tokenizer[1], context=256).joined


@pytest.mark.parametrize("name", TASKS)
def test_a_tokenizer_that_ends_every_text(name, tmp_path, model_and_tokenizer):
    """Ours are the harness's pairs for the usual tokenizer. The harness itself would ask after an ended prompt."""
    from lm_eval.models.huggingface import HFLM

    model, usual = model_and_tokenizer
    begun = usual.encode("a")[0] == usual.bos_token_id
    ending = make_tokenizer("<s> $A </s>" if begun else "$A </s>")
    theirs, ended = (HFLM(pretrained=model, tokenizer=one, max_length=256) for one in (usual, ending))
    for example in read_harness(write_task(tmp_path, name, TASKS[name])).examples:
        encoded = encode(example, ending, context=256)
        assert encoded == encode(example, usual, context=256)
        for (context, continuation), pair in zip(_wording(example), encoded.pairs, strict=True):
            if context:
                assert pair == tuple(map(tuple, theirs._encode_pair(context, continuation)))
                asked, _ = ended._encode_pair(context, continuation)
                assert asked == [*pair[0], ending.eos_token_id]


def test_the_check_can_fail(tmp_path, model_and_tokenizer):
    """The two accuracies differ from each other and from chance alone here, so equality says something."""
    model, tokenizer = model_and_tokenizer
    theirs, samples = harness_samples(write_task(tmp_path, "delimiter", TASKS["delimiter"]), model, tokenizer)
    assert 0 < theirs["acc,none"] < 1
    assert [s["acc"] for s in samples] != [s["acc_norm"] for s in samples]


def test_log_likelihood_task(tmp_path, model_and_tokenizer):
    model, tokenizer = model_and_tokenizer
    body = {
        "output_type": "loglikelihood",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{' ' + choices[label]}}",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    path = write_task(tmp_path, "continue", body)
    _, samples = harness_samples(path, model, tokenizer)
    source = read_harness(path)
    assert source.kind == "generation"
    for example, sample in zip(source.examples, samples, strict=True):
        ((context, continuation),) = encode(example, tokenizer, context=256).pairs
        logp, greedy = log_likelihood(model, context, continuation)
        assert logp == pytest.approx(float(sample["resps"][0][0][0]), abs=2e-4)
        assert greedy == bool(sample["acc"])


def test_training_documents_choose_and_scored_ones_test(tmp_path, model_and_tokenizer, caplog):
    from secateur.tasks.load import load_task

    path = write_task(tmp_path, "delimiter", TASKS["delimiter"], count=90, train=80)
    task = load_task(f"lm_eval:{path}", tokenizer=model_and_tokenizer[1])
    assert {e.id for e in task.of(task.split("test"))} == {f"delimiter-eval-{i}" for i in range(90)}
    assert len(task.split("probe")) + len(task.split("select")) == 80
    assert "2 training examples repeat a test prompt" in caplog.text


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"output_type": "generate_until", "doc_to_target": "label"}, "only those scored by exact_match"),
        (TASKS["delimiter"] | {"doc_to_target": "{{[0, 1]}}"}, "several right answers"),
        (TASKS["delimiter"] | {"doc_to_target": "{{label + 1}}"}, r"right answer 3 is none of its 3 choices"),
    ],
)
def test_what_cannot_be_scored_is_refused(body, message, tmp_path):
    path = write_task(tmp_path, "delimiter", {"doc_to_text": "{{question}}"} | body)
    with pytest.raises(TaskError, match=message):
        read_harness(path)


def test_missing_file(tmp_path):
    with pytest.raises(TaskError, match="no such file"):
        read_harness(str(tmp_path / "no.yaml"))


@pytest.mark.slow  # the harness reads its thousands of task files
def test_unknown_names():
    with pytest.raises(UnknownName, match=r"Did you mean .*hellaswag"):
        read_harness("hellaswagg")
    with pytest.raises(TaskError, match="group of tasks"):
        read_harness("mmlu")


@pytest.mark.parametrize("name", [name for name in TASKS if name not in ("newline", "empty context")])
def test_solved_examples_are_laid_out_as_the_harness_lays_them_out(name, tmp_path, monkeypatch):
    """The harness renders the same examples itself, and every text it would score is ours.

    Not where a task has a description, which would be repeated, nor where all prompts are equal and so one group.
    """
    path = write_task(tmp_path, name, TASKS[name])
    task, theirs = make_task(read_harness(path), None, **SPLIT), _load(path)
    documents = list(theirs.eval_docs)
    asked = task.examples
    for before, after in zip(asked, with_shots(task, 2, 0).examples, strict=True):
        shown = [documents[_number(e)] for e in demonstrations(task, before, 2, 0)]
        monkeypatch.setattr(theirs.sampler, "sample", lambda n, eval_doc, shown=shown: shown)
        document = documents[_number(before)]
        context = theirs.fewshot_context(document, num_fewshot=2)
        requests = theirs.construct_requests(document, context, metadata=(name, 0, 1))
        expected = [left + right for left, right in (request.args for request in requests)]
        assert [left + right for left, right in _wording(after)] == expected


def _number(example: Example) -> int:
    return int(example.id.rpartition("-")[2])
