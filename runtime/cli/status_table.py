"""A snapshot of a cluster as a table for people."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict

from rich.markup import escape
from rich.table import Table

from moorage.client import ClusterStatus, KvActorStatus, ModelInfo, RunningRequest, WaitingRequest
from moorage.runtime.cli.output import format_gb
from moorage.workers.counting import counted
from moorage.workers.hf_generation import SamplingDefaults

_MOST_LISTED = 5
"""Requests of a kind that a table shows: the running ones in order of admission, then the next to be admitted."""


def status_table(
    address: str, status: ClusterStatus, *, short: bool = False, http: str | None = None
) -> Table:
    """Names and values; a `short` one leaves out what never changes, to fit the foot of a terminal."""
    table = Table(show_header=False, show_edge=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    rows = [("address", address)]
    if http is not None:
        rows.append(("http", f"http://{http}"))
    rows += [("state", _state(status)), *_failure(status), *_model(status.model, short)]
    rows += [*_requests(status), *_memory(status)]
    rows.append(("workers", ", ".join(f"pid {pid}" for pid in status.worker_pids) or "-"))
    if status.attention_dtype and not short:
        rows.append(("attention", f"of prompts in {status.attention_dtype}"))
    rows += [("warning", warning) for warning in status.model.warnings if not short]
    for name, value in rows:
        table.add_row(escape(name), escape(value))
    return table


def _state(status: ClusterStatus) -> str:
    return f"{status.state}, up {_duration(status.uptime_s)}"


def _failure(status: ClusterStatus) -> Iterator[tuple[str, str]]:
    if status.failure:
        yield "problem", status.failure
    if status.failed_steps_total:
        yield "failed steps", f"{status.failed_steps_total:,}"


def _model(model: ModelInfo, short: bool) -> Iterator[tuple[str, str]]:
    room = counted(model.max_seq_len, "token", commas=True)
    yield "model", f"{model.name} ({model.family}, {model.dtype}), up to {room}"
    if not short:
        yield "trained length", _trained(model)
    yield "memory preset", model.preset
    if not short:
        yield "default sampling", _sampling(model.default_sampling)
        yield "end token ids", ", ".join(map(str, model.eos_token_ids)) or "none"
        yield "chat template", "yes" if model.has_chat_template else "no"


def _requests(status: ClusterStatus) -> Iterator[tuple[str, str]]:
    yield (
        "requests",
        f"{status.running} running ({status.prefilling} in prefill), {status.waiting} waiting",
    )
    yield from _listed("  running", list(map(_running, status.running_requests)))
    yield from _listed("  waiting", list(map(_waiting, status.waiting_requests)))
    yield "idle sessions", str(status.idle_sessions)
    prompts, generated = status.prompt_tokens_total, status.generated_tokens_total
    yield "tokens so far", f"{prompts:,} of prompts, {generated:,} generated"


def _listed(name: str, lines: list[str]) -> Iterator[tuple[str, str]]:
    for line in lines[:_MOST_LISTED]:
        yield name, line
    if len(lines) > _MOST_LISTED:
        yield "", f"and {len(lines) - _MOST_LISTED} more"


def _running(request: RunningRequest) -> str:
    prompt = f"{request.prefilled_tokens:,} of {counted(request.prompt_tokens, 'token', commas=True)} read"
    return f"{request.request_id} (session {request.session_id}), {prompt}, {request.generated_tokens:,} generated"


def _waiting(request: WaitingRequest) -> str:
    tokens = counted(request.prompt_tokens, "token", commas=True)
    soon = request.expected_wait_s
    left = "" if soon is None else f" (about {_duration(soon)} left)"
    return f"{request.request_id}, {tokens}, since {_duration(request.waited_s)}{left}: {request.reason}"


def _memory(status: ClusterStatus) -> Iterator[tuple[str, str]]:
    yield "block cache hits", "-" if status.cache_hit_rate is None else f"{status.cache_hit_rate:.1%}"
    if status.link_bytes_total:
        yield "copied to device", f"{format_gb(status.link_bytes_total)} GB of blocks"
    yield "recall", "-" if status.recall is None else f"{status.recall:.3f}"
    for actor in status.kv_actors:
        yield actor.name, _actor(actor)


def _actor(actor: KvActorStatus) -> str:
    state = "" if actor.state == "running" else f"{actor.state}; "
    held = f"{format_gb(actor.used_bytes)} of {format_gb(actor.capacity_bytes)} GB"
    return f"{state}{held}, {counted(actor.num_sessions, 'session')}, pid {actor.pid}"


def _sampling(defaults: SamplingDefaults) -> str:
    """What a request gets where it is silent."""
    values = asdict(defaults)
    plain = asdict(SamplingDefaults())
    changed = [f"{name} {value:g}" for name, value in values.items() if value != plain[name]]
    if not defaults.temperature:
        changed.insert(0, "greedy")
    return ", ".join(changed)


def _trained(model: ModelInfo) -> str:
    """What the model was trained for, and how far its positions go on from there."""
    if not model.trained_tokens:
        return "-"
    trained = f"{model.trained_tokens:,} tokens"
    if model.reach_tokens is None:
        return f"{trained}; positions hold at any length"
    if model.reach_tokens != model.trained_tokens:
        return f"{trained}; positions hold up to {model.reach_tokens:,}"
    return trained


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}"
