"""`runtime chat`: a conversation, turn by turn; its KV stays on the server between turns."""

from __future__ import annotations

import secrets
import sys
from typing import Annotated, Protocol

import typer

from moorage.client import Client, GenerateOptions
from moorage.runtime.cli import options as o
from moorage.runtime.cli.app import app, examples
from moorage.runtime.cli.output import print_note
from moorage.runtime.cli.streaming import stream_text
from moorage.workers.errors import InvalidRequest


class Conversation(Protocol):
    """How the turns so far become the next prompt."""

    def answer(self, text: str) -> None:
        """Sends one more turn, prints the answer and remembers both."""


class Messages:
    """Turns laid out by the model's chat template."""

    def __init__(self, client: Client, options: GenerateOptions, system: str | None) -> None:
        self._client, self._options = client, options
        self._messages = [{"role": "system", "content": system}] if system else []

    def answer(self, text: str) -> None:
        """Sends the whole conversation; the server reads only what is new."""
        asked = [*self._messages, {"role": "user", "content": text}]
        result = stream_text(self._client.generate(asked, **self._options))
        self._messages = [*asked, {"role": "assistant", "content": result.text}]


class Continuation:
    """Turns one after the other without a template, for a model that has none."""

    def __init__(self, client: Client, options: GenerateOptions, system: str | None) -> None:
        self._client, self._options = client, options
        self._ids = client.tokenize(system or "")

    def answer(self, text: str) -> None:
        """Appends the text to all that was said and generated before."""
        asked = self._ids + self._client.tokenize(text, add_special_tokens=False)
        result = stream_text(self._client.generate(asked, **self._options))
        self._ids = [*asked, *result.token_ids]


@app.command(
    epilog=examples(
        "runtime chat",
        'runtime chat --system "Answer in one sentence." --temperature 0.7',
        "runtime chat --raw --max-new-tokens 32",
    )
)
def chat(
    address: o.Address = None,
    system: Annotated[str | None, typer.Option(help="What comes before the first turn.")] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Use no chat template: each turn simply follows the last.")
    ] = False,
    session: Annotated[str | None, typer.Option(help="Name of the conversation; default a new one.")] = None,
    max_new_tokens: o.MaxNewTokens = None,
    temperature: o.Temperature = None,
    top_k: o.TopK = None,
    top_p: o.TopP = None,
    min_p: o.MinP = None,
    repetition_penalty: o.RepetitionPenalty = None,
    seed: o.Seed = None,
    stop: o.Stop = None,
    preset: o.Preset = None,
) -> None:
    """Talk with the model; an empty line or Ctrl-D ends it, Ctrl-C ends an answer."""
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
    )
    with Client(o.server_address(address)) as client:
        conversation: Conversation = (Continuation if raw else Messages)(client, options, system)
        while text := _read_turn():
            _answer(conversation, text, raw=raw)


def _answer(conversation: Conversation, text: str, *, raw: bool) -> None:
    try:
        conversation.answer(text)
    except KeyboardInterrupt:
        print_note("\n(the answer was stopped and is not remembered)")
    except InvalidRequest as error:
        if raw or "chat template" not in str(error):
            raise
        raise InvalidRequest(f"{error}; `runtime chat --raw` does without one") from None


def _read_turn() -> str:
    """The next line; empty at the end of input."""
    try:
        return input("> " if sys.stdin.isatty() else "").strip()
    except (EOFError, KeyboardInterrupt):
        return ""
