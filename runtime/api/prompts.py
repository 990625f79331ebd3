"""Collects the pieces of a prompt and makes token ids of them."""

from __future__ import annotations

import asyncio
import codecs
from array import array
from collections.abc import Callable, Sequence

from moorage.proto.v1 import moorage_pb2 as pb
from moorage.runtime.api import checks
from moorage.runtime.api.engine import Engine
from moorage.workers.errors import InvalidRequest

MAX_PIECE_BYTES = 1 << 20
_PIECE_SLACK_BYTES = 64
_MAX_BYTES_PER_TOKEN = 128
_MAX_MESSAGES = 4096
_KINDS = {"text": "text", "token_ids": "token ids", "message": "chat messages"}


class PromptCollector:
    """One prompt as it arrives. It never holds more than a prompt of `max_seq_len` could have."""

    def __init__(self, engine: Engine, *, chat: bool, parse_special: bool = False) -> None:
        self._engine, self._chat, self._parse_special = engine, chat, parse_special
        info = engine.model_info()
        self._vocab_size, self._max_tokens = info.vocab_size, info.max_seq_len
        self._kind: str | None = None
        self._ids = array("I")
        self._texts: list[_Text] = []
        self._roles: list[str] = []
        self._num_bytes = 0

    def add(self, piece: pb.PromptPiece) -> None:
        """Takes the next piece. Raises InvalidRequest for one that can't belong to a valid prompt."""
        kind = piece.WhichOneof("content")
        if kind is None:
            raise InvalidRequest("prompt: a piece is empty; send text, token ids or a chat message in it")
        if piece.ByteSize() > MAX_PIECE_BYTES + _PIECE_SLACK_BYTES:
            raise InvalidRequest(
                f"prompt: a piece has {piece.ByteSize()} bytes; send pieces of at most {MAX_PIECE_BYTES}"
            )
        if self._kind not in (None, kind):
            raise InvalidRequest(
                f"prompt: mixes {_KINDS[self._kind or kind]} and {_KINDS[kind]}; send one kind only"
            )
        self._kind = kind
        if kind == "token_ids":
            self._add_ids(piece.token_ids.ids)
        elif kind == "text":
            self._add_text(piece.text)
        else:
            self._add_message(piece.message)

    async def token_ids(self) -> Sequence[int]:
        """The whole prompt, tokenised off the event loop. Raises InvalidRequest if it is empty."""
        tokens = self._ids if self._kind in (None, "token_ids") else await asyncio.to_thread(self._encoder())
        if not len(tokens):
            raise InvalidRequest("prompt: is empty; send at least one token")
        return tokens

    def _encoder(self) -> Callable[[], Sequence[int]]:
        tokenizer = self._engine.tokenizer
        texts = [text.finish() for text in self._texts]
        if self._kind == "text":
            if not texts[0]:
                raise InvalidRequest("prompt: is empty; send at least one character")
            return lambda: tokenizer.encode(texts[0])
        messages = [
            {"role": role, "content": content} for role, content in zip(self._roles, texts, strict=True)
        ]
        return lambda: tokenizer.encode_chat(messages, parse_special=self._parse_special)

    def _add_ids(self, ids: Sequence[int]) -> None:
        checks.token_ids(ids, self._vocab_size, first=len(self._ids))
        self._ids.extend(ids)
        if len(self._ids) > self._max_tokens:
            raise InvalidRequest(
                f"prompt: has more than long_context.max_seq_len = {self._max_tokens} tokens; "
                "shorten it or raise max_seq_len"
            )

    def _add_text(self, data: bytes) -> None:
        if not self._texts:
            self._texts.append(_Text("prompt"))
        self._append(data)

    def _add_message(self, message: pb.ChatMessage) -> None:
        if not self._chat:
            raise InvalidRequest("prompt: chat messages can't be scored; send text or token ids")
        if message.role:
            self._roles.append(message.role)
            self._texts.append(_Text(f"message {len(self._roles)}"))
        if not self._roles:
            raise InvalidRequest("prompt: the first chat message has no role; send user, system or assistant")
        if len(self._roles) > _MAX_MESSAGES:
            raise InvalidRequest(f"prompt: has more than {_MAX_MESSAGES} chat messages; send fewer")
        self._append(message.content)

    def _append(self, data: bytes) -> None:
        self._num_bytes += len(data)
        if self._num_bytes > self._max_tokens * _MAX_BYTES_PER_TOKEN:
            raise InvalidRequest(
                f"prompt: over {self._max_tokens * _MAX_BYTES_PER_TOKEN} bytes can't fit "
                f"long_context.max_seq_len = {self._max_tokens} tokens; shorten it or raise max_seq_len"
            )
        self._texts[-1].append(data)


class _Text:
    """UTF-8 whose characters may be split between pieces."""

    def __init__(self, field: str) -> None:
        self._field = field
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._parts: list[str] = []

    def append(self, data: bytes, *, final: bool = False) -> None:
        try:
            self._parts.append(self._decoder.decode(data, final))
        except UnicodeDecodeError as error:
            raise InvalidRequest(
                f"{self._field}: is not valid UTF-8 ({error.reason}); send UTF-8 text or token ids"
            ) from None

    def finish(self) -> str:
        self.append(b"", final=True)
        return "".join(self._parts)
