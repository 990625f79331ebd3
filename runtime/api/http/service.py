"""What all routes share: what the gRPC server has too, documents, replays, and counts of answers."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import Request

from moorage.runtime.api.engine import Engine
from moorage.runtime.api.front_end import BYTES_PER_TOKEN_SENT, FrontEnd
from moorage.runtime.api.http.bodies import Sent
from moorage.runtime.api.http.tools.replays import Replays
from moorage.runtime.api.uploads import client_of
from moorage.runtime.text.document_process import DocumentReader

LEAST_BODY_BYTES = 4 << 20


class HttpService(FrontEnd):
    """Answers 503 until it has an engine, and again once it stops."""

    def __init__(self) -> None:
        super().__init__()
        self.documents = DocumentReader()
        self.replays = Replays()
        self.started_s = int(time.time())
        self.responses: Counter[tuple[str, int]] = Counter()
        """Answers by route and status."""

    @asynccontextmanager
    async def receiving(self, request: Request) -> AsyncIterator[tuple[Engine, Sent]]:
        """The engine, and what the client sends, counted until its token ids are made."""
        engine = self.ready()
        host, port = request.client or ("unknown", 0)
        with self.uploads.open(client_of(f"ipv4:{host}:{port}")) as upload:
            most_bytes = max(LEAST_BODY_BYTES, engine.model_info().max_seq_len * BYTES_PER_TOKEN_SENT)
            yield engine, Sent(request, upload, most_bytes)


def service_of(request: Request) -> HttpService:
    """The service that a request was sent to."""
    service = request.app.state.service
    assert isinstance(service, HttpService)
    return service
