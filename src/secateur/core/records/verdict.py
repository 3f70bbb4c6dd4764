"""Types of verdict.json."""

from __future__ import annotations

from pydantic import ConfigDict, Field

from secateur.core.records.record import Number, Record


class IntervalRecord(Record):
    """A value with its 95 % interval."""

    value: Number = Field(description="the value")
    ci: list[Number] | None = Field(description="its interval; null where none was computed")


class ScoreRecord(Record):
    """A metric of one model on some examples, with its 95 % interval."""

    metric: str = Field(description="its name")
    value: Number = Field(description="the mean")
    ci: list[Number] | None = Field(description="its interval; null under 10 groups")
    n: int = Field(description="examples")
    groups: int = Field(description="groups")
    unit: str = Field(description="`share` or `nats/token`")
    higher_is_better: bool = Field(description="direction")


class NonInferiorityRecord(Record):
    """A test of not being worse by more than a margin; see statistics.md."""

    margin: Number = Field(description="how much worse still counts as not worse, as asked for")
    unit: str = Field(description="of `margin` and `bound`: `share` or `nats/token`")
    bound: float | None = Field(
        description="one-sided lower bound of the gain, positive is better whichever way the metric goes; null where the groups are too few for one"
    )
    level: Number = Field(description="of the bound: 1 − .05 / `openings`")
    method: str = Field(description="`Tango score interval`, `paired bootstrap`, or `none, too few groups`")
    shown: bool = Field(description="the bound lies above −`margin`")
    named_late: bool = Field(
        default=False,
        description="the ledger knows an earlier look at this plan and metric, with another margin: this one decides nothing",
    )
    decides: float | None = Field(
        default=None,
        description="the margin that decides the word: `margin`, or the one named at that earlier look; null where none was",
    )


class SecondaryRecord(Record):
    """A metric that is reported beside the one that decides. None of them is tested: each test would be an opening."""

    metric: str = Field(description="its name")
    unit: str = Field(description="its unit")
    higher_is_better: bool = Field(description="direction")
    before: ScoreRecord = Field(description="the original model")
    after: ScoreRecord = Field(description="the checkpoint")
    difference: IntervalRecord = Field(description="after − before")
    gained: bool = Field(description="in the right direction")


class AnswerRecord(Record):
    """An answer and the share of the questions that it is given to."""

    answer: str = Field(description="the choice")
    share: Number = Field(description="of the questions")


class BaselineRecord(Record):
    """The score of the unchanged model, beside scores that need no model."""

    split: str = Field(description="of the score: `select`, or what `eval` was asked for")
    metric: str = Field(description="the metric that decides")
    n: int = Field(description="examples")
    value: Number = Field(description="the score of the unchanged model")
    ci: list[Number] | None = Field(description="its interval")
    chance: float | None = Field(description="mean of 1 / choices over `select`; null without choices")
    majority: AnswerRecord | None = Field(
        description="the most frequent right answer on `select`, where all questions have the same choices"
    )
    given: AnswerRecord | None = Field(
        description="the answer the model gives most often; null without choices"
    )
    accuracy_norm: float | None = Field(description="beside `accuracy`")
    extracted: bool = Field(
        default=False, description="the model writes, and its answer is looked for in the text (`--extract`)"
    )
    labelled: bool = Field(default=False, description="texts with labels, of a sequence classifier")
    warning: str | None = Field(description="where the score is not shown to be above chance and majority")


class HandedOverRecord(Record):
    """The content of the checkpoint, and the place of a plan that was not carried out."""

    holds: str = Field(description="`cut` or `original`: the weights in the checkpoint")
    unproven: str | None = Field(
        description="file of a plan that was found for gain and not carried out: `unproven/plan.json`"
    )
    edits: str | None = Field(description="that plan in words")


class MemberRecord(Record):
    """One of several tasks, on all of its own test examples, in the metric that decides."""

    name: str = Field(description="its name")
    kind: str = Field(description="`choice`, `generation` or `text`")
    n: int = Field(description="its test examples")
    groups: int = Field(description="its groups")
    left_out: dict[str, int] = Field(
        description="of `probe`, `select` and `test` what the joint task had no use for; of `test` it is measured here"
    )
    metric: str = Field(description="as in the verdict")
    unit: str = Field(description="its unit")
    higher_is_better: bool = Field(description="direction")
    before: ScoreRecord = Field(description="the original model")
    after: ScoreRecord = Field(description="the checkpoint")
    difference: IntervalRecord = Field(description="after − before")
    gained: bool = Field(description="in the right direction")
    p_value: Number = Field(description="two-sided, corrected by Holm for the number of tasks")
    p_value_unadjusted: Number = Field(description="the same before the correction")
    test: str = Field(description="the test in words")
    within_margin: bool | None = Field(
        description="it was shown to be no worse than the margin; null where none was given, or nothing was cut"
    )
    secondary: list[SecondaryRecord] = Field(description="its other metrics")


class GuardRecord(Record):
    """A known way for a gain to be hollow, and whether it was met."""

    name: str = Field(
        description="`constant predictor` or `log-loss`; of several tasks also `harm to NAME`, and `constant predictor on NAME` for each"
    )
    fired: bool = Field(description="")
    detail: str = Field(description="in words")
    applicable: bool = Field(
        default=True,
        description="some gold answer occurs twice (only: constant predictor, something cut, not text)",
    )
    answer: str | None = Field(
        default=None, description="the answer given most often after the cut (only: as above)"
    )
    answer_gold: Number | None = Field(
        default=None, description="its share of the gold answers (only: as above)"
    )
    answer_before: Number | None = Field(
        default=None, description="its share of the answers before (only: as above)"
    )
    answer_after: Number | None = Field(default=None, description="and after (only: as above)")
    majority_baseline: Number | None = Field(
        default=None, description="share of the most frequent gold answer (only: as above)"
    )
    modal_share_before: Number | None = Field(
        default=None, description="share of the most frequent answer before (only: as above)"
    )
    modal_share_after: Number | None = Field(default=None, description="and after (only: as above)")
    balanced_before: Number | None = Field(
        default=None, description="balanced accuracy before (only: as above)"
    )
    balanced_after: Number | None = Field(default=None, description="and after (only: as above)")
    constant_before: bool | None = Field(
        default=None,
        description="the original, too, over-answered its own most frequent answer (only: as above)",
    )


class SideEffect(Record):
    """One thing that was watched beside the task."""

    name: str = Field(description="what was watched")
    unit: str = Field(description="`share`, `nats/token`, `perplexity` or `distinct bigrams, share`")
    higher_is_better: bool = Field(description="direction")
    n: int = Field(description="examples, chunks or continuations")
    before: IntervalRecord | ScoreRecord | None = Field(
        default=None, description="the original model (only: a Score for accuracies)"
    )
    after: IntervalRecord | ScoreRecord | None = Field(
        default=None, description="the checkpoint (only: a Score for accuracies)"
    )
    difference: IntervalRecord | None = Field(default=None, description="after − before (only: accuracies)")
    ratio: IntervalRecord | None = Field(default=None, description="perplexity after / before (only: text)")
    gained: bool | None = Field(default=None, description="in the right direction (only: accuracies)")
    detail: str | None = Field(
        default=None, description="how many tokens are still the original's (only: continuations)"
    )

    @property
    def counted(self) -> str:
        """Return what the numbers are over: `200 examples`, `150 chunks of text`, `32 continuations, …`."""
        kinds = {
            "perplexity": "chunks of text",
            "distinct bigrams, share": "continuations, share of distinct bigrams",
        }
        return f"{self.n:,} {kinds.get(self.unit, 'examples')}"

    @property
    def shown_worse(self) -> bool:
        """Return True where all of the interval of the change lies on the worse side of no change."""
        sign = 1 if self.higher_is_better else -1
        changed = [(self.difference, 0.0), (self.ratio, 1.0)]
        intervals = [(record.ci, none) for record, none in changed if record is not None and record.ci]
        return any(all(sign * (end - none) < 0 for end in ci) for ci, none in intervals)


class AlternativeRecord(Record):
    """A change that needs no cut, tried on the original."""

    name: str = Field(description="`ban one token` or `label calibration`")
    applicable: bool = Field(description="this task has a place for it")
    detail: str = Field(description="what was done, or why not")
    value: Number | None = Field(default=None, description="accuracy on `test` (only: applicable)")
    ci: list[Number] | None = Field(
        default=None, description="its interval; null under 10 groups (only: applicable)"
    )
    n: int | None = Field(default=None, description="examples (only: applicable)")
    groups: int | None = Field(default=None, description="groups (only: applicable)")


class ChoiceRecord(Record):
    """The best plan that was tried for gain, and whether `select` shows that it gains."""

    best: str = Field(description="the best plan that was tried for gain")
    shown: bool = Field(description="`p_value` is below .05: it is shown to gain")
    better: bool = Field(description="its mean is better than that of the original")
    p_value: Number = Field(description="one-sided, corrected for all that were tried")
    tried: int = Field(description="how many were")


class FellBackRecord(Record):
    """A map that was fitted for these blocks and not taken, because on `select` its loss is no lower than that of dropping them."""

    blocks: list[int] = Field(description="a run of blocks, one after the other")
    fitted: Number = Field(description="nats per token on `select` with the map")
    dropped: Number = Field(description="with these blocks dropped")


class CutRecord(Record):
    """One edit of the plan."""

    site: str = Field(description="the matrix, or what went")
    edit: str = Field(description="the edit in words")
    kind: str = Field(
        default="truncate",
        description="`truncate`, `remove_directions`, `drop` or `linearize`, as in plan.json",
    )
    shape: list[int] | None = Field(default=None, description="out, in (only: truncate, remove_directions)")
    rank: int | None = Field(default=None, description="components kept (only: truncate, remove_directions)")
    full_rank: int | None = Field(
        default=None, description="components it had (only: truncate, remove_directions)"
    )
    blocks: list[int] | None = Field(
        default=None, description="the run of blocks that one linear map stands for (only: linearize)"
    )


class ParametersRecord(Record):
    """Numbers of parameters before and after."""

    before: int = Field(description="parameters of the original, tied ones once")
    after: int = Field(
        description="of the checkpoint; more where biases had to be added for the means of what was removed"
    )
    factorized: int = Field(
        description="what it would be if matrices of lower rank were stored as two factors (`--factorize`)"
    )


class BeforeAfter(Record):
    """One measurement of the dense model and of the cut one."""

    before: int | Number = Field(description="the dense model")
    after: int | Number = Field(description="the cut one")


class SpeedRecord(Record):
    """Medians over the repeats; `_iqr` are the lower and the upper quartile."""

    before: Number = Field(description="tokens/s of the dense model")
    before_iqr: list[Number] = Field(description="its quartiles")
    after: Number = Field(description="tokens/s of the cut one")
    after_iqr: list[Number] = Field(description="its quartiles")
    speedup: Number = Field(description="median of the ratios of the time, dense / cut, turn by turn")
    speedup_iqr: list[Number] = Field(description="its quartiles")
    limit: Number = Field(description="the speedup that the shapes allow")
    of_limit: Number = Field(description="speedup / limit, share")


class ShapeRecord(Record):
    """The work that was timed."""

    prompt: int = Field(description="tokens of a prompt")
    new: int = Field(description="tokens decoded after it")
    batch: int = Field(description="prompts at once")
    repeats: int = Field(description="times each was measured")


class ZeroedRecord(Record):
    """Parts of the cut model that are zero, and stored and computed all the same."""

    heads: int = Field(description="query heads to whose output no weight of `o` listens")
    ffns: int = Field(description="feed-forward networks whose `down` is all zero")
    neurons: int = Field(description="neurons of the others to which no weight of `down` listens")
    weights: int = Field(description="zeros in all matrices but embeddings, whatever their pattern")


class GainsRecord(Record):
    """The savings of a cut: *before* is the dense model, *after* the cut one. `prune` measures no speed and no memory; bench does."""

    model: str | None = Field(default=None, description="OUT as given (only: bench)")
    against: str | None = Field(default=None, description="the dense model (only: bench)")
    parameters: BeforeAfter = Field(description="tied ones once")
    bytes_on_disk: BeforeAfter | None = Field(
        default=None,
        description="of the safetensors files that hold the weights (only: null for a model in memory only)",
    )
    kv_bytes_per_token: BeforeAfter | None = Field(
        description="bytes of the real cache after a prefill, for each token of one sequence; null for a model that "
        "writes no text"
    )
    zeroed: ZeroedRecord = Field(
        description="what of the cut model is zero, and stored and computed all the same"
    )
    peak_bytes: BeforeAfter | None = Field(
        default=None, description="the larger of the next two (only: null where it was not measured)"
    )
    peak_bytes_prefill: BeforeAfter | None = Field(
        default=None,
        description="peak memory of a prefill: the model and what it needs; bytes (only: as above)",
    )
    peak_bytes_decode: BeforeAfter | None = Field(
        default=None, description="peak memory of decoding, cache included; bytes (only: as above)"
    )
    prefill: SpeedRecord | None = Field(
        default=None, description="whole prompts at once; the limit is arithmetic (only: as above)"
    )
    decode: SpeedRecord | None = Field(
        default=None,
        description="greedy, token by token, with the cache; the limit is bytes read (only: as above)",
    )
    shape: ShapeRecord | None = Field(default=None, description="what was run (only: as above)")
    threads: int | None = Field(default=None, description="threads of torch (only: as above)")
    device: str = Field(description="what it ran on")
    dtype: str = Field(description="of the cut model")
    note: str | None = Field(
        default=None,
        description="lengths cut down to the context, sliding windows, unequal dtypes, zeroed parts (only: null: nothing to say)",
    )


class PlaceRecord(Record):
    """One program, and whether it loads the checkpoint."""

    place: str = Field(description="such as `transformers` or `vLLM`")
    loads: bool = Field(description="it loads there, or is expected to")
    evidence: str = Field(
        default="",
        description="`read back` (in this run), `run` (elsewhere, in the version that `detail` names), `expected` or `no`",
    )
    detail: str = Field(default="", description="by what; `not tried` for `expected`; empty for `no`")
    how: str = Field(description="the line of code; or why not")
    condition: str = Field(default="", description="when it loads, where that is not always; else empty")


class LoadsRecord(Record):
    """The form of the checkpoint, and where it loads."""

    form: str = Field(
        description="`stock`: of a stock class; `zeroed`: of a stock class in the original's shapes; `carved`: with a modelling file of its own"
    )
    why: str = Field(default="", description="why no stock class can hold it; empty where one does")
    where: list[PlaceRecord] = Field(description="each place that was considered")


class ProvedRecord(Record):
    """The kinds of edit that are proved of the model's structure, on a tiny random copy of its config."""

    proved: list[str] = Field(description="as `secateur models MODEL` lists them; all blocks are one kind")
    not_proved: list[str] = Field(description="kinds of which the copy has none, or that it refuses")
    why: str | None = Field(description="why nothing was proved; null where something was")
    versions: dict[str, str] = Field(description="of secateur, transformers and torch")

    @property
    def sentence(self) -> str:
        """Return it in words, such as `Proved on a tiny random copy of its config: heads, q.`"""
        if self.why is not None:
            return f"Structure not proved: {self.why}"
        parts = [f"Proved on a tiny random copy of its config: {', '.join(self.proved) or 'nothing'}."]
        parts += [f"Not proved: {', '.join(self.not_proved)}."] if self.not_proved else []
        return " ".join(parts)


class GgufRecord(Record):
    """The GGUF file that a model was read from."""

    file: str = Field(description="its name")
    type: str = Field(
        description="how most of its numbers are stored, such as `Q4_1`; all are read as float32"
    )
    sha256: str = Field(description="digest of the file")
    transformers: str = Field(description="the version that read it")

    @property
    def quantized(self) -> bool:
        """Tell whether its numbers were rounded to fewer bits than floating point has."""
        return self.type not in ("F64", "F32", "F16", "BF16")

    @property
    def words(self) -> str:
        """Return what was read, as it is told to the user."""
        return f"{self.file}, {'dequantized from' if self.quantized else 'stored as'} {self.type}"

    @property
    def sentence(self) -> str:
        """Return what a model card says of it."""
        return f"The model is {self.words} (SHA-256 `{self.sha256}`), read as float32 by transformers {self.transformers}."


class ModelRecord(Record):
    """The original model."""

    name: str = Field(description="MODEL as given")
    revision: str | None = Field(default=None, description="`--revision`")
    hub: bool = Field(default=False, description="it came from the hub")
    gguf: GgufRecord | None = Field(
        default=None, description="the GGUF file that it was read from (only: GGUF)"
    )
    fingerprint: str = Field(description="digest of all parameters in the dtype used")
    family: str = Field(description="such as `llama`")
    architecture: str = Field(description="class name")
    dtype: str = Field(default="", description="of the model in memory and on disk")
    num_blocks: int = Field(default=0, description="blocks")
    encoder_blocks: int = Field(
        default=0, description="of these, those of an encoder, which come first in an encoder-decoder"
    )
    num_heads: int = Field(default=0, description="query heads of a block")
    num_kv_heads: int = Field(default=0, description="KV groups of a block")
    without_heads: list[int] = Field(
        default_factory=list, description="blocks of a hybrid that have another mixer than attention"
    )
    matrices: list[str] = Field(default_factory=list, description="kinds of matrices that blocks have")
    license: str | None = Field(
        default=None, description="as its model card states; null where it states none"
    )

    @property
    def base_model(self) -> str | None:
        """Return its name on the hub; None for a model that did not come from there."""
        if not self.hub:
            return None
        return (
            self.name if self.gguf is None else "/".join(self.name.split("/")[:2])
        )  # what follows is the file


class WrittenRecord(Record):
    """The checkpoint that was written."""

    fingerprint: str = Field(description="of the checkpoint; equals the model's where nothing was cut")


class TaskRecord(Record):
    """The task that the cut was judged on."""

    name: str = Field(description="its name")
    kind: str = Field(description="`choice`, `generation` or `text`")
    hash: str = Field(description="digest of content and splits")
    splits: dict[str, int] = Field(
        description="examples in `probe`, `select`, `test`; of several tasks also in `test of NAME`, all that each has"
    )


class SearchRecord(Record):
    """The course of the search. Each method writes more keys of its own; those that several have are named here."""

    model_config = ConfigDict(extra="allow")  # a method writes what it alone has

    method: str = Field(
        description="`laser`, `directions`, `depth`, `attention`, `heads`, `ffns`, `components` or `budget`"
    )
    proposed: int = Field(default=0, description="candidates that could have been judged")
    screened_out: int | None = Field(
        default=None, description="left out by the screen (only: searches for gain)"
    )
    raced_out: int | None = Field(default=None, description="left the race early (only: searches for gain)")
    exhaustive: bool | None = Field(default=None, description="no screen, no race (only: laser)")
    protocol: str | None = Field(default=None, description="what ends the search (only: directions)")
    choice: ChoiceRecord | None = Field(
        default=None, description="what `select` says of the best plan (only: searches for gain)"
    )


class DecisionRecord(Record):
    """The statistical part of verdict.json: the word, the comparison that it comes from, and what stands beside it."""

    version: int = Field(description="1")
    verdict: str = Field(
        description="`improves`, `no difference shown` or `worse`; with a margin also `not worse by more than 2.0 points`, or `… 0.020 nats`"
    )
    metric: str = Field(
        description="what decided: `accuracy`, `accuracy_norm`, `choice_loss`, `loss`, `text_loss`, `top5`, `top10`"
    )
    unit: str = Field(description="`share`, `nats` or `nats/token`")
    higher_is_better: bool = Field(description="direction of the metric")
    n: int = Field(description="examples in `test`")
    groups: int = Field(description="groups in `test`")
    before: ScoreRecord = Field(description="the original model")
    after: ScoreRecord = Field(description="the cut model, read back from disk")
    difference: IntervalRecord = Field(description="after − before")
    gained: bool = Field(description="the difference is in the right direction")
    p_value: Number = Field(description="two-sided, corrected for the openings of `test`")
    p_value_unadjusted: Number = Field(description="the same before the correction")
    openings: int = Field(
        description="plans, each in one metric, that this ledger has opened this test split for, or one that overlaps with it"
    )
    non_inferiority: NonInferiorityRecord | None = Field(
        default=None,
        description="is the loss within the margin; null where none was given, or nothing was cut",
    )
    test: str = Field(description="the test in words")
    secondary: list[SecondaryRecord] = Field(
        description="the other metrics of this kind of task, on the same examples; empty for text"
    )
    tasks: list[MemberRecord] = Field(
        default_factory=list, description="of several `--task` each by itself; empty for one"
    )
    guards: list[GuardRecord] = Field(description="see statistics.md")
    side_effects: list[SideEffect] = Field(description="what else was watched")


class VerdictRecord(DecisionRecord):
    """The content of verdict.json. Defaults are what a file of an earlier release, without that key, means."""

    sentence: str = Field(description="the verdict in one sentence")
    alternatives: list[AlternativeRecord] = Field(description="what could be had without a cut")
    baseline: BaselineRecord | None = Field(
        default=None, description="the original on `select`, before the search"
    )
    handed_over: HandedOverRecord = Field(
        default_factory=lambda: HandedOverRecord(holds="cut", unproven=None, edits=None),
        description="what the checkpoint holds",
    )
    candidates_tried: int = Field(description="plans judged on `select`, the original not counted")
    evaluations: int = Field(description="(plan, example) pairs the search asked for")
    search: SearchRecord = Field(
        description="how it searched: laser, step by step, by directions, or block by block"
    )
    cut: list[CutRecord] = Field(description="what was cut; empty: nothing")
    cut_summary: str = Field(
        default="",
        description="the same counted, such as `41 of 48 heads, 1 of 6 feed-forward networks`; or `nothing`",
    )
    parameters: ParametersRecord = Field(description="sizes")
    gains: GainsRecord | None = Field(default=None, description="what the cut saves")
    loads: LoadsRecord | None = Field(default=None, description="where the checkpoint loads")
    model: ModelRecord = Field(description="the original")
    written: WrittenRecord = Field(description="the checkpoint")
    task: TaskRecord = Field(description="what it was judged on")
    seed: int = Field(description="`--seed`")
    split_seed: int = Field(description="`--split-seed`")
    versions: dict[str, str] = Field(description="as in plan.json")
    structure: ProvedRecord | None = Field(default=None, description="as in plan.json")
    seconds: dict[str, Number] = Field(
        description="wall-clock time of `screen`, `race`, `compose` (laser), `prune` (removal), `choose` (directions), `analyze` and `verify`, as far as the last process did them"
    )
    command: str = Field(description="the command as a line")
