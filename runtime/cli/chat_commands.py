"""What a chat does with a line that begins with a slash."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path

from moorage.runtime.cli import transcripts
from moorage.runtime.cli.chat_input import Turn
from moorage.runtime.cli.output import print_error, print_note, print_table
from moorage.runtime.cli.session import print_sessions
from moorage.runtime.cli.talk import Talk
from moorage.runtime.text.documents import read_document
from moorage.workers.counting import counted
from moorage.workers.errors import InvalidRequest, MoorageError

_COMMAND = re.compile(r"/(\w*)(?:[ \t]+(.*))?")
_MOST_NAMED = 5
"""Files without text that are shown."""
HELP = '''\
/help        show this
/reset       forget the conversation; the system message stays
/save FILE   write the conversation to a file, as JSON
/load FILE   put a document before the next question: text, PDF or a folder;
             or go on from a conversation that /save wrote, a .json file
/sessions    list the conversations that --session NAME keeps, and the sessions that the server holds
/exit        end the chat, as Ctrl-D does
Enter sends. Alt-Enter begins a new line; so does Enter between two """.
Pasted text is not sent before you press Enter. Ctrl-C stops an answer.'''


def attach(talk: Talk, path: Path) -> None:
    """Puts a document before the next question. Raises InvalidRequest for one that has no text."""
    document = read_document(path)
    talk.documents.append(document)
    print_note(f"({document.name}: {len(document.text):,} characters go before your next question)")
    if document.skipped:
        shown = ", ".join(document.skipped[:_MOST_NAMED])
        more = len(document.skipped) - _MOST_NAMED
        print_note(f"(no text in {shown}{f' and {more} more' if more > 0 else ''})")


def run_command(talk: Talk, turn: Turn) -> bool | None:
    """Does what `turn` asks. Returns None if it is no command, else whether the chat goes on."""
    found = None if turn.quoted else _COMMAND.fullmatch(turn.text)
    if found is None:
        return None
    name, argument = found[1], (found[2] or "").strip()
    if name in ("exit", "quit", "bye"):
        return False
    command = _COMMANDS.get(name)
    if command is None:
        print_error(f'/{name}: no such command; /help lists them, and """ before a text sends it as it is')
        return True
    try:
        command(talk, argument)
    except InvalidRequest as error:
        print_error(error)
    return True


def _help(_talk: Talk, _argument: str) -> None:
    print_note(HELP)


def _reset(talk: Talk, _argument: str) -> None:
    talk.turns.forget()
    talk.documents.clear()
    talk.save()
    print_note("(the conversation begins again)")


def _save(talk: Talk, argument: str) -> None:
    file = _file(argument, "/save")
    try:
        transcripts.write_private(file, talk.turns.as_json())
    except OSError as error:
        raise InvalidRequest(f"/save {file}: {error.strerror}; give another file") from None
    print_note(f"(saved {counted(talk.turns.num_questions, 'question')} to {file})")


def _load(talk: Talk, argument: str) -> None:
    file = _file(argument, "/load")
    if file.suffix.lower() != ".json":
        attach(talk, file)
        return
    value = transcripts.read_json(file)
    try:
        talk.turns.load(value)
    except InvalidRequest as error:
        raise InvalidRequest(f"/load {file}: {error}") from None
    talk.save()
    print_note(f"(loaded {counted(talk.turns.num_questions, 'question')} from {file})")


def _sessions(talk: Talk, _argument: str) -> None:
    _conversations(talk)
    try:
        held = talk.connection.client.sessions.list()
    except MoorageError as error:
        print_error(error)
        return
    if held:
        print_sessions(held)


def _conversations(talk: Talk) -> None:
    found = transcripts.saved()
    if not found:
        print_note("(none is kept; `runtime chat --session NAME` keeps one)")
        return
    rows = [
        (
            f"{item.name} (this one)" if item.name == talk.name else item.name,
            str(item.num_questions),
            time.strftime("%Y-%m-%d %H:%M", time.localtime(item.saved_s)),
            item.model,
        )
        for item in found
    ]
    print_table(("session", "questions", "last answer", "model"), rows, right=("questions",))


def _file(argument: str, command: str) -> Path:
    if not argument:
        raise InvalidRequest(f"{command}: needs a file, as in `{command} talk.json`")
    return Path(argument).expanduser()


_COMMANDS: dict[str, Callable[[Talk, str], None]] = {
    "help": _help,
    "reset": _reset,
    "save": _save,
    "load": _load,
    "sessions": _sessions,
}
