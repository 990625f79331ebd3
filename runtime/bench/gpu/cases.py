"""What `bench gpu` measures: methods, contexts and batches, the most telling first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from moorage.runtime.bench.gpu.options import Options
from moorage.runtime.config.presets import PRESETS, Settings
from moorage.workers.gpu.settings import AttendOn, ScoreOn
from moorage.workers.sizes import slots_per_layer
from moorage.workers.spec import KvLayout, MemorySpec, ModelSpec


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


class Kind(Enum):
    """Cases of one kind take about as long as one another."""

    FILL = "fill"
    DECODE = "decode"
    STREAM = "stream"
    PREFILL = "prefill"


@dataclass(frozen=True, slots=True)
class Case:
    """One measurement."""

    kind: Kind
    method: Method
    context: int
    batch: int = 1

    @property
    def row_name(self) -> str:
        """The name of the row."""
        name = self.method.name
        return name if self.kind is Kind.PREFILL else f"decode-{name}-b{self.batch}"

    @property
    def streamed(self) -> bool:
        """Whether each step reads the whole past from the host."""
        return self.kind is Kind.STREAM

    @property
    def exact(self) -> bool:
        """Whether a prompt's tokens attend all keys."""
        return not self.method.memory.selection.execution_block


def memory_of(settings: Settings) -> MemorySpec:
    """The settings of a session under those of a preset, without samples of recall."""
    return settings.memory.replace(recall_every=0, dense_until=0)


def groups(model: ModelSpec, block_scale: int = 1) -> list[Group]:
    """Stores in the order in which they are filled; `block_scale` makes budgets and windows smaller by it.

    All select blocks: scoring on the device and misses on the host are of blocks.
    """
    full = memory_of(PRESETS["full"].settings())
    found = []
    for name in ("moorage", "ktransformers", "inf-llm"):
        preset = PRESETS[name]
        memory = _smaller(memory_of(preset.selecting_blocks()), block_scale)
        methods = [Method(name, memory)]
        if name == "moorage":
            exact = _smaller(full, block_scale)
            methods += [
                Method("moorage-device-scored", memory, score_on="device"),
                Method("moorage-misses-on-cpu", memory, attend_on="cpu"),
                Method("full-resident", exact, resident=True),
                Method("full-streamed", exact),
            ]
        found.append(Group(preset.selecting_blocks().layout(model), tuple(methods)))
    return found


def _smaller(memory: MemorySpec, scale: int) -> MemorySpec:
    return memory.replace(
        window=memory.retention.window // scale,
        topk=None if memory.selection.topk is None else max(1, memory.selection.topk // scale),
    )


def cases_of(group: Group, options: Options) -> list[Case]:
    """Every case of a store once, the most telling first.

    The first context and batch 1 come before all: scored on the device, scored on the host, and with every block
    resident. Then come exact prefill, the largest batch, and everything else.
    """
    first, largest = options.contexts[0], max(options.batches)
    by_name = {method.name: method for method in group.methods}
    leading = [
        by_name[name] for name in ("moorage-device-scored", "moorage", "full-resident") if name in by_name
    ]
    cases = [_decode(method, first, 1) for method in leading]
    if leading:
        cases += _prefills(Method("prefill-exact", by_name["moorage"].memory), options)
        cases += [_decode(method, first, largest) for method in leading if not method.resident]
    for batch in options.batches:
        for context in options.contexts:
            cases += [
                _decode(method, context, batch) for method in group.methods if batch == 1 or _batched(method)
            ]
    if leading:
        selected = by_name["moorage"].memory.replace(execution_block=512)
        cases += _prefills(Method("prefill-selected", selected), options)
    return list(dict.fromkeys(cases))


def _batched(method: Method) -> bool:
    """Whether larger batches add information: full attention costs the same for each session."""
    return method.memory.selection.topk is not None and not method.resident


def _decode(method: Method, context: int, batch: int) -> Case:
    streamed = method.memory.selection.topk is None and not method.resident
    return Case(Kind.STREAM if streamed else Kind.DECODE, method, context, batch)


def _prefills(method: Method, options: Options) -> Iterator[Case]:
    """Chunks behind no past, and behind each of the asked ones in order, which the trapezoid rule needs."""
    for depth in (0, *options.prefill_contexts):
        yield Case(Kind.PREFILL, method, depth)


def cached_blocks(method: Method, layout: KvLayout, context: int, batch: int, room_slots: int) -> int | None:
    """Slots per layer for selected blocks, so that `batch` sessions fit into `room_slots`; None if they never do.

    All blocks where there is room, and never less than what one step attends.
    """
    least = method.memory.selection.topk or 0
    wanted = layout.num_blocks(context) + 2 if method.resident or least else 0
    per_session = room_slots // batch // layout.num_layers
    fixed = slots_per_layer(method.memory, layout, 0) - least
    allowed = min(wanted, per_session - fixed)
    if allowed < (wanted if method.resident else least):
        return None
    return allowed
