"""The base class of all records: they are written as JSON and read back."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from secateur.core.finite import finite
from secateur.core.reading import read_json
from secateur.errors import SecateurError

Number = Annotated[float, BeforeValidator(lambda value: math.nan if value is None else value)]
"""A float that may be NaN or infinite: JSON has neither, so it is written as null and read back as NaN."""


class Record(BaseModel):
    """A part of a JSON file. Equal by content; what an older version wrote beside the known keys is ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore", protected_namespaces=(), defer_build=True)

    @property
    def extra_keys(self) -> Mapping[str, object]:
        """Return what an open record holds besides its own keys."""
        return self.model_extra or {}

    def to_json(self) -> dict[str, Any]:
        """Return plain values. Keys that were never set are left out; numbers that are not finite are None."""
        values: dict[str, Any] = finite(self.model_dump(exclude_unset=True))
        return values

    @classmethod
    def from_values(
        cls, values: Mapping[str, object], place: Path | str, error: type[SecateurError], mend: str
    ) -> Self:
        """Return the record that `values`, read from `place`, are.

        Raises: `error` where a key is missing or of another type; the message names it and ends with `mend`.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as cause:
            first = cause.errors()[0]
            key = ".".join(map(str, first["loc"]))
            told = f"{key}: {first['msg']}" if key else first["msg"]
            raise error(f"{place}: a record there is not as secateur writes it ({told}). {mend}") from cause

    @classmethod
    def read(cls, path: Path, error: type[SecateurError], mend: str) -> Self:
        """Return the record in a JSON file. Raises: `error` where there is none, or one of another kind."""
        return cls.from_values(read_json(path, error, mend), path, error, mend)
