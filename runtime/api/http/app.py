"""The ASGI application: all routes, and what becomes of errors."""

from __future__ import annotations

from importlib import metadata
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from moorage.runtime.api.access.keys import Keys
from moorage.runtime.api.failures import foreseen
from moorage.runtime.api.http import inf_llm, metrics, operators, sessions
from moorage.runtime.api.http.access import Access
from moorage.runtime.api.http.anthropic import messages
from moorage.runtime.api.http.failures import HttpRefusal, error_response
from moorage.runtime.api.http.openai import chat, completions, models, responses
from moorage.runtime.api.http.page import documents, routes
from moorage.runtime.api.http.service import HttpService
from moorage.runtime.serving.trace_context import set_caller
from moorage.workers.errors import MoorageError

ROUTERS = (
    operators.router,
    metrics.router,
    models.router,
    chat.router,
    completions.router,
    responses.router,
    messages.router,
    sessions.router,
    inf_llm.router,
    documents.router,
    routes.router,
)


def application(service: HttpService, keys: Keys) -> FastAPI:
    """The application for one server."""
    app = FastAPI(
        title="Moorage",
        version=metadata.version("moorage"),
        description="Long prompts over HTTP, as clients of OpenAI and Anthropic send them.",
        docs_url=None,  # The page of the documentation loads scripts from other hosts.
        redoc_url=None,
    )
    app.state.service = service
    app.state.readiness = operators.Readiness()
    for router in ROUTERS:
        app.include_router(router)
    app.add_exception_handler(MoorageError, _refused)
    app.add_exception_handler(HTTPException, _no_route)
    app.add_middleware(Access, held=keys)
    app.add_middleware(Barrier, service=service)
    return app


class Barrier:
    """The last line before the network: what no handler took becomes a 500 with an id, and is logged without text."""

    def __init__(self, app: ASGIApp, service: HttpService) -> None:
        self._app, self._service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI application."""
        begun = False
        if scope["type"] == "http":
            set_caller(scope["headers"])

        async def noted(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                route = scope.get("route")  # Paths that are no route are not counted one by one.
                self._service.responses[getattr(route, "path", "none"), message["status"]] += 1
            await send(message)

        try:
            await self._app(scope, receive, noted)
        except Exception as error:  # noqa: BLE001  one request must not end the server
            response = error_response(foreseen(error), scope.get("path", ""))
            if not begun:
                await response(scope, receive, noted)


async def _refused(request: Request, error: Any) -> Response:
    return error_response(error, request.url.path)


async def _no_route(request: Request, error: Any) -> Response:
    shown = request.url.path[:80]
    reasons = {
        404: f"{shown} is no route of this server; /openapi.json lists them",
        405: f"{request.method} is no method of {shown}; /openapi.json lists them",
    }
    response = error_response(
        HttpRefusal(error.status_code, reasons.get(error.status_code, error.detail)), request.url.path
    )
    response.headers.update(error.headers or {})
    return response
