"""The interface of the engine behind a service. The coordinator implements it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable
from typing import Protocol

from moorage.runtime.serving.health import ClusterHealth
from moorage.runtime.serving.protocol import ClusterStatus, Event, GenerateParams, ModelInfo, ScoreParams
from moorage.runtime.serving.request_totals import RequestTotals
from moorage.runtime.serving.sessions.records import SessionInfo
from moorage.runtime.serving.tenant_limits import NO_LIMITS, TenantLimits
from moorage.runtime.text.grammar import Grammars
from moorage.runtime.text.jobs import Text
from moorage.workers.errors import MoorageError


class Events(Protocol):
    """Events of an accepted request, the last one Finished. The caller iterates to the end or closes them."""

    def __aiter__(self) -> AsyncIterator[Event]:
        """The iterator itself."""

    def __anext__(self) -> Awaitable[Event]:
        """The next event. Raises the error that the request failed with."""

    def aclose(self) -> Awaitable[None]:
        """Ends the request's work."""


class Sessions(Protocol):
    """Operations on sessions of one tenant. All but `list` raise NotFound for a name that is not held."""

    async def list(self, tenant: str = "") -> tuple[SessionInfo, ...]:
        """Every session, the longest unused first."""

    async def delete(self, name: str, tenant: str = "") -> None:
        """Drops a session. Raises FailedPrecondition while it is in use."""

    async def rename(self, name: str, new_name: str, tenant: str = "") -> SessionInfo:
        """Gives a session another name. Raises FailedPrecondition while it is in use, or when the name is taken."""

    async def fork(self, name: str, new_name: str, tenant: str = "") -> SessionInfo:
        """Opens a session that shares the blocks of another one. Raises FailedPrecondition as `rename` does."""

    async def save(self, name: str, tenant: str = "") -> SessionInfo:
        """Writes a session to files. Raises FailedPrecondition where it is in use, or where none are saved."""

    async def load(self, name: str, tenant: str = "") -> SessionInfo:
        """Brings a saved session back. Raises InvalidRequest where its files are damaged or of another model."""

    async def wake(self, name: str | None, tenant: str = "") -> None:
        """Loads the saved session that a request names, unless memory holds it; never raises for its files."""

    async def pin(self, name: str, pinned: bool = True, tenant: str = "") -> SessionInfo:
        """Keeps a session from eviction, or gives it free again."""


class Engine(Protocol):
    """Answers requests. Every method raises the errors of `moorage.workers.errors`."""

    @property
    def text(self) -> Text:
        """The model's tokenizer and chat template."""

    @property
    def grammars(self) -> Grammars:
        """Compiles what answers must follow."""

    @property
    def health(self) -> ClusterHealth:
        """Problems that keep the cluster from serving."""

    @property
    def sessions(self) -> Sessions:
        """Operations on sessions."""

    def model_info(self) -> ModelInfo:
        """The served model."""

    @property
    def request_totals(self) -> RequestTotals:
        """Figures of all requests that ended."""

    def check_load(self, tenant: str = "", limits: TenantLimits = NO_LIMITS) -> None:
        """Raises at once what keeps every request of a tenant from being taken now, whatever it asks.

        It is called before a prompt is read and made into token ids, so that a refusal costs little.
        """

    def generate(self, params: GenerateParams) -> Events:
        """Queues a generation. Raises at once what can't be served, or not now."""

    def score(self, params: ScoreParams) -> Events:
        """Queues a scoring, as `generate` does."""

    def fail_requests(self, error: MoorageError) -> None:
        """Ends all requests with an error; the engine itself may go on."""

    async def status(self) -> ClusterStatus:
        """A snapshot of the cluster."""

    async def close(self) -> None:
        """Ends every request and every process of the engine."""
