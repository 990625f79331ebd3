"""One line of the log for each request that ended: what it took and how it ended, never what it said."""

from __future__ import annotations

from dataclasses import asdict

import structlog

from moorage.runtime.serving.request import Request
from moorage.runtime.serving.request_usage import usage_of

log = structlog.get_logger()

_LOGGED = (
    "prompt_tokens",
    "cached_tokens",
    "completion_tokens",
    "queue_s",
    "time_to_first_token_s",
    "prefill_tokens_per_s",
    "decode_tokens_per_s",
    "total_s",
    "recall",
    "recall_p5",
)
"""Fields of the usage record that the log shows."""


def log_end(request: Request, now_s: float) -> None:
    """Writes the line of a request that ended."""
    usage = asdict(usage_of(request, now_s))
    figures = {name: usage[name] for name in _LOGGED if usage[name] is not None}
    log.info(
        "request finished",
        request_id=request.request_id,
        method="score" if request.is_score else "generate",
        outcome=request.outcome,
        preset=request.memory.preset,
        **{name: round(value, 3) if isinstance(value, float) else value for name, value in figures.items()},
    )
