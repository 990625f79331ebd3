"""`runtime chat`: a conversation, turn by turn; its KV stays on the server between turns."""

from __future__ import annotations

import secrets
import sys
from pathlib import Path
from typing import Annotated

import typer

from moorage.runtime.cli import options as o
from moorage.runtime.cli import transcripts
from moorage.runtime.cli.app import app, examples
from moorage.runtime.cli.chat_commands import attach, run_command
from moorage.runtime.cli.chat_connection import Connection
from moorage.runtime.cli.chat_input import PipedTurns, TerminalTurns, TurnSource
from moorage.runtime.cli.chat_turns import Continuation, Messages, Turns
from moorage.runtime.cli.keys import single_keys
from moorage.runtime.cli.output import print_error, print_note
from moorage.runtime.cli.talk import AGAIN, Talk
from moorage.workers.counting import counted
from moorage.workers.errors import InvalidRequest, MoorageError

RETRY_S = 60.0
"""How long piped turns wait for a lost server."""
_TERMINAL_RETRY_S = 24 * 3600.0
"""The same on a terminal, where Ctrl-C gives up."""


@app.command(
    epilog=examples(
        "runtime chat",
        'runtime chat --system "Answer in one sentence." --temperature 0.7',
        "runtime chat --session planning",
        "runtime chat --document report.pdf",
        "runtime chat --raw --max-new-tokens 32",
    ),
    short_help="Talk with the model.",
)
def chat(
    address: o.Address = None,
    system: Annotated[
        str | None, typer.Option(help="A system message, or with --raw a text, before the first turn.")
    ] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Use no chat template: each turn simply follows the last.")
    ] = False,
    session: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Keep the conversation under this name, in a private file below ~/.local/state/moorage, and "
            "go on from it. Without a name nothing is kept.",
        ),
    ] = None,
    documents: Annotated[
        list[Path] | None,
        typer.Option(
            "--document",
            "--pdf",
            metavar="FILE|DIR",
            help="Put a document before the first question: text, PDF, or a folder of them. May be given several "
            "times. Later questions find it in the cache.",
            exists=True,
        ),
    ] = None,
    max_new_tokens: o.MaxNewTokens = None,
    temperature: o.Temperature = None,
    top_k: o.TopK = None,
    top_p: o.TopP = None,
    min_p: o.MinP = None,
    repetition_penalty: o.RepetitionPenalty = None,
    seed: o.Seed = None,
    stop: o.Stop = None,
    preset: o.Preset = None,
    memory: o.Memory = None,
) -> None:
    """Talk with the model; /help lists what a turn may be, Ctrl-D ends the chat.

    Ctrl-C stops an answer. Pasted text becomes one turn, sent by Enter. From a pipe, each line is a turn, and so
    is a block between two lines of three double quotes. A lost server is waited for.
    """
    options = o.given(
        session=session or f"chat-{secrets.token_hex(6)}",
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        seed=seed,
        stop=stop,
        preset=preset,
        memory=o.memory_settings(memory),
    )
    typed = sys.stdin.isatty()
    turns: Turns = Continuation(system) if raw else Messages(system)
    with single_keys(), Connection(address) as connection:
        model = connection.model()
        if not raw and not model.has_chat_template:
            raise InvalidRequest(f"{model.name} has no chat template; `runtime chat --raw` needs none")
        retry_s = _TERMINAL_RETRY_S if typed else RETRY_S
        talk = Talk(connection, turns, options, model.name, retry_s, session)
        if session is not None:
            _resume(talk, session, system)
        for path in documents or ():
            attach(talk, path)
        if typed:
            print_note(f"{model.name} at {connection.client.address}. /help lists commands, Ctrl-D ends.")
        _converse(talk, TerminalTurns() if typed else PipedTurns(sys.stdin.buffer), keep_going=typed)


def _converse(talk: Talk, source: TurnSource, *, keep_going: bool) -> None:
    """Takes turns until the input ends. An error ends it too unless `keep_going`."""
    while (turn := source.read()) is not None:
        goes_on = run_command(talk, turn)
        if goes_on is False:
            return
        if goes_on is None:
            try:
                talk.ask(turn.text)
            except MoorageError as error:
                if not keep_going:
                    raise
                print_error(error)
                print_note(f"(your message is not part of the conversation, {AGAIN})")


def _resume(talk: Talk, name: str, system: str | None) -> None:
    """Goes on from the conversation of that name, if there is one."""
    kept = transcripts.load(name)
    if kept is None:
        return
    try:
        talk.turns.load(kept.turns)
    except InvalidRequest as error:
        raise InvalidRequest(f"--session {name}: {error}") from None
    if system is not None:
        _change_system(talk.turns, system)
    asked = counted(kept.num_questions, "question")
    print_note(f"(goes on from {asked} asked before under the name {name}; /reset forgets them)")


def _change_system(turns: Turns, system: str) -> None:
    if not isinstance(turns, Messages):
        raise InvalidRequest("--system: a --raw conversation can't change what it began with; leave it out")
    turns.set_system(system)
