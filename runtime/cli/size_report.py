"""The result of `runtime size`, as JSON and as tables."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from moorage.runtime.cli.output import format_gb, print_table
from moorage.runtime.deployment import Host
from moorage.runtime.session_limit import SessionLimit
from moorage.runtime.sizing import (
    ContextSizes,
    Deployment,
    context_sizes,
    device_sizes,
    fixed_dram_bytes,
    largest_context_tokens,
    num_parameters,
    token_bytes,
)
from moorage.runtime.units import format_bytes, format_tokens
from moorage.workers.spec import KvType

_PUBLISHED_TOKEN_BYTES = 131072
_PUBLISHED = (
    "Published by ktransformers for InternLM2.5-7B-1M: 0.5, 4.29, 8.58, 17.1, 68.7 GB for 4K to 512K. "
    "Its 145.49 GB for 1M is 1.11 million tokens of KV (--context 1110000); 1M = 1 048 576 tokens take "
    "137.44 GB."
)


@dataclass(frozen=True)
class SizeReport:
    """What was asked, and this host."""

    model: str
    deployment: Deployment
    contexts: tuple[int, ...]
    sessions: int
    host: Host
    dram_bytes: int | None
    """`kv_store.dram` of a cluster file; None leaves the KV cache all that the host has."""
    limit: SessionLimit

    @cached_property
    def rows(self) -> tuple[ContextSizes, ...]:
        """Sizes of each context."""
        return tuple(context_sizes(self.deployment, tokens, self.sessions) for tokens in self.contexts)

    @cached_property
    def kv_room_bytes(self) -> int:
        """Host memory that KV pages can have."""
        room = max(0, self.host.usable_bytes - fixed_dram_bytes(self.deployment))
        return room if self.dram_bytes is None else min(room, self.dram_bytes)

    @property
    def largest_context_tokens(self) -> int:
        """The longest context that fits this host."""
        return largest_context_tokens(self.deployment, self.kv_room_bytes, self.sessions)

    def fits(self, row: ContextSizes) -> bool:
        """Whether the row's sessions fit this host now."""
        return row.context_tokens <= self.largest_context_tokens

    def max_sessions(self, row: ContextSizes) -> int:
        """Sessions of the row's context that fit this host now."""
        shard_room = self.kv_room_bytes // self.deployment.shards
        return shard_room // (row.largest_shard_bytes // row.sessions)

    def as_json(self) -> dict[str, Any]:
        """Everything in bytes and tokens."""
        plan, layout = self.deployment, self.deployment.layout
        return {
            "model": self.model,
            "parameters": num_parameters(plan.model),
            "dtype": plan.weight_dtype,
            "device": "cpu" if plan.on_cpu else "cuda",
            "preset": plan.memory.preset,
            "kv_type": layout.kv_type.value,
            "block_size": layout.block_size,
            "anchor_type": layout.anchor_type.value,
            "anchor_num": layout.anchor_num,
            "shards": plan.shards,
            "token_bytes": token_bytes(layout),
            "host": {
                "total_bytes": self.host.total_bytes,
                "available_bytes": self.host.available_bytes,
                "usable_bytes": self.host.usable_bytes,
            },
            "largest_context_tokens": self.largest_context_tokens,
            "trained_tokens": self.limit.trained_tokens,
            "reach_tokens": self.limit.reach.tokens,
            "max_seq_len": self.limit.max_seq_len,
            "warnings": self.warnings(),
            "rows": [self._row_json(row) for row in self.rows],
            "notes": self.notes(),
        }

    def warnings(self) -> list[str]:
        """What does not hold of the contexts that were asked for."""
        limit, longest = self.limit, max(self.contexts)
        found = list(limit.warnings)
        if not found and limit.reach.beyond(longest):
            found.append(
                f"contexts of more than {limit.reach.tokens:,} tokens are beyond what positions reach "
                f"({limit.reach.reason}); answers there are not reliable"
            )
        return found

    def notes(self) -> list[str]:
        """Footnotes."""
        layout = self.deployment.layout
        notes = [
            "GB are 10^9 bytes; K and M are 1024 and 1024² tokens. "
            f"One token takes {token_bytes(layout)} bytes of KV.",
            "Total DRAM: whole KV pages (KV and anchors), host staging, Ray"
            + (", and all device memory, since the device is a CPU." if self.deployment.on_cpu else "."),
            "Disk: 0, since this version keeps every block in DRAM.",
        ]
        if token_bytes(layout) == _PUBLISHED_TOKEN_BYTES and layout.kv_type is KvType.FP16:
            notes.append(_PUBLISHED)
        return notes

    def _row_json(self, row: ContextSizes) -> dict[str, Any]:
        return {
            "context_tokens": row.context_tokens,
            "sessions": row.sessions,
            "kv_bytes": row.kv_bytes,
            "anchors_bytes": row.anchors_bytes,
            "reserved_bytes": row.reserved_bytes,
            "shard_bytes": row.largest_shard_bytes,
            "staging_bytes": row.staging_bytes,
            "ray_bytes": row.ray_bytes,
            "total_dram_bytes": row.total_dram_bytes,
            "disk_bytes": row.disk_bytes,
            "device_bytes": row.device.total_bytes,
            "device_weights_bytes": row.device.weights_bytes,
            "device_slots_bytes": row.device.slots_bytes,
            "device_window_bytes": row.device.window_bytes,
            "device_workspace_bytes": row.device.workspace_bytes,
            "device_staging_bytes": row.device.staging_bytes,
            "device_reserve_bytes": row.device.reserve_bytes,
            "fits_host": self.fits(row),
            "max_sessions": self.max_sessions(row),
        }


def print_report(report: SizeReport) -> None:
    """Two tables, what fits, and the footnotes."""
    layout, plan = report.deployment.layout, report.deployment
    columns = (
        "context", "KV GB", "anchors GB", "pages GB", "per actor GB", "staging GB", "Ray GB", "total DRAM GB",
        "disk GB", "fits", "sessions that fit",
    )  # fmt: skip
    rows = [
        (
            format_tokens(row.context_tokens),
            *map(
                format_gb,
                (
                    row.kv_bytes,
                    row.anchors_bytes,
                    row.reserved_bytes,
                    row.largest_shard_bytes,
                    row.staging_bytes,
                    row.ray_bytes,
                    row.total_dram_bytes,
                    row.disk_bytes,
                ),
            ),
            "yes" if report.fits(row) else "no",
            str(report.max_sessions(row)),
        )
        for row in report.rows
    ]
    title = (
        f"{report.model}: DRAM for {report.sessions} session{'s' if report.sessions > 1 else ''}, "
        f"{layout.kv_type.value}, blocks of {layout.block_size}, {layout.anchor_type.value} x "
        f"{layout.anchor_num}, {plan.shards} KV actors"
    )
    print_table(columns, rows, title=title, right=columns[:9])
    print()
    _print_device(report)
    print(
        f"\nThis host has {format_bytes(report.host.available_bytes)} free of "
        f"{format_bytes(report.host.total_bytes)}. "
        f"Largest context that fits: {report.largest_context_tokens} tokens."
    )
    for note in report.notes():
        print(note)
    for warning in report.warnings():
        print(f"Warning: {warning}.")


def _print_device(report: SizeReport) -> None:
    plan, device = report.deployment, device_sizes(report.deployment)
    columns = (
        "weights GB",
        "window GB",
        "other slots GB",
        "workspace GB",
        "staging GB",
        "CUDA GB",
        "total device GB",
    )
    parts = (
        device.weights_bytes,
        device.window_bytes,
        device.slots_bytes - device.window_bytes,
        device.workspace_bytes,
        device.staging_bytes,
        device.reserve_bytes,
        device.total_bytes,
    )
    title = (
        f"Device ({'cpu' if plan.on_cpu else 'cuda'}, {plan.weight_dtype}, preset {plan.memory.preset}, "
        f"{plan.max_running} sessions at once)"
    )
    print_table(columns, [tuple(map(format_gb, parts))], title=title, right=columns)
