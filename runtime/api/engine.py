"""What the service needs of the engine behind it. The coordinator is one."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Protocol

from moorage.runtime.health import ClusterHealth
from moorage.runtime.requests import ClusterStatus, Event, GenerateParams, ModelInfo, ScoreParams
from moorage.runtime.text.jobs import Text
from moorage.workers.errors import MoorageError


class Engine(Protocol):
    """Answers requests. Every method raises the errors of `moorage.workers.errors`."""

    @property
    def text(self) -> Text:
        """The model's tokenizer and chat template."""

    @property
    def health(self) -> ClusterHealth:
        """What keeps the cluster from serving."""

    def model_info(self) -> ModelInfo:
        """The served model."""

    def generate(self, params: GenerateParams) -> AsyncGenerator[Event]:
        """Events of one generation, the last one Finished; closing the generator cancels the work."""

    def score(self, params: ScoreParams) -> AsyncGenerator[Event]:
        """Events of one scoring, the last one Finished; closing the generator cancels the work."""

    def fail_requests(self, error: MoorageError) -> None:
        """Ends all requests with an error; the engine itself may go on."""

    async def status(self) -> ClusterStatus:
        """A snapshot of the cluster."""

    async def close(self) -> None:
        """Ends every request and every process of the engine."""
