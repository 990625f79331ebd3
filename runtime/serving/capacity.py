"""What requests need and what the cluster has, as admission counts it: KV pages by actor, device slots, and rings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from moorage.runtime.config.units import format_bytes
from moorage.workers.counting import counted
from moorage.workers.errors import ResourceExhausted
from moorage.workers.kv.stripes import Stripes
from moorage.workers.sizes import slots_per_layer
from moorage.workers.spec import KvLayout, MemorySpec, WindowLayout


@dataclass(frozen=True, slots=True)
class Resources:
    """What is free, reserved or needed. Pages are counted by KV actor."""

    pages: tuple[int, ...]
    slots: int
    rings: int = 0
    """Rings on the device, with the keys and values of sliding-window layers; idle sessions keep theirs."""

    def holds(self, need: Resources) -> bool:
        """Whether `need` fits."""
        on_device = need.slots <= self.slots and need.rings <= self.rings
        return on_device and all(n <= h for n, h in zip(need.pages, self.pages, strict=True))

    def plus(self, other: Resources) -> Resources:
        """The sum."""
        pages = tuple(a + b for a, b in zip(self.pages, other.pages, strict=True))
        return Resources(pages, self.slots + other.slots, self.rings + other.rings)

    def beyond(self, held: Resources) -> Resources:
        """What must be added to `held` to have all of this."""
        pages = tuple(max(0, a - b) for a, b in zip(self.pages, held.pages, strict=True))
        return Resources(pages, max(0, self.slots - held.slots), max(0, self.rings - held.rings))

    def minus(self, other: Resources) -> Resources:
        """The difference."""
        pages = tuple(a - b for a, b in zip(self.pages, other.pages, strict=True))
        return Resources(pages, self.slots - other.slots, self.rings - other.rings)

    def starting_at(self, actor: int) -> Resources:
        """The same need for a session whose first stripe lies in `actor` and not in actor 0."""
        num_actors = len(self.pages)
        pages = tuple(self.pages[(i - actor) % num_actors] for i in range(num_actors))
        return Resources(pages, self.slots, self.rings)


@dataclass(frozen=True, slots=True)
class Capacity:
    """Resources of the whole cluster, and how many of them a session of a given length needs."""

    layout: KvLayout
    total: Resources
    stripe_blocks: int
    max_cached_block: int | None
    windows: WindowLayout | None = None
    """Rings of the model's sliding-window layers; None without any."""

    def need(self, num_tokens: int, memory: MemorySpec) -> Resources:
        """What a session of `num_tokens`, prompt and generated together, needs when it starts at actor 0."""
        slots = slots_per_layer(memory, self.layout, self.max_cached_block) * self.layout.num_layers
        pages = session_pages(self.layout, self.layout.num_blocks(num_tokens), self._stripes)
        return Resources(pages, slots, 0 if self.windows is None else 1)

    def idle(self, num_tokens: int) -> Resources:
        """What the KV and the ring of an idle session of `num_tokens` hold when it starts at actor 0."""
        whole = num_tokens // self.layout.block_size
        blocks = whole if self.layout.is_packed else self.layout.num_blocks(num_tokens)
        pages = session_pages(self.layout, blocks, self._stripes, is_written=False)
        return Resources(pages, 0, 0 if self.windows is None else 1)

    def check(self, need: Resources, num_tokens: int) -> None:
        """Raises ResourceExhausted when the request could not run even alone."""
        if not self.total.holds(Resources(need.pages, 0)):
            have, longest = sum(self.total.pages), self._stripes.held(list(self.total.pages))
            raise ResourceExhausted(
                f"{counted(num_tokens, 'token')} of context take {format_bytes(self.bytes_of(need))} of KV memory "
                f"and kv_store.dram holds {format_bytes(have * self.layout.page_bytes)}, enough for "
                f"{counted(longest * self.layout.block_size, 'token')}; shorten the prompt, lower "
                "max_new_tokens or raise kv_store.dram"
            )
        if need.slots > self.total.slots:
            raise ResourceExhausted(
                f"the preset needs {counted(need.slots, 'device slot')} and the device has {self.total.slots}; "
                "lower memory.topk or long_context.local_windows_len"
            )

    def bytes_of(self, resources: Resources) -> int:
        """Bytes in the KV actors."""
        return sum(resources.pages) * self.layout.page_bytes

    @property
    def _stripes(self) -> Stripes:
        return Stripes(len(self.total.pages), self.stripe_blocks)


def session_pages(
    layout: KvLayout, num_blocks: int, stripes: Stripes, is_written: bool = True
) -> tuple[int, ...]:
    """Pages of a session in each actor, from that of its first stripe on; see KvLayout. Idle ones are not written."""
    counts = [stripes.count(num_blocks, shard) for shard in range(stripes.num_shards)]
    extra = layout.open_pages if is_written else 0
    sinks = layout.sink_pages if num_blocks else 0
    return tuple(count + extra + (0 if shard else sinks) for shard, count in enumerate(counts))


def pages_of_one(layout: KvLayout, num_tokens: int) -> int:
    """Pages of a session of `num_tokens` in a single actor."""
    (pages,) = session_pages(layout, layout.num_blocks(num_tokens), Stripes(1, 1))
    return pages


def first_actor(need: Resources, free: Resources) -> int | None:
    """The actor at which a session that needs `need` starts, so that all of it fits `free`; None if none does.

    The emptiest actor comes first, so that sessions spread evenly; among equals the lowest.
    """
    emptiest_first: Sequence[int] = sorted(range(len(free.pages)), key=lambda actor: -free.pages[actor])
    return next((actor for actor in emptiest_first if free.holds(need.starting_at(actor))), None)
