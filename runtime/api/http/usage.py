"""Usage records and progress as clients of OpenAI read them, with what only this server measures."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from moorage.runtime.serving.protocol import Event, Finished, Progress
from moorage.runtime.serving.usage import Usage

SILENCE_S = 5.0
"""A stream that sent nothing for so long sends an event without text. With `TICK_S` it is at most 7.5 s."""
_SHARE_DIGITS = 7
_MEASURED = (
    "recall",
    "recall_p5",
    "budget_tokens",
    "chosen_blocks",
    "chosen_keys",
    "dram_bytes",
    "beyond_tokens",
    "queue_s",
    "time_to_first_token_s",
    "prefill_tokens_per_s",
    "decode_tokens_per_s",
)


def openai_usage(
    usages: Sequence[Usage], prompts: int = 1, *, measured: bool = False, reasoning: int | None = None
) -> dict[str, Any]:
    """The sum over all answers; a prompt counts once however many answers it has.

    `reasoning` is how many of the tokens are reasoning, where that is known.
    """
    each = max(1, len(usages) // prompts)
    prompt_tokens = sum(usage.prompt_tokens for usage in usages[::each])
    completion_tokens = sum(usage.completion_tokens for usage in usages)
    record: dict[str, Any] = {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": sum(usage.cached_tokens for usage in usages[::each])},
    }
    if reasoning is not None:
        record["completion_tokens_details"] = {"reasoning_tokens": reasoning}
    if measured:
        record["moorage"] = [measured_usage(usage) for usage in usages]
    return record


def measured_usage(usage: Usage) -> dict[str, Any]:
    """What selection attended and how fast it went, of one answer."""
    values = asdict(usage)
    return {name: values[name] for name in _MEASURED}


def attention_of(finished: Finished | None) -> dict[str, Any]:
    """The field `attention` of a choice that was inspected; nothing for another one."""
    if finished is None or finished.attention is None:
        return {}
    shares = [round(share, _SHARE_DIGITS) for share in finished.attention.shares]
    return {"attention": {"block_size": finished.attention.block_size, "shares": shares}}


class Pulse:
    """When a stream must send something although no token came, and the progress that it then sends."""

    def __init__(self, *, every_progress: bool) -> None:
        self._every = every_progress
        self._started_s = self._sent_s = time.monotonic()
        self._latest: Progress | None = None

    def due(self, event: Event | None) -> bool:
        """Whether to send now; `event` is what just came, None after a silence."""
        if isinstance(event, Progress):
            self._latest = event
            if self._every:
                return True
        return time.monotonic() - self._sent_s >= SILENCE_S

    def sent(self) -> None:
        """Something was sent."""
        self._sent_s = time.monotonic()

    def progress(self) -> dict[str, int]:
        """The prompt's progress in llama.cpp's words; zeros while the request waits."""
        latest = self._latest or Progress(0, 0)
        return {
            "total": latest.total_tokens,
            "processed": latest.prefilled_tokens,
            "time_ms": int(1000 * (time.monotonic() - self._started_s)),
        }
