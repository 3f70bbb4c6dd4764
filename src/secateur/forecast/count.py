"""Work → amounts: how many passes, FLOPs, numbers written, decompositions. From shapes alone; measures nothing.

Counted as the evaluator saves: below the lowest edited block nothing runs twice, inside it only what the edit changes,
logits only where they are asked for.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from secateur.core.site import ATTENTION_MATRICES, CROSS_MATRICES, EXPERT_MATRICES, Site
from secateur.forecast.dry_run import CHORES, Generated, Judged, Plans, Read, Work
from secateur.forecast.load import CACHE_BYTES, Load, Loads
from secateur.hf.anatomy import Anatomy
from secateur.linalg.spectrum import spectrum_bytes
from secateur.methods.forecasting import ReadingCost

Amounts = Mapping[str, float]  # what → how many; `machine.py` says what each takes

FFN = frozenset({"gate", "up", "down"})
RERUN = {  # what an edit of one matrix makes run again in its block, as `find_unchanged` finds it
    "down": frozenset({"down"}),
    "gate": frozenset({"gate", "down"}),
    "up": frozenset({"up", "down"}),
    "o": FFN | {"o"},
    **{kind: FFN | {kind, "o"} for kind in "qkv"},
    **{kind: FFN | {kind, "cross.o"} for kind in CROSS_MATRICES},
    **dict.fromkeys(EXPERT_MATRICES, frozenset()),  # and all experts of the block
}
ATTENDING = ATTENTION_MATRICES  # edits of these compute attention's scores again
BEHAVIOR = 100  # random sequences, of prefix matching and again of copying
BEHAVIOR_TOKENS = tuple(4 * (25 + 2 * seed) for seed in range(BEHAVIOR))


def decomposition(shape: tuple[int, int]) -> str:
    return f"svd {max(shape)}x{min(shape)}"


@dataclass
class Counted:
    """Counts works in their order, since what was decomposed stays as long as there is room (`spectra_bytes`), and in a
    folder for good (`stored`)."""

    anatomy: Anatomy
    loads: Loads
    spectra_bytes: int
    stored: bool = False
    _on_disk: set[Site] = field(default_factory=set)
    _decomposed: set[Site] = field(default_factory=set)

    def __call__(self, work: Work) -> Amounts:
        if isinstance(work, Judged):
            return self.judged(work)
        return self.read(work.reading) if isinstance(work, Read) else self.generated(work)

    # ------------------------------------------------------------------------------------------------------- judging

    def judged(self, work: Judged) -> Amounts:
        load = self.loads.of(work.place, work.first, work.last)
        asked = [plans for plans in work.plans if plans.count]
        found: Counter[str] = Counter({"packed": load.tokens + load.kept})  # once for all plans
        for plans in asked:
            found.update(self._plans(plans, load))
            steps = load.calls * self.loads.places[work.place].session.task.max_new_tokens
            found.update({"step": plans.count * steps})
        found.update(self._boundary({plans.block for plans in asked}, load))
        if work.decomposes:
            found.update(self._spectra(((plans.edited, plans.count) for plans in asked), load.shards))
        return found

    def _plans(self, plans: Plans, load: Load) -> Amounts:
        """The first of a group runs its block whole; it keeps what the others need not run, as far as there is room."""
        count, last = plans.count, self.anatomy.num_blocks
        inside = self._block(plans.block, load)
        kinds = {site.name: site for site in plans.edited if self.anatomy.number(site) == plans.block}
        saved = (inside - self._inside(plans.block, kinds, load)) * self._room(kinds.values(), load)
        above = sum(self._block(block, load) for block in range(plans.block + 1, last))
        flops = count * (inside + above) - max(0.0, count - 1) * saved
        shapes = [self.anatomy.matrix(site).shape for site in plans.edited]
        return {
            "plan": count * load.shards,
            "edit": count * load.shards * len(shapes),
            "example": count * load.examples,
            "call": count * load.calls,
            "block": count * load.calls * (last - plans.block),
            "flop": flops,
            "logit": count * load.kept * self.anatomy.num_logits,
            "written": count * load.shards * sum(rows * columns for rows, columns in shapes),
            "mask flop": count
            * load.shards
            * sum(2 * plans.rank * rows * columns for rows, columns in shapes),
        }

    def _boundary(self, blocks: set[int], load: Load) -> Amounts:
        """The activations that enter each block at which some plan begins, every block run once."""
        highest = max(blocks, default=0)
        return {
            "call": len(blocks - {0}) * load.calls,
            "block": highest * load.calls,
            "flop": sum(self._block(block, load) for block in range(highest)),
        }

    def _block(self, block: int, load: Load) -> float:
        whole = self._parts(block, frozenset(self.anatomy.matrix_kinds), load) + self._scores(block, load)
        return whole + 2.0 * self.anatomy.widths[block].mixer * load.tokens + self._experts(block, load)

    def _experts(self, block: int, load: Load) -> float:
        """Return FLOPs of the experts that the tokens are sent to, in a block whose network is a mixture."""
        routing = self.anatomy.routing
        return (
            0.0 if routing is None else 2.0 * routing.chosen * self.anatomy.widths[block].expert * load.tokens
        )

    def _inside(self, block: int, kinds: Collection[str], load: Load) -> float:
        """Return FLOPs of the layers that an edit of these kinds makes run again; of all where no kind is named."""
        if not kinds:
            return self._block(block, load)
        parts = frozenset().union(*(RERUN[kind] for kind in kinds))
        scores = self._scores(block, load) if ATTENDING.intersection(kinds) else 0.0
        experts = 0.0 if FFN.issuperset(kinds) else self._experts(block, load)
        return self._parts(block, self._with_sharers(block, parts, kinds), load) + scores + experts

    def _with_sharers(self, block: int, parts: frozenset[str], kinds: Collection[str]) -> frozenset[str]:
        """Matrices that lie in one parameter with an edited one run with it."""
        whole = self.anatomy.site(block)
        own = {s.part: m.module for s, m in self.anatomy.matrices.items() if s.whole_block == whole}
        edited = {own[kind] for kind in kinds if kind in own}
        return parts | {part for part, module in own.items() if module in edited}

    def _parts(self, block: int, parts: frozenset[str], load: Load) -> float:
        """Matrix products; in the last block what lies beyond keys and values runs where logits are asked for."""
        whole = self.anatomy.site(block)
        own = {s.part: m for s, m in self.anatomy.matrices.items() if s.whole_block == whole}
        everywhere = {
            m.module for part, m in own.items() if part in "kv" or block < self.anatomy.num_blocks - 1
        }
        total = 0.0
        for part in parts & own.keys():
            rows, columns = own[part].shape
            total += 2 * rows * columns * (load.tokens if own[part].module in everywhere else load.kept)
        return total

    def _scores(self, block: int, load: Load) -> float:
        """Attention's scores and what they weigh: 4 for each query number and each token that it may attend to."""
        own = self.anatomy.widths[block]
        return 4.0 * (own.num_heads + own.num_cross) * own.d_head * load.pairs

    def _room(self, sites: Collection[Site], load: Load) -> float:
        """The share of batches of which the inside fits the cache: what edited layers read, or what is beside them."""
        if not sites:
            return 0.0
        widths = [self.anatomy.matrix(site).shape[1] + self.anatomy.d_model for site in sites]
        need = load.tokens * sum(widths) * self.loads.width / self.anatomy.d_model
        return min(1.0, CACHE_BYTES * load.shards / max(1.0, need))

    def _spectra(self, groups: Iterable[tuple[Sequence[Site], float]], rounds: int) -> Amounts:
        """Decompositions for groups of plans (the matrices, how many plans): once where the spectra of all have room
        together; else in every round again, and where not even one plan's have, for each of its plans."""
        groups = list(groups)
        asked = {site for sites, _ in groups for site in sites}
        needed: Counter[Site] = Counter()
        if self._bytes(asked | self._decomposed) <= self.spectra_bytes:
            groups, rounds = [(sorted(asked - self._decomposed), 1.0)], 1
        for sites, count in groups:
            times = rounds * (
                max(1.0, count) if self._bytes(sites) > self.spectra_bytes and len(sites) > 1 else 1
            )
            needed.update(dict.fromkeys(sites, times))
        self._decomposed |= asked
        return self._decompositions(needed)

    def _decompositions(self, needed: Mapping[Site, float]) -> Amounts:
        """As often as needed; with a folder each once, written there and read as often, as if always whole."""
        found: Counter[str] = Counter()
        for site, times in needed.items():
            shape = self.anatomy.matrix(site).shape
            if not self.stored:
                found.update({decomposition(shape): times})
                continue
            fresh = int(site not in self._on_disk)
            read = (times + fresh) * spectrum_bytes(shape)
            found.update({decomposition(shape): fresh, "spectrum byte": read})
            self._on_disk.add(site)
        return found

    def _bytes(self, sites: Iterable[Site]) -> int:
        return sum(spectrum_bytes(self.anatomy.matrix(site).shape) for site in sites)

    # ------------------------------------------------------------------------------------------------------- readings

    def read(self, work: ReadingCost) -> Amounts:
        if work.what in CHORES:
            flops = 4 * self._behavior() if work.what == "behavior" else 0.0
            return {work.what: work.times, f"{work.what} flop": work.times * flops}
        load = self.loads.of(work.place, 0, work.examples, answers=not work.choices)
        times = work.times * (self._groups(work) if work.decomposes else 1)
        if work.scan_tokens:  # a pass before it, over as many tokens at most
            times *= 1 + min(1.0, work.scan_tokens / max(1, load.tokens))
        whole = sum(self._block(block, load) for block in range(self.anatomy.num_blocks))
        shapes = (self.anatomy.matrix(site).shape for site in work.parts if site.unit and site.is_matrix)
        found = {
            work.what: times * load.calls,
            f"{work.what} flop": times * work.passes * whole
            + work.times
            * work.blocks
            * sum(self._block(self.anatomy.number(site), load) for site in work.parts)
            + times
            * load.examples
            * sum(2 * rows * columns * min(rows, columns) for rows, columns in shapes),
            f"{work.what} part": work.times * len(work.parts) * (1 + work.under_plan),
        }
        if work.fits:
            products = 6 * load.tokens * self.anatomy.d_model**2  # three moments of pairs
            return found | {f"{work.what} moment": work.times * len(work.parts) * products}
        return {**found, f"{work.what} example": times * load.examples, **self._read_spectra(work)}

    def _read_spectra(self, work: ReadingCost) -> Amounts:
        """Once, and under a plan once more for that where there is no room for them to stay."""
        if not work.decomposes:
            return {}
        if not work.not_cached:
            return self._spectra([((part,), 1.0) for part in work.parts], 1 + work.under_plan)
        shapes = Counter(decomposition(self.anatomy.matrix(site).shape) for site in work.parts)
        return {name: count * work.times * (1 + work.under_plan) for name, count in shapes.items()}

    def _groups(self, work: ReadingCost) -> int:
        """Runs of matrices whose spectra have room together: each needs passes of its own."""
        room = work.spectra_bytes or self.spectra_bytes
        groups, used = 0, room + 1
        for site in work.parts:
            need = spectrum_bytes(self.anatomy.matrix(site).shape)
            groups, used = (groups + 1, need) if used + need > room else (groups, used + need)
        return groups

    def _behavior(self) -> float:
        """FLOPs of the blocks on all random sequences once."""
        context = self.anatomy.context or max(BEHAVIOR_TOKENS)
        lengths = [min(length, context) for length in BEHAVIOR_TOKENS]
        load = Load(BEHAVIOR, sum(lengths), sum(length * (length + 1) // 2 for length in lengths))
        return sum(self._block(block, load) for block in range(self.anatomy.num_blocks))

    def generated(self, work: Generated) -> Amounts:
        weights = sum(rows * columns for rows, columns in (m.shape for m in self.anatomy.matrices.values()))
        weights += sum(width.mixer for width in self.anatomy.widths)
        steps = work.tokens * work.plans
        return {"step": steps, "flop": 2.0 * weights * work.rows * steps}
