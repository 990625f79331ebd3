"""Where the turns of a chat come from: a terminal with pasting and history, or lines that are piped in.

A turn may have many lines: pasted ones, those of a block between two `\"\"\"`, those after Alt-Enter.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, Protocol

from moorage.runtime.cli.output import print_note
from moorage.runtime.cluster import registry
from moorage.workers.errors import InvalidRequest

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

BLOCK = '"""'
_MOST_HISTORY_CHARACTERS = 1 << 16
"""A longer turn is not written to the history file, which is read whole at each start."""


@dataclass(frozen=True, slots=True)
class Turn:
    """What a user sends. A quoted one, or one of many lines, is never a command."""

    text: str
    quoted: bool = False

    @classmethod
    def of(cls, text: str) -> Turn:
        """A block is what stands between its quotes; anything else loses the blanks around it."""
        start = text.strip()
        if not start.startswith(BLOCK):
            return cls(start)
        inside = start.removeprefix(BLOCK)
        return cls((inside if open_block(text) else inside.removesuffix(BLOCK)).strip("\n"), quoted=True)


class TurnSource(Protocol):
    """Gives the turns one by one."""

    def read(self) -> Turn | None:
        """The next turn that is not blank; None at the end of input."""


def open_block(text: str) -> bool:
    """Whether `text` begins a block that it does not end."""
    start = text.lstrip()
    return start.startswith(BLOCK) and (len(start) < 2 * len(BLOCK) or not start.rstrip().endswith(BLOCK))


class PipedTurns:
    """Each line is a turn, of any length."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream

    def read(self) -> Turn | None:
        """The next line that is not blank, or the next block. Raises InvalidRequest for what is not UTF-8."""
        lines: list[str] = []
        for data in self._stream:
            line = _decoded(data)
            within = bool(lines)
            lines.append(line)
            if open_block(line) if not within else not line.rstrip().endswith(BLOCK):
                continue
            turn = Turn.of("".join(lines))
            if turn.text:
                return turn
            lines = []
        turn = Turn.of("".join(lines))
        return turn if turn.text else None


class TerminalTurns:
    """Turns that are typed or pasted; Enter sends, and no line end within a paste does."""

    def __init__(self) -> None:
        self._session = _prompt_session()

    def read(self) -> Turn | None:
        """Waits for a turn. Ctrl-C empties the line, Ctrl-D ends the input."""
        while True:
            try:
                text = self._session.prompt()
            except KeyboardInterrupt:
                print_note("(Ctrl-D or /exit ends the chat)")
                continue
            except EOFError:
                return None
            turn = Turn.of(text)
            if turn.text:
                return turn


def _decoded(line: bytes) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"a turn is not valid UTF-8 ({error.reason}); send UTF-8 text") from None


def _prompt_session() -> PromptSession[str]:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.history import FileHistory
    from prompt_toolkit.output import create_output

    class History(FileHistory):
        """Leaves out turns that would slow down every start."""

        def store_string(self, string: str) -> None:
            if len(string) <= _MOST_HISTORY_CHARACTERS:
                super().store_string(string)

    file = registry.state_dir() / "chat-history"
    file.touch(mode=0o600)
    return PromptSession(
        "> ",
        multiline=True,
        prompt_continuation="  ",
        key_bindings=_keys(),
        history=History(str(file)),
        output=create_output(always_prefer_tty=True),
    )


def _keys() -> KeyBindings:
    from prompt_toolkit.key_binding import KeyBindings

    keys = KeyBindings()

    @keys.add("enter")
    def _(event: KeyPressEvent) -> None:
        """Sends, unless a block is open or more keys wait: then it is a paste that the terminal did not mark."""
        buffer = event.current_buffer
        if open_block(buffer.text) or event.key_processor.input_queue:
            buffer.newline(copy_margin=False)
        else:
            buffer.validate_and_handle()

    @keys.add("escape", "enter")
    @keys.add("c-j")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.newline(copy_margin=False)

    return keys
