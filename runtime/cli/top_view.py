"""What `runtime top` shows: rates between two snapshots, memory, and a row for each request."""

from __future__ import annotations

from itertools import islice

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from moorage.client import ClusterStatus, RunningRequest, WaitingRequest
from moorage.runtime.cli.output import format_gb
from moorage.workers.counting import counted

_HEAD_LINES = 6
"""Lines beside those of KV actors and requests, with the foot."""
_BAR_CELLS = 24


class TopView:
    """The view of one cluster, which compares each snapshot with the one before it."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._before: tuple[float, ClusterStatus] | None = None

    def of(self, status: ClusterStatus, now_s: float, height: int) -> RenderableType:
        """The view for a snapshot that was taken at `now_s`, in at most `height` lines of a terminal."""
        before, self._before = self._before, (now_s, status)
        elapsed_s, earlier = (0.0, status) if before is None else (now_s - before[0], before[1])
        if elapsed_s <= 0 or earlier.uptime_s > status.uptime_s:  # The server was started anew.
            earlier, elapsed_s = status, 0.0
        room = max(1, height - _HEAD_LINES - len(status.kv_actors))
        return Group(
            self._head(status),
            _rates(status, earlier, elapsed_s),
            _memory(status),
            _requests(status, earlier, elapsed_s, room),
        )

    def _head(self, status: ClusterStatus) -> Text:
        trouble = f": {status.failure}" if status.failure else ""
        minutes, seconds = divmod(int(status.uptime_s), 60)
        hours, minutes = divmod(minutes, 60)
        up = f"{hours}:{minutes:02}:{seconds:02}"
        line = f"{status.model.name} at {self._address}, {status.state}{trouble}, up {up}"
        return Text(line, style="bold", overflow="ellipsis", no_wrap=True)


def _rates(status: ClusterStatus, earlier: ClusterStatus, elapsed_s: float) -> Text:
    prompts = status.prompt_tokens_total - earlier.prompt_tokens_total
    generated = status.generated_tokens_total - earlier.generated_tokens_total
    shown = [
        f"prompts {_rate(prompts, elapsed_s)}",
        f"generated {_rate(generated, elapsed_s)}",
        f"{status.running} running, {status.waiting} waiting",
        counted(status.idle_sessions, "idle session"),
    ]
    if status.cache_hit_rate is not None:
        shown.append(f"device hits {status.cache_hit_rate:.1%}")
    moved = status.link_bytes_total - earlier.link_bytes_total
    if status.link_bytes_total and elapsed_s:
        shown.append(f"to device {format_gb(int(moved / elapsed_s))} GB/s")
    if status.recall is not None:
        shown.append(f"recall {status.recall:.3f}")
    if status.failed_steps_total:
        shown.append(counted(status.failed_steps_total, "failed step"))
    return Text("  ".join(shown), overflow="ellipsis", no_wrap=True)


def _memory(status: ClusterStatus) -> Table:
    """A bar for each KV actor."""
    table = Table.grid(padding=(0, 1))
    for actor in status.kv_actors:
        bar = ProgressBar(total=max(actor.capacity_bytes, 1), completed=actor.used_bytes, width=_BAR_CELLS)
        held = f"{format_gb(actor.used_bytes)} of {format_gb(actor.capacity_bytes)} GB"
        state = "" if actor.state == "running" else f", {actor.state}"
        table.add_row(escape(actor.name), bar, f"{held}, {counted(actor.num_sessions, 'session')}{state}")
    return table


def _requests(status: ClusterStatus, earlier: ClusterStatus, elapsed_s: float, room: int) -> Table:
    """Running requests in order of admission, then those that wait, as many as there is room for."""
    table = Table(box=None, pad_edge=False, header_style="reverse", expand=True)
    for name in ("REQUEST", "STATE", "PROMPT", "GENERATED", "TOKENS/S"):
        table.add_column(name, no_wrap=True, justify="left" if name in ("REQUEST", "STATE") else "right")
    table.add_column("WHY IT WAITS", no_wrap=True, overflow="ellipsis", ratio=1)
    known = {request.request_id: request for request in earlier.running_requests}
    rows = [
        *(_running(request, known.get(request.request_id), elapsed_s) for request in status.running_requests),
        *map(_waiting, status.waiting_requests),
    ]
    left_out = len(rows) - room
    for row in islice(rows, room if left_out <= 0 else room - 1):
        table.add_row(*map(escape, row))
    if left_out > 0:
        table.add_row(f"and {left_out + 1} more")
    return table


def _running(request: RunningRequest, before: RunningRequest | None, elapsed_s: float) -> tuple[str, ...]:
    reads = request.prefilled_tokens < request.prompt_tokens
    share = request.prefilled_tokens / max(request.prompt_tokens, 1)
    done = _done(request) - _done(before) if before is not None else 0
    rate = f"{done / elapsed_s:,.1f}" if before is not None and elapsed_s else "-"
    state = f"prefill {share:.0%}" if reads else "decode"
    counts = (f"{request.prompt_tokens:,}", f"{request.generated_tokens:,}")
    return request.request_id, state, *counts, rate, ""


def _waiting(request: WaitingRequest) -> tuple[str, ...]:
    state = f"waits {request.waited_s:.0f} s"
    return request.request_id, state, f"{request.prompt_tokens:,}", "", "", request.reason


def _done(request: RunningRequest) -> int:
    """Tokens that were read or generated."""
    return request.prefilled_tokens + request.generated_tokens


def _rate(tokens: int, elapsed_s: float) -> str:
    return f"{tokens / elapsed_s:,.1f} tokens/s" if elapsed_s else "- tokens/s"
