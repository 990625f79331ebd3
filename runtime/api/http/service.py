"""What all routes share: the engine once there is one, uploads, and how many requests are answered."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from fastapi import Request

from moorage.runtime.api.engine import Engine
from moorage.runtime.api.http.bodies import Sent
from moorage.runtime.api.http.tools.replays import Replays
from moorage.runtime.api.uploads import Uploads, client_of
from moorage.runtime.text.document_process import DocumentReader
from moorage.workers.errors import Unavailable

BYTES_PER_TOKEN_SENT = 32
"""Bytes of a body for each token of the longest prompt; text has some 4, and JSON may escape them."""
LEAST_BODY_BYTES = 4 << 20


class HttpService:
    """Answers 503 until `engine` is set, and again once `stopping` is."""

    def __init__(self) -> None:
        self.engine: Engine | None = None
        self.stopping = False
        self.uploads = Uploads()
        self.documents = DocumentReader()
        self.num_active = 0
        """Generations and scorings that are being answered."""
        self.replays = Replays()
        self.started_s = int(time.time())
        self.responses: Counter[tuple[str, int]] = Counter()
        """Answers by route and status."""

    def ready(self) -> Engine:
        """The engine. Raises Unavailable while there is none, and when the server stops."""
        if self.stopping:
            raise Unavailable("the server is stopping; ask another one or start it again")
        if self.engine is None:
            raise Unavailable("the server is starting; try again when it is ready")
        return self.engine

    @asynccontextmanager
    async def receiving(self, request: Request) -> AsyncIterator[tuple[Engine, Sent]]:
        """The engine, and what the client sends, counted until its token ids are made."""
        engine = self.ready()
        host, port = request.client or ("unknown", 0)
        with self.uploads.open(client_of(f"ipv4:{host}:{port}")) as upload:
            most_bytes = max(LEAST_BODY_BYTES, engine.model_info().max_seq_len * BYTES_PER_TOKEN_SENT)
            yield engine, Sent(request, upload, most_bytes)

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Counts an answer until it is complete."""
        self.num_active += 1
        try:
            yield
        finally:
            self.num_active -= 1


def service_of(request: Request) -> HttpService:
    """The service that a request was sent to."""
    service = request.app.state.service
    assert isinstance(service, HttpService)
    return service
