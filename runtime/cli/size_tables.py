"""The tables that `runtime size` prints."""

from __future__ import annotations

from moorage.runtime.cli.output import format_gb, print_table, print_text
from moorage.runtime.cli.size_report import SizeReport
from moorage.runtime.config.units import format_bytes, format_tokens
from moorage.runtime.planning.memory import device_sizes
from moorage.workers.counting import counted


def print_report(report: SizeReport) -> None:
    """Two tables of at most 80 columns, what fits and what sets the limit, and the footnotes."""
    layout, plan = report.deployment.layout, report.deployment
    columns = ("context", "KV", "anchors", "per actor", "total", "sessions", "fits")
    rows = [
        (
            format_tokens(row.context_tokens),
            format_gb(row.kv_bytes),
            format_gb(row.anchors_bytes),
            format_gb(row.largest_shard_bytes),
            format_gb(row.total_dram_bytes),
            str(report.max_sessions(row)),
            report.verdict(row),
        )
        for row in report.rows
    ]
    print_text(
        f"{report.model}: GB of DRAM for {counted(report.sessions, 'session')} of each context, and the sessions "
        f"that fit ({layout.kv_type.value}, blocks of {layout.block_size}, {layout.anchor_type.value} x "
        f"{layout.anchor_num}, {counted(plan.shards, 'KV actor')})"
    )
    print_table(columns, rows, right=columns[:6])
    print()
    _print_device(report)
    print()
    print_text(_conclusion(report))
    for warning in report.warnings():
        print_text(f"Warning: {warning}.")
    print()
    for note in report.notes():
        print_text(note)


def _conclusion(report: SizeReport) -> str:
    host, each = report.host, "" if report.sessions == 1 else f" for each of {report.sessions} sessions"
    text = (
        f"Largest context{each}: {counted(report.largest_context_tokens, 'token', commas=True)}, limited by "
        f"{report.binding_limit}."
    )
    if report.context_in_memory_tokens > report.largest_context_tokens:
        held = counted(report.context_in_memory_tokens, "token", commas=True)
        text += f" The memory would hold {held}."
    return (
        f"{text} This host has {format_bytes(host.available_bytes)} free of {format_bytes(host.total_bytes)}."
    )


def _print_device(report: SizeReport) -> None:
    plan, device = report.deployment, device_sizes(report.deployment)
    rings = ("rings",) if device.rings_bytes else ()
    columns = ("weights", "window", "other slots", *rings, "workspace", "staging", "total")
    parts = (
        device.weights_bytes,
        device.window_bytes,
        device.slots_bytes - device.window_bytes,
        *([device.rings_bytes] if device.rings_bytes else []),
        device.workspace_bytes,
        device.staging_bytes,
        device.total_bytes,
    )
    print_text(
        f"GB of device memory ({'cpu' if plan.on_cpu else 'cuda'}, {plan.weight_dtype}, "
        f"weights {plan.weights.value}, preset {plan.memory.preset}), with slots for "
        f"{counted(plan.max_running, 'session')} at once"
    )
    print_table(columns, [tuple(map(format_gb, parts))], right=columns)
