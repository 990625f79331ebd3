"""Attention of generated tokens from device slots, and by the host to the blocks that these lack."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moorage.kernels.triton_support import upload
from moorage.workers.gpu.attention.backend import DecodeParts
from moorage.workers.gpu.attention.device_slots import DeviceSlotAttention, SlotMetadata
from moorage.workers.gpu.attention.host_blocks import attend_on_host
from moorage.workers.gpu.attention.stored_blocks import Partial, TokenQuery, merged
from moorage.workers.gpu.engine.batch import DecodeBatch
from moorage.workers.gpu.positions.attention_blocks import AttentionBlocks
from moorage.workers.gpu.positions.step_blocks import StepBlocks
from moorage.workers.kv.host_memory import HostBlocks
from moorage.workers.kv.shards import ShardedKv


class HybridAttention(DeviceSlotAttention):
    """A selected block that has no slot is attended in host memory, and gets a slot when it is selected again.

    That pays where the link to the device is slower than the CPU.
    """

    def __init__(self, parts: DecodeParts, kv: ShardedKv) -> None:
        super().__init__(parts)
        self._kv = kv
        self._resident: dict[int, HostBlocks] = {}
        """Where the blocks of each session lie in this host's memory, in this step."""

    def prepare(self, batch: DecodeBatch) -> SlotMetadata:
        """See AttentionBackend."""
        found = {
            step.session.session_id: self._kv.host_blocks(step.session.session_id) for step in batch.steps
        }
        self._resident = {session_id: here for session_id, here in found.items() if here is not None}
        return super().prepare(batch)

    def _attend_blocks(self, query: TokenQuery, always: StepBlocks, blocks: AttentionBlocks) -> Partial:
        ranges, resident = query.step.ranges, self._resident.get(query.session_id)
        if resident is not None:
            distant = (ranges.num_sinks <= blocks.blocks) & (blocks.blocks < ranges.near_block)
            cache = query.step.session.cache
            on_host = cache.leave_to_host(query.layer, blocks.blocks, distant, query.kv_head or 0)
            if on_host.any():
                return self._attend_both(query, always, blocks, on_host, resident)
        return super()._attend_blocks(query, always, blocks)

    def _attend_both(
        self,
        query: TokenQuery,
        always: StepBlocks,
        blocks: AttentionBlocks,
        on_host: NDArray[np.bool_],
        resident: HostBlocks,
    ) -> Partial:
        """The device attends what it holds; meanwhile the host attends the blocks that are marked `on_host`."""
        there = super()._attend_blocks(query, always, blocks.only(~on_host))
        seen = query.rotary.with_angles(query.position, blocks.only(on_host))
        plain = query.query.on_host().float()
        with self._timer("attend"):
            here = attend_on_host(query, plain, resident, self._layout, seen)
            came = upload([part.numpy() for part in here], there.out.device)
            return merged([there, Partial(*came)])
