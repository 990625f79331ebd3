"""From an exception to the status and the body that the client gets, in the shape of the API that it called."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import structlog
from fastapi.responses import Response

from moorage.runtime.api.status import status_of
from moorage.workers.errors import MoorageError, ResourceExhausted

log = structlog.get_logger()

_MAX_MESSAGE_CHARACTERS = 1000
_FIELD = re.compile(r"([a-z][a-z_]*)(?:[\[\].\w]*): ")
_OPENAI_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    429: "rate_limit_error",
    503: "service_unavailable_error",
}
_ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}


class HttpRefusal(MoorageError):
    """A refusal with a status that belongs to HTTP alone, such as that of a method or of a body's size."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def http_status(error: BaseException) -> int:
    """The status code of an error."""
    return error.status if isinstance(error, HttpRefusal) else status_of(error).http


def openai_error(error: MoorageError) -> dict[str, Any]:
    """The body of an error as OpenAI's clients read it."""
    status, message = http_status(error), _one_line(error)
    kind = _OPENAI_TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    field = _FIELD.match(message)
    code = "model_not_found" if status == 404 and message.startswith("model:") else status
    param = field[1] if field is not None and status < 500 else None
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def anthropic_error(error: MoorageError) -> dict[str, Any]:
    """The body of an error as Anthropic's clients read it."""
    status = http_status(error)
    kind = _ANTHROPIC_TYPES.get(status, "api_error" if status >= 500 else "invalid_request_error")
    return {"type": "error", "error": {"type": kind, "message": _one_line(error)}}


def error_response(error: MoorageError, path: str) -> Response:
    """The response for an error, by the API that `path` belongs to."""
    status = http_status(error)
    body = anthropic_error(error) if path.startswith("/v1/messages") else openai_error(error)
    if path == "/chat":  # InfLLM's
        body = {"error": _one_line(error)}
    headers = {}
    if isinstance(error, ResourceExhausted) and error.retry_after_s is not None:
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after_s)))
    log.info("request refused", status=status, kind=type(error).__name__)
    return Response(json.dumps(body), status, headers, "application/json")


def _one_line(error: MoorageError) -> str:
    line = " ".join(str(error).split())
    return line.encode("utf-8", "backslashreplace").decode()[:_MAX_MESSAGE_CHARACTERS]
