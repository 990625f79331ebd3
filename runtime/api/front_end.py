"""What the gRPC and the HTTP server share: the engine once there is one, uploads, and what is being answered."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from moorage.runtime.api.engine import Engine
from moorage.runtime.api.uploads import UploadLimits, Uploads
from moorage.runtime.serving.protocol import ClusterStatus
from moorage.workers.errors import Unavailable

BYTES_PER_TOKEN_SENT = 32
"""Bytes that a client may send for each token of the longest prompt; text has some 4, and JSON may escape them."""
STATUS_TIMEOUT_S = 5.0
_DRAIN_POLL_S = 0.05


class FrontEnd:
    """Refuses what needs an engine until it has one, and again once it is `stopping`."""

    def __init__(self) -> None:
        self.engine: Engine | None = None
        self.stopping = False
        self.uploads = Uploads()
        self.num_active = 0
        """Generations and scorings that are being answered."""

    def attach(self, engine: Engine, limits: UploadLimits) -> None:
        """From now on `engine` answers requests, and uploads are bounded by `limits` and the longest prompt."""
        self.uploads = Uploads(limits.for_prompts(engine.model_info().max_seq_len * BYTES_PER_TOKEN_SENT))
        self.engine = engine

    def ready(self) -> Engine:
        """The engine. Raises Unavailable while there is none, and when the server stops."""
        if self.stopping:
            raise Unavailable("the server is stopping; ask another one or start it again")
        return self._started()

    async def status(self) -> ClusterStatus:
        """A snapshot of the cluster, also while the server stops.

        Raises Unavailable while it starts, and when the cluster's processes do not answer.
        """
        engine = self._started()
        try:
            async with asyncio.timeout(STATUS_TIMEOUT_S):
                status = await engine.status()
        except TimeoutError:
            raise Unavailable(
                f"the cluster's processes did not answer within {STATUS_TIMEOUT_S:g} s; look in the server's log"
            ) from None
        return replace(status, state="stopping") if self.stopping else status

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Counts an answer until it is complete."""
        self.num_active += 1
        try:
            yield
        finally:
            self.num_active -= 1

    async def drain(self, grace_s: float) -> None:
        """Refuses new requests and waits at most `grace_s` for those that are being answered."""
        self.stopping = True
        for _ in range(int(grace_s / _DRAIN_POLL_S)):
            if not self.num_active:
                return
            await asyncio.sleep(_DRAIN_POLL_S)

    def _started(self) -> Engine:
        if self.engine is None:
            raise Unavailable("the server is starting; try again when it is ready")
        return self.engine
