"""Prove a model's structure before it is cut: once for each class, config and version, by kind of edit.

What is proved is the tiny copy (`structure`), which models of one class share that differ in sizes and names alone. Its
results lie in the user's cache; of code that is not transformers' own they are kept for this process only.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import logging
import os
from collections.abc import Collection, Mapping
from functools import cache
from pathlib import Path
from tempfile import NamedTemporaryFile

from transformers import PreTrainedConfig, PreTrainedModel

from secateur import __version__
from secateur.core.cache import cache_folder
from secateur.core.plan import DROPPED
from secateur.core.records.probe import EditProofRecord
from secateur.core.records.record import Record
from secateur.core.records.verdict import ProvedRecord
from secateur.errors import ModelError, SecateurError
from secateur.hf.anatomy import Anatomy, stock_class
from secateur.hf.blank import tiny_config, tiny_copy
from secateur.hf.fingerprint import digest_of_configs
from secateur.hf.load import Loaded, building, quiet
from secateur.probes import structure

LOG = logging.getLogger("secateur")
_GROUPS, _HEADS = DROPPED["attn", "g"], DROPPED["attn", "h"]


class KnownProofs(Record):
    """The proofs of one tiny copy: the rows of each kind of edit, none where the copy has no such part."""

    architecture: str
    kinds: dict[str, list[EditProofRecord]]


_IN_MEMORY: dict[tuple[type[PreTrainedModel], str], KnownProofs] = {}


def check_proved(loaded: Loaded, kinds: Collection[str]) -> None:
    """Check that edits of these kinds do to the model what they say; a warning says where that cannot be proved.

    Args:
        loaded: May be blank.
        kinds: In the words of `core.plan.kinds_of`.

    Raises: `ModelError` for a kind of which the proof fails, with the measured difference.
    """
    if kinds and (why := proof_of(loaded, kinds).why) is not None:
        LOG.warning("the structure of %s is not proved: %s", loaded.name, why)


def proof_of(loaded: Loaded, kinds: Collection[str]) -> ProvedRecord:
    """Return which of these kinds of edit are proved. Arguments and errors as for `check_proved`."""
    asked, why = _as_in_the_copy(kinds, loaded.anatomy), None
    try:
        known = _known(loaded, tiny_config(loaded, structure.WINDOW), asked) if asked else {}
    except ModelError as error:
        known, why = {}, str(error)
    for kind in sorted(asked):
        for row in known.get(kind, ()):
            _check_row(row, loaded.anatomy.architecture)
    proved = {kind for kind in asked if known.get(kind) and all(row.proved for row in known[kind])}
    return ProvedRecord(
        proved=sorted(proved), not_proved=sorted(asked - proved), why=why, versions=_versions()
    )


def _as_in_the_copy(kinds: Collection[str], parts: Anatomy) -> frozenset[str]:
    """Return the kinds as a copy has them: groups of one head, or one group of all, are heads there."""
    alone = parts.num_kv_heads in (1, parts.num_heads)
    return frozenset(_HEADS if alone and kind == _GROUPS else kind for kind in kinds)


def _check_row(row: EditProofRecord, architecture: str) -> None:
    wrong = {name: value for name, value in row.differences.items() if not structure.is_close(name, value)}
    if wrong:
        name, value = next(iter(wrong.items()))
        raise ModelError(
            f"{architecture}: edits of the kind {row.edit!r} are refused, for on a tiny random copy of this config "
            f"they do not do what they should: {name} differs by {value:.1e} (relative). Leave that kind out (of "
            "--matrices, --kinds, or the plan), or take another --method; `secateur models MODEL` shows every kind."
        )


def _known(
    loaded: Loaded, config: PreTrainedConfig, asked: Collection[str]
) -> Mapping[str, list[EditProofRecord]]:
    """Return the rows of these kinds: remembered, or proved now. Raises: `ModelError` where there is no copy."""
    cls = stock_class(type(loaded.model))
    parts = (
        cls.__module__,
        repr(loaded.anatomy.details),
        digest_of_configs(config),
        _code(),
        *_versions().values(),
    )
    digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]
    lasting = cls.__module__.startswith("transformers.")
    known = _IN_MEMORY.get((cls, digest)) or (_read(digest, cls.__name__) if lasting else None)
    kinds = {} if known is None else known.kinds
    if missing := [kind for kind in asked if kind not in kinds]:
        copy = tiny_copy(loaded, config)
        with quiet(), building(f"a tiny copy of {loaded.name} does not run", config):
            rows = structure.prove(copy, missing).edits
        kinds |= {kind: [row for row in rows if structure.kind_of(row.edit) == kind] for kind in missing}
        failed = {structure.kind_of(row.edit) for row in rows if not row.proved and row.refused is None}
        held = {kind: kinds[kind] for kind in kinds if kind not in failed}
        known = _IN_MEMORY[cls, digest] = KnownProofs(architecture=cls.__name__, kinds=held)
        if lasting and not failed:
            _write(digest, known)
    return kinds


def _versions() -> dict[str, str]:
    others = {name: importlib.metadata.version(name) for name in ("transformers", "torch")}
    return {"secateur": __version__, **others}


@cache
def _code() -> str:
    """Return the digest of the code that cuts, which a version does not tell in a checkout."""
    root, digest = Path(structure.__file__).parents[1], hashlib.sha256()
    for room in ("core", "hf", "linalg", "surgery", "probes"):
        for file in sorted((root / room).glob("*.py")):
            digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()


def _read(digest: str, architecture: str) -> KnownProofs | None:
    """Return what the cache has; nothing where its file is missing, broken, or of something else."""
    try:
        known = KnownProofs.read(_place(digest), SecateurError, "")
    except SecateurError:
        return None
    return known if known.architecture == architecture else None


def _write(digest: str, known: KnownProofs) -> None:
    """Keep proofs beside those that other processes kept meanwhile; where nothing can be written, say so."""
    place, other = _place(digest), _read(digest, known.architecture)
    merged = known if other is None else known.model_copy(update={"kinds": other.kinds | known.kinds})
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile("w", dir=place.parent, prefix=".", delete=False) as file:
            try:
                file.write(merged.model_dump_json())
                file.close()
                os.replace(file.name, place)
            finally:
                Path(file.name).unlink(missing_ok=True)
    except OSError as error:
        LOG.warning(
            "%s: proofs cannot be kept (%s), and are made again next time.", place.parent, error.strerror
        )


def _place(digest: str) -> Path:
    return cache_folder("proofs") / f"{digest}.json"
