"""A layer of decode session by session and row by row from the definition, in fp64."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from moorage.kernels.block_select.reference import select_blocks
from moorage.kernels.decode_layer.records import (
    FINE,
    NOT_FINITE_ROW,
    Attended,
    Float32,
    LayerMemory,
    Selections,
    SessionBatch,
)
from moorage.kernels.half import from_storage, to_storage

Complex = NDArray[np.complex128]


def decode_layer(
    memory: LayerMemory,
    batch: SessionBatch,
    query: Float32,
    key: Float32,
    value: Float32,
    selections: Selections,
    attended: Attended,
) -> None:
    """See cpu.py; of sessions whose blocks exist."""
    for i in range(len(query)):
        attended.out[i], attended.lse[i] = 0, -np.inf
        attended.failed[i] = FINE if _write(i, memory, batch, key[i], value[i]) else NOT_FINITE_ROW
        if attended.failed[i] == NOT_FINITE_ROW:
            continue
        if selections.selects[i]:
            _select(i, memory, batch, query[i], selections)
        for head in range(len(query[i])):
            kv_head = head * memory.shape.num_kv_heads // len(query[i])
            ids = selections.ids[i, head * selections.ids.shape[1] // len(query[i])]
            blocks = [*range(batch.num_sinks[i]), *ids[ids >= 0]]
            blocks += range(selections.window_first[i], batch.position[i] // memory.shape.block_size + 1)
            _attend(i, memory, batch, query[i, head], kv_head, blocks, attended, head)


def _place(i: int, memory: LayerMemory, batch: SessionBatch, block: int) -> tuple[int, int]:
    """(memory, page) of a block."""
    num_memories = len(memory.table)
    stripe, within = divmod(block, memory.shape.stripe_blocks)
    m = (batch.first_memory[i] + stripe) % num_memories
    local = stripe // num_memories * memory.shape.stripe_blocks + within
    return m, batch.pages[batch.page_start[i, m] + local]


def _write(i: int, memory: LayerMemory, batch: SessionBatch, key: Float32, value: Float32) -> bool:
    block, row = divmod(int(batch.position[i]), memory.shape.block_size)
    m, page = _place(i, memory, batch, block)
    into: Any = memory.arrays[m][page]
    stored = to_storage(np.stack((key, value)), into.dtype == np.uint16)
    into[:, :, row] = stored
    if row == 0:
        into[:, :, 1:] = 0
    return bool(np.isfinite(from_storage(stored)).all())


def _select(i: int, memory: LayerMemory, batch: SessionBatch, query: Float32, selections: Selections) -> None:
    scored = query.astype(np.float64)
    if batch.rotates_scoring:
        scored = _turned(scored, batch.score_cos[i] + 1j * batch.score_sin[i].astype(np.float64))
    candidates = np.arange(batch.num_sinks[i], batch.near_block[i])
    places = [_place(i, memory, batch, int(block)) for block in candidates]
    num_memories = len(memory.table)
    anchors: Any = [memory.arrays[num_memories + m][page] for m, page in places]
    shape = memory.arrays[num_memories].shape[1:]
    ids, scores = selections.ids[i : i + 1], selections.scores[i : i + 1]
    ids[:], scores[:] = -1, -np.inf
    selections.window_first[i] = batch.near_block[i]
    if not anchors or not ids.size:
        return
    select_blocks(
        np.stack(anchors).reshape(len(candidates), *shape), np.arange(len(candidates), dtype=np.int32),
        scored[None].astype(np.float32), np.array([len(candidates)], np.int32),
        quest=memory.shape.bounds, scale=float(batch.scale[i]), ids=ids, scores=scores,
    )  # fmt: skip
    ids[ids >= 0] += batch.num_sinks[i]


def _attend(
    i: int, memory: LayerMemory, batch: SessionBatch, query: Float32, kv_head: int, blocks: list[int],
    attended: Attended, head: int,
) -> None:  # fmt: skip
    """One query head over the rows of `blocks` that the parts of the scheme show."""
    size, logits, values = memory.shape.block_size, [], []
    for block in blocks:
        m, page = _place(i, memory, batch, block)
        rows = from_storage(memory.arrays[m][page][:, kv_head]).astype(np.float64)
        for part in range(batch.num_parts[i]):
            turned = _turned(query.astype(np.float64), batch.query_turn[i, part])
            first = block * size % batch.period if batch.period else block * size
            for row in range(size):
                if not batch.part_low[i, part] <= block * size + row < batch.part_high[i, part]:
                    continue
                seen = rows[0, row]
                if batch.part_rotates[i, part]:
                    offset = batch.offset_cos[row] + 1j * batch.offset_sin[row].astype(np.float64)
                    seen = _turned(seen, batch.bases[first // size] * offset)
                logit, softcap = batch.scale[i] * float(turned @ seen), float(batch.softcap[i])
                logits.append(softcap * np.tanh(logit / softcap) if softcap else logit)
                values.append(rows[1, row])
    if logits:
        peak = max(logits)
        weights = np.exp(np.array(logits) - peak)
        attended.lse[i, head] = peak + np.log(weights.sum())
        attended.out[i, head] = weights @ np.array(values) / weights.sum()


def _turned(x: NDArray[np.float64], turn: Complex) -> NDArray[np.float64]:
    """x [..., D] with channels (j, j + rd / 2) turned by `turn` [rd / 2]."""
    half = len(turn)
    turned = (x[..., :half] + 1j * x[..., half : 2 * half]) * turn
    return np.concatenate((turned.real, turned.imag, x[..., 2 * half :]), axis=-1)
