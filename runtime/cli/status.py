"""`runtime status`: what the cluster does and holds now."""

from __future__ import annotations

from dataclasses import asdict

from rich.table import Table

from moorage.client import Client, ClusterStatus, ModelInfo
from moorage.runtime.cli import options as o
from moorage.runtime.cli.app import app, examples
from moorage.runtime.cli.output import format_gb, print_json, stdout_console
from moorage.workers.counting import counted
from moorage.workers.hf_generation import SamplingDefaults


@app.command(
    epilog=examples(
        "runtime status",
        "runtime status --address 127.0.0.1:50051 --json",
    )
)
def status(address: o.Address = None, as_json: o.AsJson = False) -> None:
    """Show load, memory and processes of a running cluster."""
    where = o.server_address(address)
    with Client(where, timeout_s=10) as client:
        snapshot = client.status()
    if as_json:
        print_json({"address": where, **asdict(snapshot)})
    else:
        stdout_console().print(status_table(where, snapshot))


def status_table(address: str, status: ClusterStatus) -> Table:
    """The snapshot as a table of names and values."""
    model = status.model
    table = Table(show_header=False, show_edge=False, pad_edge=False)
    rows = [
        ("address", address),
        ("state", f"{status.state}, up {_duration(status.uptime_s)}"),
        (
            "model",
            f"{model.name} ({model.family}, {model.dtype}), up to {counted(model.max_seq_len, 'token', commas=True)}",
        ),
        ("trained length", _trained(model)),
        ("memory preset", model.preset),
        ("default sampling", _sampling(model.default_sampling)),
        ("end tokens", ", ".join(map(str, model.eos_token_ids)) or "none"),
        ("chat template", "yes" if model.has_chat_template else "no"),
        ("requests", f"{status.running} running ({status.prefilling} in prefill), {status.waiting} waiting"),
        (
            "tokens so far",
            f"{status.prompt_tokens_total:,} of prompts, {status.generated_tokens_total:,} generated",
        ),
        ("block cache hits", "-" if status.cache_hit_rate is None else f"{status.cache_hit_rate:.1%}"),
        ("recall", "-" if status.recall is None else f"{status.recall:.3f}"),
    ]
    for actor in status.kv_actors:
        used, capacity = format_gb(actor.used_bytes), format_gb(actor.capacity_bytes)
        rows.append(
            (
                actor.name,
                f"{used} of {capacity} GB, {counted(actor.num_sessions, 'session')}, pid {actor.pid}",
            )
        )
    rows.append(("workers", ", ".join(f"pid {pid}" for pid in status.worker_pids)))
    rows += [("warning", warning) for warning in model.warnings]
    for name, value in rows:
        table.add_row(name, value)
    return table


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
