"""Shows a stream as it comes: a bar on stderr while the prompt is read, then the text on stdout."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable
from typing import Any

from moorage.client import GenerateResult, GenerateStream
from moorage.runtime.cli.prefill_bar import prefill_bar
from moorage.runtime.serving import protocol
from moorage.runtime.serving.usage import Usage
from moorage.workers.counting import counted


def stream_text(
    stream: GenerateStream,
    *,
    keep_bar: bool = False,
    on_token: Callable[[protocol.Token], None] | None = None,
) -> GenerateResult:
    """Prints the text as it comes and returns the result. Ctrl-C stops the work on the server.

    `on_token` is called with each token, so that a caller knows what was shown if the stream breaks off.
    """
    with stream, prefill_bar(keep=keep_bar) as show:
        for event in stream:
            show(event)
            if isinstance(event, protocol.Token):
                if on_token is not None:
                    on_token(event)
                sys.stdout.write(event.text)
                sys.stdout.flush()
        result = stream.result()
    print()
    return result


def quiet(stream: Iterable[object]) -> None:
    """Follows a stream with the bar alone."""
    with prefill_bar() as show:
        for event in stream:
            show(event)


def print_json_line(value: dict[str, Any]) -> None:
    """One object on one line, the last of stdout."""
    print(json.dumps(value, ensure_ascii=False, allow_nan=False))


def summary(usage: Usage) -> str:
    """What a request took, in a line."""
    parts = [counted(usage.prompt_tokens, "prompt token")]
    if usage.cached_tokens:
        parts.append(f"{usage.cached_tokens} of them cached")
    if usage.time_to_first_token_s is not None:
        parts.append(f"first token after {usage.time_to_first_token_s:.2f} s")
    parts.append(counted(usage.completion_tokens, "token"))
    if usage.decode_tokens_per_s is not None:
        parts.append(f"{usage.decode_tokens_per_s:.1f} tokens/s")
    if usage.recall is not None:
        low = "" if usage.recall_p5 is None else f" (5th percentile {usage.recall_p5:.3f})"
        parts.append(f"recall {usage.recall:.3f}{low}")
    if usage.drafted_tokens:
        parts.append(f"{usage.accepted_tokens / usage.drafted_tokens:.0%} of the drafted tokens accepted")
    if usage.preset_differs:
        parts.append(f"the cluster differs from the preset: {'; '.join(usage.preset_differs)}")
    if usage.beyond_tokens:
        parts.append(
            f"{counted(usage.beyond_tokens, 'token')} beyond the length that positions reach: not reliable"
        )
    return ", ".join(parts)
