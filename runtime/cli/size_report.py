"""The result of `runtime size`, as JSON and as tables."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from moorage.runtime.cli.output import format_gb
from moorage.runtime.config.units import format_bytes
from moorage.runtime.planning.deployment import Deployment
from moorage.runtime.planning.host import Host
from moorage.runtime.planning.memory import (
    ContextSizes,
    context_sizes,
    fixed_dram_bytes,
    host_weights_bytes,
    num_parameters,
    num_slots,
    session_slots,
    token_bytes,
)
from moorage.runtime.planning.pages import largest_context_tokens, most_sessions
from moorage.runtime.planning.session_limit import SessionLimit
from moorage.workers.counting import counted
from moorage.workers.spec import KvLayout, KvType

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

    @cached_property
    def context_in_memory_tokens(self) -> int:
        """The longest context of which all sessions fit the memory of this host, whatever the model can read."""
        return largest_context_tokens(self.deployment, self.kv_room_bytes, self.sessions)

    @property
    def largest_context_tokens(self) -> int:
        """The longest context that fits the memory and that the server would take."""
        return min(self.context_in_memory_tokens, self.limit.max_seq_len)

    @property
    def binding_limit(self) -> str:
        """What keeps the largest context from being larger; a phrase for people."""
        if self.context_in_memory_tokens < self.limit.max_seq_len:
            return self._memory_limit
        reach = self.limit.reach
        if reach.tokens == self.limit.max_seq_len:
            return f"how far positions reach ({reach.reason})"
        return f"long_context.max_seq_len = {self.limit.max_seq_len:,}"

    @property
    def _memory_limit(self) -> str:
        room = self.host.usable_bytes - fixed_dram_bytes(self.deployment)
        if self.dram_bytes is not None and self.dram_bytes <= room:
            return f"kv_store.dram = {format_bytes(self.dram_bytes)}"
        if room <= 0:
            return "the free memory of this host, which weights, device slots and Ray alone would exceed"
        return "the free memory of this host"

    @cached_property
    def slot_sessions(self) -> int:
        """Sessions that the device slots hold at once; fewer than asked for where device_memory has no more room."""
        held = num_slots(self.deployment) // session_slots(self.deployment)
        return min(self.deployment.max_running, held)

    def fits(self, row: ContextSizes) -> bool:
        """Whether the row's sessions fit the memory of this host now."""
        return row.context_tokens <= self.context_in_memory_tokens

    def verdict(self, row: ContextSizes) -> str:
        """`yes`, or what keeps the row's sessions from being served."""
        if not self.fits(row):
            return "no: memory"
        return "yes" if row.context_tokens <= self.limit.max_seq_len else "no: max_seq_len"

    def max_sessions(self, row: ContextSizes) -> int:
        """Sessions of the row's context that fit the memory of this host now."""
        return most_sessions(self.deployment, self.kv_room_bytes, row.context_tokens)

    def as_json(self) -> dict[str, Any]:
        """Everything in bytes and tokens."""
        plan, layout = self.deployment, self.deployment.layout
        return {
            "model": self.model,
            "parameters": num_parameters(plan.model),
            "dtype": plan.weight_dtype,
            "weights": plan.weights.value,
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
            "largest_context_in_memory_tokens": self.context_in_memory_tokens,
            "limited_by": self.binding_limit,
            "max_running": plan.max_running,
            "sessions_with_slots": self.slot_sessions,
            "trained_tokens": self.limit.trained_tokens,
            "reach_tokens": self.limit.reach.tokens,
            "max_seq_len": self.limit.max_seq_len,
            "warnings": self.warnings(),
            "rows": [self._row_json(row) for row in self.rows],
            "notes": self.notes(),
        }

    def warnings(self) -> list[str]:
        """What does not hold of the contexts and sessions that were asked for."""
        limit, longest = self.limit, max(self.contexts)
        found = list(limit.warnings)
        if not found and limit.reach.beyond(longest):
            found.append(
                f"contexts of more than {limit.reach.tokens:,} tokens are beyond what positions reach "
                f"({limit.reach.reason}); answers there are not reliable"
            )
        if self.slot_sessions < self.deployment.max_running:
            found.append(
                f"gpu_workers.device_memory holds the device slots of {self.slot_sessions} of "
                f"{counted(self.deployment.max_running, 'session')}; the others wait"
            )
        return found

    def notes(self) -> list[str]:
        """Footnotes."""
        plan = self.deployment
        on_cpu = ", and all device memory, since the device is a CPU" if plan.on_cpu else ""
        row = self.rows[0]
        notes = [
            "GB are 10^9 bytes; K and M are 1024 and 1024² tokens. "
            f"One token takes {token_bytes(plan.layout):,} bytes of KV.",
            f"The total is whole KV pages (KV and anchors), {format_gb(row.staging_bytes)} GB of host staging, "
            f"{format_gb(row.ray_bytes)} GB for Ray and its processes{on_cpu}. Every block stays in DRAM, none on "
            "disk.",
        ]
        if experts := host_weights_bytes(plan):
            notes.append(f"DRAM holds {format_gb(experts)} GB of experts' weights (model.experts host).")
        windows = plan.windows
        if windows.num_layers:
            notes.append(
                f"{counted(windows.num_layers, 'layer')} of {plan.model.num_layers} attend a sliding window of "
                f"{windows.window:,} tokens: they take {format_bytes(windows.ring_bytes)} of device memory for each "
                "session, however long, and no DRAM of the KV actors."
            )
        if plan.layout.is_packed:
            notes.append(_about_packing(plan.layout, plan.shards))
        if token_bytes(plan.layout) == _PUBLISHED_TOKEN_BYTES and plan.layout.kv_type is KvType.FP16:
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
            "scan_bytes": row.scan_bytes,
            "total_dram_bytes": row.total_dram_bytes,
            "disk_bytes": row.disk_bytes,
            "device_bytes": row.device.total_bytes,
            "host_weights_bytes": host_weights_bytes(self.deployment),
            "device_weights_bytes": row.device.weights_bytes,
            "device_slots_bytes": row.device.slots_bytes,
            "device_window_bytes": row.device.window_bytes,
            "device_rings_bytes": row.device.rings_bytes,
            "device_workspace_bytes": row.device.workspace_bytes,
            "device_staging_bytes": row.device.staging_bytes,
            "device_reserve_bytes": row.device.reserve_bytes,
            "fits_host": self.fits(row),
            "fits_max_seq_len": row.context_tokens <= self.limit.max_seq_len,
            "max_sessions": self.max_sessions(row),
        }


def _about_packing(layout: KvLayout, shards: int) -> str:
    """What a packed format takes beside codes."""
    elements, pages = layout.num_layers * layout.block_shape.num_elements, shards * layout.open_pages
    bits = 8 * layout.page_kv_bytes / elements
    text = (
        f"{layout.kv_type} takes {bits:.2f} bits a number with statistics and outliers. Each session has "
        f"{format_bytes((pages + layout.sink_pages) * layout.page_bytes)} of pages for rows in fp16, of its last "
        f"block and of its first {counted(layout.fp16_sinks, 'token')}."
    )
    if layout.quantizer_bytes:
        text += f" The quantizer takes {format_bytes(layout.quantizer_bytes)} in each KV actor."
    return text
