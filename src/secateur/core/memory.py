"""Recognizes errors of too little memory, for which every library has words of its own."""

from __future__ import annotations

import errno

_WORDS = (  # of torch, safetensors, the dynamic linker, Python's threads, C++
    "can't allocate memory",
    "cannot allocate memory",
    "out of memory",
    "failed to map segment",
    "can't start new thread",
    "bad_alloc",
)


def lacks_memory(error: BaseException) -> bool:
    """Return True for an error that says that memory ran out.

    Looks at `MemoryError`, `OSError`, `RuntimeError` (as torch raises) and `ImportError`; False for all others.
    """
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    told = str(error).lower()
    return isinstance(error, RuntimeError | ImportError | OSError) and any(word in told for word in _WORDS)
