"""The one door to the terminal. What came from names and data is shown as it is: no control character gets through.

A name may hold an escape sequence that hides text, moves the cursor or renames the window. Rich's own styles and cursor
movements are its own, and stay.
"""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

INTERRUPTED = 130  # 128 + SIGINT, as shells say it
_KEPT = "\n\t"
_SHOWN = {code: chr(0x2400 + code) for code in range(32) if chr(code) not in _KEPT}  # ␛ for an escape
_SHOWN |= {127: "␡"}
_SHOWN |= {
    code: "\ufffd"
    for first, last in ((0x80, 0x9F), (0x200E, 0x200F), (0x2028, 0x202E), (0x2066, 0x2069), (0xD800, 0xDFFF))
    for code in range(first, last + 1)
}  # fmt: skip  second controls, turns of direction, line ends, halves of characters


def plain(text: str) -> str:
    """Return the text with a visible sign in place of every control character but line ends and tabs."""
    return text.translate(_SHOWN)


def one_line(text: str) -> str:
    """Return the same in one line, for messages."""
    return plain(text).replace("\n", "␊")


class Terminal(Console):
    """A Rich console whose text is plain, whatever it is made of."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else plain(text), style, control)


def terminal(*, stderr: bool = False) -> Terminal:
    """Return a console on standard output or error as it is now; it writes past `Plain`, for it has styles to write."""
    stream: Any = sys.stderr if stderr else sys.stdout
    return Terminal(file=stream.styled if isinstance(stream, Plain) else stream)


class Plain(io.TextIOWrapper):
    """A standard stream on which everybody else's text is plain: usage errors, warnings, libraries. `styled` is the
    stream itself."""

    def __init__(self, stream: io.TextIOWrapper) -> None:
        stream.reconfigure(
            errors="backslashreplace"
        )  # what the terminal's encoding lacks is no reason to fail
        self.styled = stream
        buffer = io.FileIO(stream.fileno(), "w", closefd=False)
        super().__init__(
            io.BufferedWriter(buffer), encoding=stream.encoding, errors=stream.errors, line_buffering=True
        )

    def write(self, text: str) -> int:
        self.styled.flush()
        return super().write(plain(text))


def guard_streams() -> None:
    """Replace standard output and error so that all text passes through this module."""
    own = (
        sys.stdout is sys.__stdout__ and sys.stderr is sys.__stderr__
    )  # not what a caller put in their place
    if own and isinstance(sys.stdout, io.TextIOWrapper) and isinstance(sys.stderr, io.TextIOWrapper):
        sys.stdout, sys.stderr = Plain(sys.stdout), Plain(sys.stderr)


@contextmanager
def guarded_interrupts() -> Iterator[None]:
    """End the command in order at the first Ctrl-C, and the process at once at the second, or at any that comes when
    the command has ended: as killing it would, and without a traceback. All that a run keeps is kept either way.
    """
    heard: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        if heard:
            with suppress(OSError):
                os.write(2, b"\n" if not os.isatty(2) else b"\x1b[?25h\n")  # the cursor, where a bar hid it
            os._exit(INTERRUPTED)
        heard.append(number)
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        heard.append(signal.SIGINT)
