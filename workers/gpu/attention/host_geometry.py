"""Where the sessions of a compiled call stand in a step: pages, block ranges and positions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from moorage.kernels.decode_layer import MAX_PARTS, SessionBatch
from moorage.workers.gpu.engine.batch import DecodeStep
from moorage.workers.gpu.engine.session_state import WorkerSession
from moorage.workers.gpu.selection.queries import attention_scale, scoring_rotation
from moorage.workers.kv.host_memory import HostMemory


class HostGeometry:
    """Arrays of sessions in layers that share a rotary cache; they are used again in each step.

    A session that comes several times has as many positions in a step.
    """

    def __init__(self, host: HostMemory, sessions: Sequence[WorkerSession], layer: int) -> None:
        """`layer` is one of these layers."""
        count, layout = len(sessions), host.layout
        self._rotary, self._block_size, self._layer = (
            sessions[0].rotations_of(layer),
            layout.block_size,
            layer,
        )
        half = self._rotary.offset_cos.shape[1]
        scale = attention_scale(sessions[0], layer)
        distinct = list(dict.fromkeys(session.session_id for session in sessions))
        tables = [host.tables(session_id) for session_id in distinct]
        table_of = [distinct.index(session.session_id) for session in sessions]
        num_links = len(tables[0].pages)
        lengths = [len(pages) for table in tables for pages in table.pages]
        ends = np.cumsum([0, *lengths], dtype=np.int64)
        starts = ends[np.array(table_of)[:, None] * num_links + np.arange(num_links + 1)]
        turns = np.zeros((count, MAX_PARTS, half), np.complex128)
        low_high = np.zeros((2, count, MAX_PARTS), np.int64)
        scoring = np.zeros((2, count, half), np.float32)
        self._batch = SessionBatch(
            position=np.zeros(count, np.int64),
            pages=np.concatenate([pages for table in tables for pages in table.pages], dtype=np.int32),
            page_start=starts,
            first_memory=np.array([tables[at].first_link for at in table_of], np.int32),
            num_sinks=np.zeros(count, np.int32),
            near_block=np.zeros(count, np.int32),
            scale=np.full(count, scale, np.float32),
            softcap=np.full(count, sessions[0].softcap, np.float32),
            num_parts=np.zeros(count, np.int32),
            part_low=low_high[0],
            part_high=low_high[1],
            part_rotates=np.zeros((count, MAX_PARTS), np.uint8),
            query_turn=turns,
            period=self._rotary.scheme.period,
            bases=self._rotary.bases,
            offset_cos=self._rotary.offset_cos,
            offset_sin=self._rotary.offset_sin,
            score_cos=scoring[0],
            score_sin=scoring[1],
            rotates_scoring=False,
            raw_pages=np.stack([tables[at].raw_pages for at in table_of]),
        )

    def of(self, steps: Sequence[DecodeStep]) -> SessionBatch:
        """The arrays of a step."""
        batch, rotates = self._batch, False
        for row, step in enumerate(steps):
            ranges = step.ranges
            batch.position[row], batch.near_block[row] = ranges.position, ranges.near_block
            batch.num_sinks[row] = ranges.num_sinks
            self._set_parts(row, ranges.position)
            rotation = scoring_rotation(step.session, self._layer, ranges.position)
            if rotation is not None:
                rotates, batch.score_cos[row], batch.score_sin[row] = True, *rotation
        bases = self._rotary.bases_until(max(step.ranges.position for step in steps) // self._block_size)
        return batch._replace(bases=bases, rotates_scoring=rotates)

    def _set_parts(self, row: int, position: int) -> None:
        batch, scheme = self._batch, self._rotary.scheme
        parts = scheme.parts(position, position + 1)
        batch.num_parts[row] = len(parts)
        for at, part in enumerate(parts):
            batch.part_low[row, at], batch.part_high[row, at] = part.clipped(position, position + 1)
            batch.part_rotates[row, at] = scheme.rotates_keys(part.variant)
            batch.query_turn[row, at] = self._rotary.query_turn(part.variant, position)
