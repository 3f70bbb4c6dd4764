"""Place a model: on one device, or dispatched by accelerate over several, memory and disk.

`weights.py` reads and changes weights that lie elsewhere.
"""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel

from secateur.core.machine import MAPS, check_device, check_placement, read_map, read_memory
from secateur.errors import ModelError, nearest
from secateur.hf.weights import open_door_


@dataclass(frozen=True)
class Placement:
    """The options that place a model.

    `device`: all of it there (`auto`: cuda where there is one, else cpu). `device_map`, in its place: one of
    `MAPS`, a device, `disk`, or a JSON file of module → device, `cpu` or `disk`; accelerate then dispatches the
    model. `max_memory`, such as `cpu=8GB,0=20GB`, is what each of the `MAPS` may fill. Weights are left on disk
    only where an `offload_folder` is named, for it makes every pass over the model read them.
    """

    device: str = "auto"
    device_map: str | None = None
    offload_folder: str | None = None
    max_memory: str | None = None

    def check(self) -> None:
        """Check the options before anything is fetched. Raises: `UnknownName`, `ModelError`."""
        check_placement(self.device, self.device_map, self.offload_folder, self.max_memory)
        if self.device_map is None:
            torch_device(self.device)
        else:
            self._refuse_disk(self._map(), f"--device-map {self.device_map}")

    def target(self) -> torch.device | None:
        """Return the one device of the whole model, or None where a map places it. Raises: as `check`."""
        return torch_device(self.device) if self.device_map is None else None

    def arguments(self, scratch: Scratch | None) -> dict[str, object]:
        """Return the arguments for `from_pretrained`; `scratch` is for offloaded weights stored in another form."""
        if self.device_map is None:
            return {}
        memory = None if self.max_memory is None else dict(read_memory(self.max_memory))
        arguments: dict[str, object] = {"device_map": self._map(), "max_memory": memory}
        return arguments | ({} if scratch is None else {"offload_folder": str(scratch.folder)})

    def scratch(self) -> Scratch | None:
        """Return a new folder in the offload folder: two models must not overwrite each other's weights there."""
        if self.offload_folder is None:
            return None
        try:
            return Scratch(Path(self.offload_folder))
        except OSError as error:
            raise ModelError(
                f"--offload-folder {self.offload_folder} cannot be used: {error.strerror}."
            ) from error

    def placed_(self, model: PreTrainedModel, scratch: Scratch | None) -> PreTrainedModel:
        """Prepare a model that `from_pretrained` loaded for reads through `weights.py`.

        Raises: `ModelError` where weights would be read from disk and no offload folder allows it.
        """
        if self.device_map is None:
            moved: PreTrainedModel = model.to(torch_device(self.device))  # type: ignore[arg-type]  # not self
            return moved
        self._refuse_strange(model)
        self._refuse_disk(getattr(model, "hf_device_map", {}), "this device map")
        open_door_(model, keeps=scratch)
        return model

    def _map(self) -> str | Mapping[str, str | int]:
        """Return the device map as accelerate takes it. Raises: `ModelError` for a device that this machine lacks."""
        assert self.device_map is not None
        devices = read_map(self.device_map)
        if isinstance(devices, str):
            return devices if devices in MAPS else str(torch_device(devices))
        for device in devices.values():
            if device != "disk":
                torch_device(f"cuda:{device}" if isinstance(device, int) else device)
        return devices

    def _refuse_strange(self, model: PreTrainedModel) -> None:
        """Check a map from a file: it must name modules of this model, and place every weight."""
        devices = self._map()
        if not isinstance(devices, Mapping):
            return
        modules = {name for name, _ in [*model.named_modules(), *model.named_parameters()]}
        if unknown := [name for name in devices if name not in modules]:
            large = [name for name in modules if name and name.count(".") < 2]
            raise ModelError(
                f"--device-map {self.device_map}: this model has no module {unknown[0]!r}."
                f"{nearest(unknown[0], large)}"
            )
        for name, _ in model.named_parameters():
            if not any(place in ("", name) or name.startswith(f"{place}.") for place in devices):
                raise ModelError(
                    f'--device-map {self.device_map} says nothing of {name}. "" stands for all that is not named.'
                )

    def _refuse_disk(self, devices: object, what: str) -> None:
        if self.offload_folder is not None or not isinstance(devices, Mapping):
            return
        on_disk = [name or "all" for name, device in devices.items() if device == "disk"]
        if on_disk:
            raise ModelError(
                f"{what} leaves modules on disk ({len(on_disk)}, the first is {on_disk[0]}), which is slow: every pass "
                "reads them. Give --offload-folder DIR to allow it, or more memory."
            )


class Scratch:
    """A folder that is removed when this object is collected, or the process ends."""

    def __init__(self, parent: Path) -> None:
        parent.mkdir(parents=True, exist_ok=True)
        self.folder = Path(tempfile.mkdtemp(prefix="secateur-", dir=parent))
        weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)


def torch_device(name: str) -> torch.device:
    """Return `auto` or a named device as torch's. Raises: `UnknownName`, and `ModelError` for one that is not here."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, index = check_device(name)
    counts = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    if index >= counts[kind]:
        raise ModelError(f"this machine has no device {name}; use auto or cpu.")
    return torch.device(name)
