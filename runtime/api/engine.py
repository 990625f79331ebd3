"""What the service needs of the engine behind it. The coordinator is one."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any, Protocol

from moorage.runtime.health import ClusterHealth
from moorage.runtime.requests import ClusterStatus, Event, GenerateParams, ModelInfo, ScoreParams
from moorage.workers.errors import MoorageError


class Tokenizer(Protocol):
    """Text to token ids and back."""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text."""

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of token ids."""

    def encode_chat(self, messages: Sequence[Mapping[str, Any]], *, parse_special: bool = False) -> list[int]:
        """Token ids of a conversation; `parse_special` reads special tokens in contents as tokens.

        Raises InvalidRequest when the model has no chat template or the template refuses the messages.
        """


class Engine(Protocol):
    """Answers requests. Every method raises the errors of `moorage.workers.errors`."""

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer."""

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
