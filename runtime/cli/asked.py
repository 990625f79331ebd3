"""What `runtime generate` asks: text for a chat template, text as it is, messages, or token ids."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import typer

from moorage.client import Client, Prompt
from moorage.runtime.cli import options as o
from moorage.runtime.cli.chat_turns import chat_messages
from moorage.runtime.cli.transcripts import read_json
from moorage.workers.errors import InvalidRequest


@dataclass(frozen=True, slots=True)
class Asked:
    """The parts of a prompt as the command line gave them."""

    text: str | None
    text_file: Path | None
    messages_file: Path | None
    token_ids_file: Path | None
    system: str | None
    raw: bool

    def check(self) -> None:
        """Raises typer.BadParameter for parts that don't go together."""
        if self.messages_file is not None and (self.text, self.text_file, self.token_ids_file) != (None,) * 3:
            raise typer.BadParameter("give a text or --messages, not both")
        for flag, chosen in (("--raw", self.raw), ("--token-ids-file", self.token_ids_file is not None)):
            if chosen and self.system is not None:
                raise typer.BadParameter(f"{flag} uses no chat template; leave --system out")
            if chosen and self.messages_file is not None:
                raise typer.BadParameter(f"{flag} uses no chat template; leave --messages out")

    def prompt(self, client: Client) -> Prompt:
        """What the client sends. Asks the server whether its model has a chat template where that matters.

        Raises InvalidRequest for a file of other things, and for --system without a template.
        """
        if self.messages_file is not None:
            return self._messages(self.messages_file)
        text = o.read_prompt(self.text, self.text_file, self.token_ids_file)
        if isinstance(text, list) or self.raw:
            return text
        model = client.models()[0]
        if not model.has_chat_template:
            if self.system is not None:
                raise InvalidRequest(f"--system: {model.name} has no chat template; put it before the text")
            return text
        try:
            content = text.decode()
        except UnicodeDecodeError as error:
            raise InvalidRequest(f"prompt: is not valid UTF-8 ({error.reason}); send UTF-8 text") from None
        if not content:
            raise InvalidRequest("prompt: is empty; send at least one character")
        return [*self._system(), {"role": "user", "content": content}]

    def _messages(self, file: Path) -> list[dict[str, str]]:
        value = read_json(file)
        try:
            messages = chat_messages(value)
        except InvalidRequest as error:
            raise InvalidRequest(f"--messages {file}: {error}") from None
        if self.system is not None and messages[0]["role"] == "system":
            raise InvalidRequest(f"--messages {file}: begins with a system message; leave --system out")
        return [*self._system(), *messages]

    def _system(self) -> list[dict[str, str]]:
        return [] if self.system is None else [{"role": "system", "content": self.system}]
