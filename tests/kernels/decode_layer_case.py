"""Sessions of any length, scheme and place for tests of `kernels.decode_layer`."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from moorage.kernels.decode_layer import Attended, LayerMemory, LayerShape, Selections, SessionBatch
from moorage.kernels.half import from_storage, to_storage

ROPE, CLAMPED, DCA = "rope", "clamped", "dca"


@dataclass(frozen=True)
class Setting:
    """What a test varies."""

    positions: tuple[int, ...] = (200,)
    num_memories: int = 1
    stripe: int = 2
    heads: int = 2
    group: int = 2
    dim: int = 32
    rotated: int = 32
    block: int = 16
    scheme: str = ROPE
    bounds: bool = False
    rotates_scoring: bool = False
    k: int = 4
    num_selections: int = 1
    selects: bool = True
    window: int = 40
    sinks: int = 1
    softcap: float = 0.0


class Case:
    """The arrays of one setting, drawn anew; blocks are written as if the sessions had generated them."""

    def __init__(self, rng, storage, setting: Setting) -> None:
        self.setting = s = setting
        n, vectors = len(s.positions), 2 if s.bounds else 1
        per_memory = [self._counts(p) for p in s.positions]
        firsts = rng.integers(0, s.num_memories, n)
        held = np.array([np.roll(counts, first) for counts, first in zip(per_memory, firsts, strict=True)])
        held = held.reshape(n, s.num_memories).astype(np.int64)
        num_pages = held.sum(axis=0) + 3
        half = storage == np.uint16

        def draw(*shape):
            return to_storage(rng.standard_normal(shape).astype(np.float32), half)

        self.kv = [draw(p, 2, s.heads, s.block, s.dim) for p in num_pages]
        self.anchors = [draw(p, s.heads, vectors, s.dim) for p in num_pages]
        if s.bounds:
            for m, stored in enumerate(self.anchors):
                values = from_storage(stored)
                values[:, :, 0], values[:, :, 1] = values.max(axis=2), values.min(axis=2)
                self.anchors[m] = to_storage(values, half)
        self.codes = [np.zeros((p, 0), np.uint8) for p in num_pages]
        dealt = [list(rng.permutation(p)) for p in num_pages]
        page_lists = [
            [[dealt[m].pop() for _ in range(held[i, m])] for m in range(s.num_memories)] for i in range(n)
        ]
        self.pages = page_lists
        lengths = np.array([[0, *map(len, one)] for one in page_lists], np.int64).reshape(
            n, s.num_memories + 1
        )
        begin = np.concatenate(([0], lengths.sum(axis=1).cumsum()))[:n]
        self.page_start = lengths.cumsum(axis=1) + begin[:, None]
        flat = [page for one in page_lists for pages in one for page in pages]
        self.memory = LayerMemory.of(
            LayerShape(s.heads, s.block, s.dim, s.stripe, s.bounds),
            self.kv,
            self.anchors,
            self.codes,
        )
        self.batch = self._batch(rng, np.array(flat, np.int32), firsts.astype(np.int32))
        query_heads = s.heads * s.group
        self.query = rng.standard_normal((n, query_heads, s.dim)).astype(np.float32)
        self.key, self.value = (rng.standard_normal((n, s.heads, s.dim)).astype(np.float32) for _ in range(2))
        ids = np.full((n, s.num_selections, s.k), -77, np.int32)
        window_first = self.batch.near_block.copy()
        if not s.selects:
            window_first = self._give_ids(rng, ids)
        self.selections = Selections(
            np.full(n, s.selects, np.uint8),
            ids,
            np.full(ids.shape, np.nan, np.float32),
            window_first,
        )
        self.attended = self.new_attended()

    def _counts(self, position: int) -> list[int]:
        """Blocks up to `position` by stripe."""
        s, found = self.setting, [0] * self.setting.num_memories
        for block in range(position // s.block + 1):
            found[block // s.stripe % s.num_memories] += 1
        return found

    def _batch(self, rng, pages, firsts) -> SessionBatch:
        s, n, half = self.setting, len(self.setting.positions), self.setting.rotated // 2
        position = np.array(s.positions, np.int64)
        near = np.maximum(0, position - s.window + 1) // s.block
        num_parts = np.zeros(n, np.int32)
        low, high, rotates = (
            np.zeros((n, 3), np.int64),
            np.zeros((n, 3), np.int64),
            np.zeros((n, 3), np.uint8),
        )
        variant = np.zeros((n, 3), np.int64)
        chunk = 3 * s.block
        for i, p in enumerate(s.positions):
            parts = {
                ROPE: [(0, p + 1, 1, p)],
                CLAMPED: [(0, p - s.window + 1, 0, s.window - 1), (max(0, p - s.window + 1), p + 1, 1, p)],
                DCA: [
                    (0, (p // chunk - 1) * chunk, 1, 4 * s.block),
                    (max(0, (p // chunk - 1) * chunk), p // chunk * chunk, 1, chunk + p % chunk),
                    (p // chunk * chunk, p + 1, 1, p % chunk),
                ],
            }[s.scheme]
            parts = [part for part in parts if part[0] < part[1]]
            num_parts[i] = len(parts)
            for j, part in enumerate(parts):
                low[i, j], high[i, j], rotates[i, j], variant[i, j] = part
        inv_freq = 1000.0 ** -(np.arange(half) / max(1, half))

        def turn(positions):
            return np.exp(1j * np.multiply.outer(positions, inv_freq))

        offsets, score = turn(np.arange(s.block)), turn(rng.integers(0, 99, n))
        rows = int(max(s.positions, default=0)) // s.block + 1
        parts_of_real = [
            part.astype(np.float32) for whole in (offsets, score) for part in (whole.real, whole.imag)
        ]
        return SessionBatch(
            position, pages, self.page_start, firsts, np.minimum(s.sinks, near).astype(np.int32),
            near.astype(np.int32), rng.uniform(0.1, 0.4, n).astype(np.float32),
            np.full(n, s.softcap, np.float32), num_parts, low, high, rotates,
            turn(variant), chunk if s.scheme == DCA else 0, turn(np.arange(rows) * s.block), *parts_of_real,
            s.rotates_scoring,
        )  # fmt: skip

    def _give_ids(self, rng, ids):
        """Some candidates, of which the last blocks have left the window since; returns window_first."""
        ids[:] = -1
        first = self.batch.near_block.copy()
        for i, near in enumerate(self.batch.near_block):
            first[i] = max(self.batch.num_sinks[i], near - 2)
            candidates = np.arange(self.batch.num_sinks[i], first[i])
            for row in ids[i]:
                some = rng.permutation(candidates)[: rng.integers(0, len(row) + 1)]
                row[: len(some)] = np.sort(some)
        return first

    def new_attended(self) -> Attended:
        """Outputs full of what must not stay."""
        n, heads, dim = self.query.shape
        return Attended(
            np.full((n, heads, dim), np.nan, np.float32), np.full((n, heads), np.nan, np.float32),
            np.full(n, 77, np.int32),
        )  # fmt: skip

    def run(self, decode) -> tuple[Selections, Attended, list[np.ndarray]]:
        """What `decode` makes of copies: (selections, attended, keys and values)."""
        kv = [array.copy() for array in self.kv]
        memory = LayerMemory.of(self.memory.shape, kv, self.anchors, self.codes)
        selections, attended = self.selections, self.new_attended()
        selections = selections._replace(
            ids=selections.ids.copy(),
            scores=selections.scores.copy(),
            window_first=selections.window_first.copy(),
        )
        decode(memory, self.batch, self.query, self.key, self.value, selections, attended)
        return selections, attended, kv

    def only(self, i: int) -> Case:
        """Session i alone, in the same memory."""
        one = slice(i, i + 1)
        alone = object.__new__(Case)
        alone.__dict__.update(self.__dict__)
        alone.setting = replace(self.setting, positions=self.setting.positions[one])
        shared = {"pages", "period", "bases", "offset_cos", "offset_sin", "rotates_scoring"}
        alone.batch = SessionBatch(
            *(v if name in shared else v[one] for name, v in self.batch._asdict().items())
        )
        alone.query, alone.key, alone.value = self.query[one], self.key[one], self.value[one]
        alone.selections = Selections(*(array[one] for array in self.selections))
        return alone

    def rows(self, rng, count: int) -> Case:
        """The last `count` positions of the only session, which select nothing, in the same memory."""
        (last,) = self.setting.positions
        found = object.__new__(Case)
        found.__dict__.update(self.__dict__)
        found.setting = s = replace(
            self.setting, positions=tuple(range(last - count + 1, last + 1)), selects=False, k=0
        )
        found.page_start = np.repeat(self.page_start, count, axis=0)
        batch = found._batch(rng, self.batch.pages, np.repeat(self.batch.first_memory, count))
        found.batch = batch._replace(scale=np.full(count, batch.scale[0]))
        query_heads = s.heads * s.group
        found.query = rng.standard_normal((count, query_heads, s.dim)).astype(np.float32)
        found.key, found.value = rng.standard_normal((2, count, s.heads, s.dim)).astype(np.float32)
        ids = np.full((count, 1, 0), -1, np.int32)
        found.selections = Selections(
            np.zeros(count, np.uint8), ids, np.empty(ids.shape, np.float32), found.batch.num_sinks.copy()
        )
        found.attended = found.new_attended()
        return found
