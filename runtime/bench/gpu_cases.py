"""What `bench gpu` measures: methods, contexts and batches, the most telling first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace

from moorage.runtime.presets import PRESETS, Preset
from moorage.workers.gpu.settings import AttendOn, ScoreOn
from moorage.workers.sizes import slots_per_layer
from moorage.workers.spec import KvLayout, KvType, MemorySpec, ModelSpec


@dataclass(frozen=True, slots=True)
class Method:
    """One way to attend."""

    name: str
    memory: MemorySpec
    resident: bool = False
    """Every block has a slot."""
    score_on: ScoreOn = "cpu"
    attend_on: AttendOn = "device"


@dataclass(frozen=True, slots=True)
class Group:
    """Methods that one filled store serves."""

    layout: KvLayout
    methods: tuple[Method, ...]


def memory_of(preset: Preset) -> MemorySpec:
    """The axes of a session under `preset`, without samples of recall."""
    axes = preset.axes()
    known = {field.name: axes[field.name] for field in fields(MemorySpec) if field.name in axes}
    return MemorySpec(preset=preset.name, recall_every=0, **(known | {"rope": None, "dense_until": 0}))


def groups(model: ModelSpec, block_scale: int = 1) -> list[Group]:
    """Stores in the order in which they are filled; `block_scale` makes budgets and windows smaller by it."""
    full = memory_of(PRESETS["full"])
    found = []
    for name in ("moorage", "ktransformers", "inf-llm"):
        preset = PRESETS[name]
        memory = _smaller(memory_of(preset), block_scale)
        methods = [Method(name, memory)]
        if name == "moorage":
            exact = _smaller(full, block_scale)
            methods += [
                Method("moorage-device-scored", memory, score_on="device"),
                Method("moorage-misses-on-cpu", memory, attend_on="cpu"),
                Method("moorage-lagged", replace(memory, lag=1, lag_cosine=-1.0)),
                Method("full-resident", exact, resident=True),
                Method("full-streamed", exact),
            ]
        layout = KvLayout(
            model.num_layers,
            model.num_kv_heads,
            model.head_dim,
            preset.block_size,
            KvType.FP16,
            preset.anchor_type,
            preset.anchor_num,
            preset.anchor_space,
            preset.repr_topk,
        )
        found.append(Group(layout, tuple(methods)))
    return found


def _smaller(memory: MemorySpec, scale: int) -> MemorySpec:
    return replace(
        memory,
        local_windows_len=memory.local_windows_len // scale,
        topk=None if memory.topk is None else max(1, memory.topk // scale),
    )


def decode_cases(
    methods: Sequence[Method], contexts: Sequence[int], batches: Sequence[int]
) -> Iterator[tuple[Method, int, int]]:
    """(method, context, batch): the chosen blocks before full attention, batch 1 before larger ones."""
    for batch in batches:
        for method in methods:
            for context in contexts:
                if batch == 1 or (method.memory.topk is not None and not method.resident):
                    yield method, context, batch


def cached_blocks(method: Method, layout: KvLayout, context: int, batch: int, room_slots: int) -> int | None:
    """Slots per layer for chosen blocks, so that `batch` sessions fit into `room_slots`; None if they never do.

    All blocks where there is room, and never less than what one step attends.
    """
    least = method.memory.topk or 0
    wanted = layout.num_blocks(context) + 2 if method.resident or least else 0
    per_session = room_slots // batch // layout.num_layers
    fixed = slots_per_layer(method.memory, layout, 0) - least
    allowed = min(wanted, per_session - fixed)
    if allowed < (wanted if method.resident else least):
        return None
    return allowed
