"""The study's tasks by name: the harness that is installed has every one of them, and what is missing is said."""

from __future__ import annotations

import logging

import pytest

from secateur.errors import TaskError, UnknownName
from secateur.tasks import harness as study
from secateur.tasks.harness import STUDY
from secateur.tasks.load import list_tasks, load_task
from secateur.tasks.splits import ExampleSource

THE_STUDY = (  # METHODS 4
    "HellaSwag, PIQA, ARC-Easy, ARC-Challenge, OpenBookQA, WinoGrande, BoolQ, CB, COPA, WiC, WSC, MultiRC, RTE, "
    "ReCoRD, MathQA, LAMBADA"
)
KINDS = {"multiple_choice": "choice", "loglikelihood": "generation"}


def test_the_tasks_are_those_of_the_study_and_listed_with_what_they_need():
    assert list(STUDY) == THE_STUDY.lower().split(", ")
    listed = {info.name: info for info in list_tasks()}
    for name, task in STUDY.items():
        info = listed[f"study:{name}"]
        assert (info.kind, info.needs) == (task.kind, "secateur[lm-eval], network")
        assert info.description


def test_a_study_task_is_the_harness_task_under_its_own_name(monkeypatch):
    asked = []

    def harness(name: str) -> ExampleSource:
        asked.append(name)
        return ExampleSource("whatever the harness calls it", "choice", ())

    monkeypatch.setattr(study, "read_harness", harness)
    monkeypatch.setattr(study, "check_copy", lambda name: None)
    assert study.read_study("arc-easy").name == "arc-easy"
    assert study.read_study("lambada").name == "lambada"
    assert asked == ["arc_easy", "lambada_openai"]


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(UnknownName, match=r"the study has no task 'hellaswagg'\. Did you mean hellaswag"):
        load_task("study:hellaswagg", tokenizer=None)


@pytest.fixture(scope="module")
def index():
    """What the installed harness knows, read from its own files."""
    pytest.importorskip("lm_eval", reason="the lm-eval extra is not installed")
    from lm_eval.tasks import TaskManager

    return TaskManager().task_index


@pytest.mark.slow  # the harness reads its thousands of task files
@pytest.mark.filterwarnings("ignore")  # lm_eval and datasets warn at will
def test_the_installed_harness_has_every_one_and_scores_it_as_listed(index):
    for name, task in STUDY.items():
        assert task.harness in index, name
        assert KINDS[index[task.harness].cfg["output_type"]] == task.kind, name
        assert "description" not in index[task.harness].cfg, f"{name}: shots would repeat it"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_without_a_network_the_error_says_so(index, monkeypatch, tmp_path):
    import datasets
    import huggingface_hub

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    with pytest.raises(
        TaskError,
        match=r"copa: its data cannot be loaded: HF_HUB_OFFLINE is set, .*Run it once with a network",
    ):
        load_task("study:copa", tokenizer=None)
