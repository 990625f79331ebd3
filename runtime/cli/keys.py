"""Terminals that give keys as they are pressed."""

from __future__ import annotations

import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager

_INPUT_FLAGS, _LOCAL_FLAGS = 0, 3
"""Places in what termios.tcgetattr returns."""


@contextmanager
def single_keys() -> Iterator[None]:
    """Within the block standard input, if it is a terminal, gives each key at once, unshown; Ctrl-C still works.

    In its line mode a terminal would show what is typed ahead, cut lines over 4 095 bytes, and make Enter a mere
    line end.
    """
    if not sys.stdin.isatty():
        yield
        return
    before = termios.tcgetattr(sys.stdin)
    changed = termios.tcgetattr(sys.stdin)
    changed[_INPUT_FLAGS] &= ~termios.ICRNL
    changed[_LOCAL_FLAGS] &= ~(termios.ICANON | termios.ECHO)
    termios.tcsetattr(sys.stdin, termios.TCSANOW, changed)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSANOW, before)
