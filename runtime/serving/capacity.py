"""What a request needs, in the units that admission counts: pages in each KV actor, and device slots."""

from __future__ import annotations

from dataclasses import dataclass

from moorage.runtime.serving.room import Room
from moorage.workers.counting import counted
from moorage.workers.errors import ResourceExhausted
from moorage.workers.kv.stripes import Stripes
from moorage.workers.sizes import slots_per_layer
from moorage.workers.spec import KvLayout, MemorySpec


@dataclass(frozen=True, slots=True)
class Ledger:
    """Turns tokens into room. `capacity` is the whole cluster's."""

    layout: KvLayout
    capacity: Room
    stripe_blocks: int
    max_cached_block: int | None

    def need(self, num_tokens: int, memory: MemorySpec) -> Room:
        """Room for a session of `num_tokens`, prompt and generated together, that starts at actor 0."""
        pages = self.idle(num_tokens).pages
        slots = slots_per_layer(memory, self.layout, self.max_cached_block) * self.layout.num_layers
        return Room(pages, slots)

    def idle(self, num_tokens: int) -> Room:
        """Room for the KV alone of a session of `num_tokens` that starts at actor 0."""
        blocks, stripes = self.layout.num_blocks(num_tokens), self._stripes
        return Room(tuple(stripes.count(blocks, shard) for shard in range(stripes.num_shards)), 0)

    def check(self, need: Room, num_tokens: int) -> None:
        """Raises ResourceExhausted when the request could not run even alone."""
        if not self.capacity.holds(Room(need.pages, 0)):
            have, longest = sum(self.capacity.pages), self._stripes.held(list(self.capacity.pages))
            raise ResourceExhausted(
                f"{counted(num_tokens, 'token')} of context take {_gib(self.bytes_of(need))} of KV memory and "
                f"kv_store.dram holds {_gib(have * self.layout.page_bytes)}, enough for "
                f"{counted(longest * self.layout.block_size, 'token')}; shorten the prompt, lower "
                "max_new_tokens or raise kv_store.dram"
            )
        if need.slots > self.capacity.slots:
            raise ResourceExhausted(
                f"the preset needs {counted(need.slots, 'device slot')} and the device has {self.capacity.slots}; "
                "lower memory.topk or long_context.local_windows_len"
            )

    def bytes_of(self, room: Room) -> int:
        """Bytes in the KV actors."""
        return sum(room.pages) * self.layout.page_bytes

    @property
    def _stripes(self) -> Stripes:
        return Stripes(len(self.capacity.pages), self.stripe_blocks)


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.2f} GiB"
