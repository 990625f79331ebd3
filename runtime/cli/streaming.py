"""Shows a stream as it comes: a bar on stderr while the prompt is read, then the text on stdout."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from moorage.client import GenerateResult, GenerateStream
from moorage.runtime import requests
from moorage.runtime.cli.output import print_note
from moorage.runtime.requests import Usage
from moorage.workers.counting import counted


@contextmanager
def prefill_bar(*, keep: bool = False) -> Iterator[Callable[[object], None]]:
    """Yields a function that takes every event of a stream and moves the bar.

    The bar goes when the prompt is read, unless it is kept. Off a terminal a kept bar is a line for each tenth
    of the prompt, and any other shows nothing.
    """
    console = Console(stderr=True)
    if keep and not console.is_terminal:
        yield _Tenths()
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("tokens"))
    with Progress(
        *columns, TimeRemainingColumn(), console=console, transient=not keep, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("reading the prompt", total=None)

        def show(event: object) -> None:
            if isinstance(event, requests.Progress):
                bar.update(task, completed=event.prefilled_tokens, total=event.total_tokens)
            elif isinstance(event, requests.Token):
                bar.stop()

        yield show


class _Tenths:
    """Progress as lines of a log."""

    def __init__(self) -> None:
        self._told = 0

    def __call__(self, event: object) -> None:
        if isinstance(event, requests.Progress):
            tenths = 10 * event.prefilled_tokens // event.total_tokens
            if tenths > self._told:
                self._told = tenths
                print_note(
                    f"read {event.prefilled_tokens:,} of {counted(event.total_tokens, 'token', commas=True)}"
                )


def stream_text(
    stream: GenerateStream,
    *,
    keep_bar: bool = False,
    on_token: Callable[[requests.Token], None] | None = None,
) -> GenerateResult:
    """Prints the text as it comes and returns the result. Ctrl-C stops the work on the server.

    `on_token` hears each token, so that a caller knows what was shown if the stream breaks off.
    """
    with stream, prefill_bar(keep=keep_bar) as show:
        for event in stream:
            show(event)
            if isinstance(event, requests.Token):
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
        parts.append(f"recall {usage.recall:.3f}")
    if usage.beyond_tokens:
        parts.append(f"{usage.beyond_tokens} tokens beyond the length that positions reach: not reliable")
    return ", ".join(parts)
