"""GET /, the chat page, with its files, and the presets that it offers."""

from __future__ import annotations

import hashlib
import mimetypes
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from moorage.runtime.api.http.service import service_of
from moorage.runtime.config.presets import PRESETS

router = APIRouter()

STATIC = Path(__file__).with_name("static")
INDEX = "index.html"
CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "connect-src 'self'",
        "img-src 'self' data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
HEADERS = {
    "content-security-policy": CONTENT_SECURITY_POLICY,
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
_TYPES = {".js": "text/javascript", ".svg": "image/svg+xml"}
"""Types that a host may know otherwise."""


@dataclass(frozen=True, slots=True)
class PageFile:
    """A file of the page as it is sent."""

    content: bytes
    media_type: str
    etag: str


@cache
def page_files() -> dict[str, PageFile]:
    """All files of the page by their names. There is no path to any other file."""
    return {path.name: _read(path) for path in sorted(STATIC.iterdir()) if path.is_file()}


@router.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
async def index(request: Request) -> Response:
    """The page itself."""
    return _sent(request, INDEX)


@router.api_route("/page/{name}", methods=["GET", "HEAD"], include_in_schema=False)
async def page_file(request: Request, name: str) -> Response:
    """A script, the style sheet or the icon."""
    return _sent(request, name)


@router.get("/v1/presets", tags=["operators"])
async def presets(request: Request) -> dict[str, Any]:
    """Memory presets that a request may name, and the one of the server."""
    served = service_of(request).ready().model_info()
    data = [
        {"id": preset.name, "object": "preset", "description": preset.source} for preset in PRESETS.values()
    ]
    return {"object": "list", "data": data, "default": served.preset}


def _sent(request: Request, name: str) -> Response:
    file = page_files().get(name)
    if file is None:
        raise HTTPException(404)
    headers = {**HEADERS, "etag": file.etag, "cache-control": "no-cache"}
    if request.headers.get("if-none-match") == file.etag:
        return Response(status_code=304, headers=headers)
    return Response(file.content, headers=headers, media_type=file.media_type)


def _read(path: Path) -> PageFile:
    content = path.read_bytes()
    media_type = _TYPES.get(path.suffix) or mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    return PageFile(content, media_type, f'"{hashlib.sha256(content).hexdigest()[:32]}"')
