"""Being here puts `tests/` on the import path: every test, however deep, can `from zoo import ...`."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fixtures.forked import ForkServer, fork_server
from fixtures.zoo import VOCAB_SIZE
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from secateur.hf.anatomy import anatomy
from secateur.hf.fingerprint import fingerprint
from secateur.hf.load import Loaded

LONG = {  # files that take two minutes and more; `make test` gives whole files to its processes
    f"test_{name}.py"
    for name in (
        "carved_checkpoint", "carved_methods", "cut_laws", "docs", "files", "finetune", "prune_components",
        "ray_killed", "resume",
    )
}  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the longest files first, then those that have slow tests, so that short ones are left for the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: (item.path.name not in LONG, item.path not in slow))


def pytest_collection_finish() -> None:
    """Spare the garbage collector the million objects of what was imported: a tenth of the processor time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The user's cache, empty at first and one for all workers, so that a tiny model is proved once a session."""
    base = tmp_path_factory.getbasetemp()
    place = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "cache"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(place))
        yield place


@pytest.fixture(scope="session")
def words() -> PreTrainedTokenizerFast:
    """The zoo's tokenizer: token 7 is the word `w7`; 2 ends a sequence."""
    inner = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCAB_SIZE)}, unk_token="w0"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="w1", eos_token="w2", unk_token="w0")


@pytest.fixture(scope="session")
def forks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkServer]:
    """Start commands in processes of their own."""
    with fork_server(tmp_path_factory.mktemp("forked")) as server:
        yield server


@pytest.fixture
def as_loaded(words: PreTrainedTokenizerFast) -> Callable[[PreTrainedModel], Loaded]:
    """Around a model of the zoo, what `load_model` gives around one from a folder."""

    def wrap(model: PreTrainedModel) -> Loaded:
        return Loaded("zoo", model, words, anatomy(model), fingerprint(model), None, None)

    return wrap
