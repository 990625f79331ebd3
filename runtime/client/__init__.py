"""The client SDK: `Client` and `AsyncClient`, what they return, and the errors that they raise.

Needs neither torch nor ray. Every error is a `MoorageError` of one line.

>>> from moorage.client import Client
>>> with Client("127.0.0.1:50051") as client:
...     print(client.generate("Once upon a time", max_new_tokens=32).result().text)
"""

from moorage.client.aio import AsyncClient, AsyncGenerateStream, AsyncScoreStream
from moorage.client.sync import Client, GenerateStream, ScoreStream
from moorage.client.types import (
    Accepted,
    GenerateEvent,
    GenerateOptions,
    GenerateResult,
    Prompt,
    ScoreEvent,
    ScoreResult,
)
from moorage.runtime.serving.protocol import (
    ClusterStatus,
    Finished,
    ModelInfo,
    Progress,
    PromptLogprobs,
    Token,
)
from moorage.runtime.serving.sessions.records import SessionInfo
from moorage.runtime.serving.status_records import KvActorStatus, RunningRequest, WaitingRequest
from moorage.runtime.serving.usage import Usage
from moorage.workers.errors import (
    Cancelled,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidRequest,
    MoorageError,
    NotFound,
    ResourceExhausted,
    Unauthenticated,
    Unavailable,
)

__all__ = [
    "Accepted",
    "AsyncClient",
    "AsyncGenerateStream",
    "AsyncScoreStream",
    "Cancelled",
    "Client",
    "ClusterStatus",
    "DeadlineExceeded",
    "FailedPrecondition",
    "Finished",
    "GenerateEvent",
    "GenerateOptions",
    "GenerateResult",
    "GenerateStream",
    "InvalidRequest",
    "KvActorStatus",
    "ModelInfo",
    "MoorageError",
    "NotFound",
    "Progress",
    "Prompt",
    "PromptLogprobs",
    "ResourceExhausted",
    "RunningRequest",
    "ScoreEvent",
    "ScoreResult",
    "ScoreStream",
    "SessionInfo",
    "Token",
    "Unauthenticated",
    "Unavailable",
    "Usage",
    "WaitingRequest",
]
