"""Runs the RUN lines of the Dockerfile in a new environment, in a folder with the files that it copies, then secateur.

    python tests/docker_lines.py

The new environment stands for the image's own Python. `useradd` is left out: it would change this machine. Needs the
package index, minutes, and 2 GB of disk. Knows nothing of secateur.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).parents[1]
SKIPPED = "useradd "
TRIED = (["--version"], ["prune", "builtin:facts", "--task", "builtin:facts", "-o", "out", "--dry-run"])


def instructions(text: str) -> list[tuple[str, str]]:
    """Return the instructions of a Dockerfile in order, as (word, rest); continued lines are joined."""
    joined = re.sub(r"\\\n\s*", "", text)
    lines = [line for line in joined.splitlines() if line.strip() and not line.startswith("#")]
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in lines)]


def main() -> None:
    """Carry out COPY and RUN in a temporary folder; ends with an error where a line or secateur fails."""
    steps = instructions((ROOT / "Dockerfile").read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory(prefix="secateur-image-") as made:
        place, system = Path(made) / "context", Path(made) / "python"
        place.mkdir()
        venv.create(system, with_pip=True)
        env = {name: value for name, value in os.environ.items() if name.startswith(("PIP_", "SSL_", "TMP"))}
        env |= {"PATH": f"{system / 'bin'}:/usr/bin:/bin", "HOME": made, "HF_HUB_OFFLINE": "1"}
        for word, rest in steps:
            if word == "COPY":
                copy(rest.split(), place)
            elif word == "RUN" and not rest.startswith(SKIPPED):
                print(f"RUN {rest}", flush=True)
                subprocess.run(["sh", "-c", rest], cwd=place, env=env, check=True)
            elif word == "RUN":
                print(f"not run: {rest}")
        work = Path(made) / "work"
        work.mkdir()
        for words in TRIED:
            command = [*json.loads(dict(steps)["ENTRYPOINT"]), *words]
            print(*command, flush=True)
            subprocess.run([system / "bin" / command[0], *command[1:]], cwd=work, env=env, check=True)


def copy(words: list[str], place: Path) -> None:
    """Copy the paths of a COPY instruction below `place`."""
    *paths, to = words
    for path in paths:
        if (ROOT / path).is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
            shutil.copytree(ROOT / path, place / to, ignore=ignored)
        else:
            shutil.copy(ROOT / path, place / to)


if __name__ == "__main__":
    sys.exit(main())
