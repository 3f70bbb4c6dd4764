"""Measurements for the records of `finetune` and `heal`: select, side tasks, texts, and test where it is opened."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

import numpy as np

from secateur.core.comparison import compare, recovered
from secateur.core.distributed import world
from secateur.core.ledger import Ledger
from secateur.core.noninferiority import MARGIN
from secateur.core.plan import Plan
from secateur.core.records.verdict import IntervalRecord, ScoreRecord
from secateur.core.score import METRICS, Score
from secateur.core.stats import Interval
from secateur.evaluation.measurement import Measurement, SideTask, measure_model
from secateur.evaluation.sample import plain, prompts, sample
from secateur.evaluation.verdict import decide
from secateur.hf.load import Loaded
from secateur.session import Session
from secateur.side_tasks import side_effects
from secateur.tasks.example import Task
from secateur.training.cards import test_sentence
from secateur.training.options import Tuning
from secateur.training.records.finetune import (
    EpochRecord,
    MetricChangeRecord,
    ModelIdentityRecord,
    TrainedModelRecord,
    TrainedTaskRecord,
    TrainingSplitsRecord,
)
from secateur.training.records.heal import (
    HealedScoreRecord,
    HealedSideRecord,
    HealedTestRecord,
    HealedTextsRecord,
)
from secateur.training.state import outcomes_of
from secateur.training.trainer import Trained

PROMPTS = 3  # pieces of text that each model writes
WRITTEN = 40  # tokens of each
REPORTED = {
    "text": ("text_loss",),
    "choice": ("accuracy", "accuracy_norm", "loss"),
    "generation": ("accuracy", "loss"),
}  # metrics by kind of task, the primary one first
T = TypeVar("T")
U = TypeVar("U")


# ----------------------------------------------------------------------------------------- what every training records


def identity_record(loaded: Loaded) -> ModelIdentityRecord:
    """Return the record of a model as it was loaded."""
    return ModelIdentityRecord(
        name=loaded.name,
        hub=loaded.revision is not None,
        **({} if loaded.gguf is None else {"gguf": loaded.gguf}),
        revision=loaded.revision,
        architecture=loaded.anatomy.architecture,
        parameters=loaded.anatomy.num_parameters,
        fingerprint=loaded.fingerprint,
    )


def model_record(loaded: Loaded) -> TrainedModelRecord:
    """Return the record of a model that is trained, as it was loaded."""
    return TrainedModelRecord.model_validate(
        identity_record(loaded).to_json() | {"carved": loaded.anatomy.carved}
    )


def dtype_name(loaded: Loaded) -> str:
    """Return the dtype of the model's weights, such as `bfloat16`."""
    return str(loaded.model.dtype).removeprefix("torch.")


def task_record(task: Task) -> TrainedTaskRecord:
    """Return the record of a task."""
    return TrainedTaskRecord(name=task.name, kind=task.kind, hash=task.hash)


def splits_record(task: Task, tuning: Tuning) -> TrainingSplitsRecord:
    """Return which examples were learned, how many, and how the epoch was chosen.

    Not all examples of the splits are learned where `max_steps` ends the first epoch.
    """
    every = sum(len(task.split(name)) for name in tuning.split)
    most = every if tuning.max_steps is None else tuning.max_steps * tuning.batch_size * world()
    return TrainingSplitsRecord(
        splits=list(tuning.split),
        examples=min(every, most),
        select_examples=len(task.split("select")),
        examples_per_step=tuning.batch_size * world(),
        chosen_by="loss on select" if tuning.chooses else "last epoch",
    )


def epoch_records(trained: Trained) -> list[EpochRecord]:
    """Return the losses as training saw them; `kept` marks the weights that the model has now."""
    return [EpochRecord(**vars(row), kept=row.step == trained.best) for row in trained.history]


def metric_changes(
    task: Task, before: np.ndarray, after: np.ndarray, groups: np.ndarray, seed: int
) -> list[MetricChangeRecord]:
    """Return every metric of the task on select, before and after training.

    Args:
        before: OUTCOME rows (n,) of the untrained model.
        after: OUTCOME rows (n,) of the same examples, of the trained model as it was read back.
        groups: What was sampled as one (n,).
        seed: Seed of the bootstrap.
    """
    rows = []
    for name in REPORTED[task.kind]:
        compared = compare(METRICS[name], before, after, groups, seed=seed)
        rows.append(
            MetricChangeRecord(
                metric=name,
                unit=compared.before.unit,
                before=_score(compared.before),
                after=_score(compared.after),
                difference=_interval(compared.difference, compared.difference_ci),
            )
        )
    return rows


def _score(score: Score) -> ScoreRecord:
    return ScoreRecord.model_validate(score.to_json())


def _interval(value: float, ci: Interval | None) -> IntervalRecord:
    return IntervalRecord(value=value, ci=None if ci is None else list(ci))


# ------------------------------------------------------------------------------------------- the three models of a heal


@dataclass(frozen=True)
class ModelTrio(Generic[T]):
    """The same thing of the original, of the cut and of the healed model."""

    teacher: T
    unhealed: T
    healed: T

    def map(self, function: Callable[[T], U]) -> ModelTrio[U]:
        """Return a function's values for the three."""
        return ModelTrio(function(self.teacher), function(self.unhealed), function(self.healed))


@dataclass(frozen=True, eq=False)
class HealMeasurement:
    """Measurements of one of the three models.

    Args:
        select: OUTCOME rows of select.
        sides: OUTCOME rows of every side task.
        texts: What it writes after the prompts, greedily.
        test: Its measurement on test, where test is opened.
    """

    select: np.ndarray
    sides: tuple[np.ndarray, ...]
    texts: tuple[str, ...]
    test: Measurement | None


Three = ModelTrio[HealMeasurement]


def watched_tasks(session: Session) -> list[SideTask]:
    """Return the tasks of `--side`, or plain English without that option.

    Other phrasings of the test questions are left out: test may stay closed.
    """
    return [side for side in side_effects(session) if not side.phrasings]


def measure(session: Session, sides: Sequence[SideTask], *, test: bool) -> HealMeasurement:
    """Measure the session's model as it is; with `test` on the test split too."""
    return HealMeasurement(
        outcomes_of(session, session.task.split("select")),
        tuple(outcomes_of(session.on(side.task), range(len(side.task.examples))) for side in sides),
        tuple(sample(session.loaded, prompt, WRITTEN) for prompt in _prompts(session)),
        measure_model(session.judge(), [], []) if test else None,
    )


def _prompts(session: Session) -> list[tuple[int, ...]]:
    return prompts(session.task, session.encoded, PROMPTS)


def healed_score(
    name: str, outcomes: ModelTrio[np.ndarray], groups: np.ndarray, seed: int
) -> HealedScoreRecord:
    """Return a metric of the three models, the healed against both others, and the recovered share of the loss.

    Args:
        name: The metric.
        outcomes: OUTCOME rows (n,) of the same examples.
        groups: What was sampled as one (n,).
        seed: Seed of the bootstrap.
    """
    metric = METRICS[name]
    gain = compare(metric, outcomes.unhealed, outcomes.healed, groups, seed=seed)
    gap = compare(metric, outcomes.teacher, outcomes.healed, groups, seed=seed)
    back = recovered(metric, outcomes.teacher, outcomes.unhealed, outcomes.healed, groups)
    return HealedScoreRecord(
        metric=name,
        unit=metric.unit,
        higher_is_better=metric.higher_is_better,
        teacher=_score(gap.before),
        unhealed=_score(gain.before),
        healed=_score(gain.after),
        gain=_interval(gain.difference, gain.difference_ci),
        gap=_interval(gap.difference, gap.difference_ci),
        recovered=None if back is None else _interval(*back),
    )


def select_scores(session: Session, three: Three) -> list[HealedScoreRecord]:
    """Return every metric of the task on select."""
    task, outcomes = session.task, three.map(lambda model: model.select)
    groups = task.groups(task.split("select"))
    return [healed_score(name, outcomes, groups, session.options.seed) for name in REPORTED[task.kind]]


def side_scores(session: Session, sides: Sequence[SideTask], three: Three) -> list[HealedSideRecord]:
    """Return the primary metric of each side task on all of its examples, none of which were trained on as such."""
    rows = []
    for number, side in enumerate(sides):
        examples = range(len(side.task.examples))
        outcomes = three.map(partial(_side_outcomes, number=number))
        groups, seed = side.task.groups(examples), session.options.seed
        score = healed_score(side.task.primary_metric, outcomes, groups, seed)
        rows.append(
            HealedSideRecord.model_validate({"name": side.name, "n": len(examples)} | score.to_json())
        )
    return rows


def _side_outcomes(model: HealMeasurement, number: int) -> np.ndarray:
    return model.sides[number]


def texts(session: Session, three: Three) -> list[HealedTextsRecord]:
    """Return what each model wrote after the same beginnings."""
    return [
        HealedTextsRecord(
            prompt=plain(session.loaded, prompt),
            teacher=three.teacher.texts[number],
            unhealed=three.unhealed.texts[number],
            healed=three.healed.texts[number],
        )
        for number, prompt in enumerate(_prompts(session))
    ]


def test_record(session: Session, plan: Plan, three: Three, ledger: Ledger) -> HealedTestRecord:
    """Open test once, and return the verdict of the healed model against the original, with the margin of `prune`.

    Args:
        session: Holds the healed model.
        plan: The plan of the cut.
        ledger: Notes the opening, by which p-values are corrected.
    """
    task, seed = session.task, session.options.seed
    measured = three.map(_opened)
    verdict = decide(
        session.judge(), measured.teacher, measured.healed, plan, (), session.objective.metric,
        ledger=ledger, scope=f"{session.scope} healed", seed=seed, margin=MARGIN,
    )  # fmt: skip
    groups = task.groups(task.split("test"))
    outcomes = measured.map(lambda model: model.test)
    scores = [healed_score(name, outcomes, groups, seed) for name in REPORTED[task.kind]]
    told = {key: value for key, value in verdict.to_json().items() if key in HealedTestRecord.model_fields}
    sentence = test_sentence(verdict.n, verdict.verdict, scores[0])
    return HealedTestRecord.model_validate(told | {"scores": scores, "sentence": sentence})


def _opened(model: HealMeasurement) -> Measurement:
    assert model.test is not None, "test was measured before it is judged"
    return model.test
