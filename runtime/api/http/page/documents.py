"""POST /v1/documents: the text of a file that somebody wants to ask about."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from moorage.runtime.api.http.bodies import Sent
from moorage.runtime.api.http.service import service_of
from moorage.runtime.api.http.streams import while_connected
from moorage.runtime.text.body import Body
from moorage.workers.errors import InvalidRequest

router = APIRouter(tags=["documents"])

MAX_DOCUMENT_BYTES = 48 << 20
KINDS = ("application/octet-stream", "application/pdf", "text/plain", "text/markdown")
_MOST_NAME = 200
_SCHEMA: dict[str, Any] = {
    "parameters": [
        {
            "name": "name",
            "in": "query",
            "description": "The name of the file, which errors and the answer have.",
            "schema": {"type": "string", "maxLength": _MOST_NAME},
        }
    ],
    "requestBody": {
        "required": True,
        "content": {kind: {"schema": {"type": "string", "format": "binary"}} for kind in KINDS},
    },
}


@router.post("/v1/documents", openapi_extra=_SCHEMA)
async def documents(request: Request) -> Response:
    """The text of a PDF or of UTF-8 text, which is the body. Nothing is kept."""
    service = service_of(request)
    name = _name(request.query_params.get("name", "document"))
    async with service.receiving(request) as (_, sent):
        file = Sent(request, sent.upload, MAX_DOCUMENT_BYTES, "the most that a document may have")
        data = await file.read_bytes(KINDS)
        if not data:
            raise InvalidRequest("body: is empty; send the content of a file")
        with Body(data) as document:
            text = await while_connected(request, service.documents.text(name, document))
    return JSONResponse({"object": "document", "name": name, "bytes": len(data), "text": text})


def _name(name: str) -> str:
    """The name, printable and on one line."""
    if len(name) > _MOST_NAME:
        raise InvalidRequest(f"name: has more than {_MOST_NAME} characters; shorten it")
    line = "".join(letter if letter.isprintable() else " " for letter in name)
    return " ".join(line.split()) or "document"
