"""One conversation with a server: asks, shows the answer, remembers both, and asks again after a loss."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from moorage.client import Cancelled, GenerateOptions, GenerateResult, GenerateStream
from moorage.runtime.cli import transcripts
from moorage.runtime.cli.chat_connection import Connection
from moorage.runtime.cli.chat_turns import Answer, Turns
from moorage.runtime.cli.output import print_error, print_note
from moorage.runtime.cli.streaming import stream_text
from moorage.runtime.text.documents import Document
from moorage.workers.counting import counted
from moorage.workers.errors import Unavailable

AGAIN = "and the arrow up brings it back"


@dataclass(slots=True)
class Talk:
    """The state of a chat. `name` is None when no file keeps it."""

    connection: Connection
    turns: Turns
    options: GenerateOptions
    model: str
    retry_s: float
    """How long a lost server is waited for."""
    name: str | None = None
    documents: list[Document] = field(default_factory=list)
    """Their texts go before the next question."""

    def ask(self, text: str) -> None:
        """Sends a turn and shows the answer. Raises MoorageError when there is none; then nothing is remembered.

        Ctrl-C ends the answer; the part that was shown is remembered, since a user may speak of it.
        """
        answer = Answer()
        text = "\n\n".join([*(f"{one.name}:\n{one.text}" for one in self.documents), text])
        try:
            result = self._answer(text, answer)
        except KeyboardInterrupt:
            if not answer.token_ids:
                print_note(
                    f"\n(stopped before an answer; your message is not part of the conversation, {AGAIN})"
                )
                return
            print_note("\n(stopped; the part of the answer above is remembered)")
        else:
            if result.finish_reason == "length":
                cut = counted(len(result.token_ids), "token")
                print_note(f"(cut after {cut}; --max-new-tokens allows more)")
        self.turns.remember(text, answer)
        self.documents.clear()
        self.save()

    def save(self) -> None:
        """Writes the conversation if it has a name; a file that can't be written is reported and stops nothing."""
        if self.name is None:
            return
        try:
            transcripts.save(self.name, self.model, self.turns.num_questions, self.turns.as_json())
        except OSError as error:
            print_error(f"the conversation can't be kept in a file ({error}); /save FILE writes it elsewhere")

    def _answer(self, text: str, answer: Answer) -> GenerateResult:
        """The whole answer. When the server is lost, waits for it and asks again with all that was said."""
        while True:
            try:
                stream = self.turns.ask(self.connection.client, self.options, text)
                with _cancelled_by_ctrl_c(stream):
                    return stream_text(stream, on_token=answer.add)
            except Unavailable as error:
                print_note(f"\n(the server is lost: {error})")
                print_note("(waiting for the server; nothing of the conversation is lost; Ctrl-C gives up)")
            self.connection.wait(self.retry_s)
            answer.token_ids.clear()
            answer.text = ""
            print_note("(the server answers again; the conversation goes on)")


@contextmanager
def _cancelled_by_ctrl_c(stream: GenerateStream) -> Iterator[None]:
    """Raises KeyboardInterrupt once Ctrl-C has ended the stream, and never in the middle of gRPC's own work."""
    pressed = False

    def cancel(*_: object) -> None:
        nonlocal pressed
        pressed = True
        stream.cancel()

    before = signal.signal(signal.SIGINT, cancel)
    try:
        yield
    except Cancelled:
        if pressed:
            raise KeyboardInterrupt from None
        raise
    finally:
        signal.signal(signal.SIGINT, before)
