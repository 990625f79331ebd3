"""The client SDK: `Client` and `AsyncClient`. Needs neither torch nor ray.

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
from moorage.runtime.requests import (
    ClusterStatus,
    Finished,
    KvActorStatus,
    ModelInfo,
    Progress,
    PromptLogprobs,
    Token,
    Usage,
)

__all__ = [
    "Accepted",
    "AsyncClient",
    "AsyncGenerateStream",
    "AsyncScoreStream",
    "Client",
    "ClusterStatus",
    "Finished",
    "GenerateEvent",
    "GenerateOptions",
    "GenerateResult",
    "GenerateStream",
    "KvActorStatus",
    "ModelInfo",
    "Progress",
    "Prompt",
    "PromptLogprobs",
    "ScoreEvent",
    "ScoreResult",
    "ScoreStream",
    "Token",
    "Usage",
]
