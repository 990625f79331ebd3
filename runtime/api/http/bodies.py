"""Bodies of requests: read under limits of size and time, and checked against a record."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails
from starlette.requests import ClientDisconnect

from moorage.runtime.api.http.failures import HttpRefusal
from moorage.runtime.api.uploads import Upload
from moorage.workers.errors import DeadlineExceeded, InvalidRequest

R = TypeVar("R", bound=BaseModel)

_JSON = "application/json"
_MOST_SHOWN = 80


class Sent:
    """What one client sends, while it is read and made into token ids."""

    def __init__(
        self,
        request: Request,
        upload: Upload,
        most_bytes: int,
        why: str = "which can't fit long_context.max_seq_len",
    ) -> None:
        """`why` says in an error what `most_bytes` follows from."""
        self.request, self.upload = request, upload
        self._most_bytes, self._why = most_bytes, why

    async def read(self, record: type[R]) -> R:
        """The body as a record. Raises InvalidRequest with the field, and HttpRefusal for what is no body at all."""
        body = await self.read_bytes((_JSON,))
        if not body.strip():
            raise InvalidRequest("body: is empty; send a JSON object")
        try:
            return record.model_validate_json(body)
        except ValidationError as error:
            raise InvalidRequest(_first_line(error)) from None
        except RecursionError:
            raise InvalidRequest("body: is nested too deeply; send a flatter JSON object") from None

    async def read_bytes(self, kinds: Sequence[str]) -> bytes:
        """The body as it was sent, of one of these content types."""
        kind = self.request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind not in kinds:
            shown = kind[:_MOST_SHOWN] or "none"
            raise HttpRefusal(415, f"content-type: {shown} is not taken; send {' or '.join(kinds)}")
        announced = self.request.headers.get("content-length", "0")
        if announced.isdecimal() and int(announced[:20]) > self._most_bytes:
            raise self._too_large()
        body, chunks = bytearray(), aiter(self.request.stream())
        try:
            while (chunk := await self.upload.next(chunks)) is not None:
                self.upload.grow(len(chunk))
                body += chunk
                if len(body) > self._most_bytes:
                    raise self._too_large()
        except DeadlineExceeded:
            raise HttpRefusal(408, "body: came too slowly; send it without pauses") from None
        except ClientDisconnect:
            raise HttpRefusal(499, "the client left") from None
        return bytes(body)

    def _too_large(self) -> HttpRefusal:
        return HttpRefusal(
            413,
            f"body: has more than {self._most_bytes} bytes, {self._why}; shorten it",
        )


def _first_line(error: ValidationError) -> str:
    """The first complaint: which field, what is wrong, and what was sent."""
    found = error.errors(include_url=False, include_context=False)[0]
    if found["type"] == "json_invalid":
        return f"body: is not JSON ({found['msg'].removeprefix('Invalid JSON: ')}); send a JSON object"
    return f"{_place(found)}: {_lowered(found['msg'].removeprefix('Value error, '))}"


def _place(found: ErrorDetails) -> str:
    place = ""
    for part in found["loc"]:
        if isinstance(part, int):
            place += f"[{part}]"
        elif part.isidentifier():
            place += f".{part}" if place else part
    return place[:_MOST_SHOWN] or "body"


def _lowered(text: str) -> str:
    return text[:1].lower() + text[1:]
