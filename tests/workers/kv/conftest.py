"""A slow store of plain numpy arrays that every link must agree with, and servers to link to."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import pytest
from numpy.typing import NDArray

from moorage.workers.kv.messages import Pooling, SelectRequest
from moorage.workers.spec import AnchorType, KvLayout, KvType

Array = NDArray[np.float32]

SERVE = """
import sys
from moorage.workers.kv.mailbox_server import MailboxServer
from moorage.workers.kv.store import KvStore
from moorage.workers.spec import AnchorType, KvLayout, KvType
server = MailboxServer(KvStore({layout}, {num_pages}), num_threads=1)
print(server.address, flush=True)
sys.stdin.read()
server.close()
"""


@dataclass
class ReferenceStore:
    """Tokens of each session and layer as float32 rows, rounded as they are stored."""

    layout: KvLayout
    rows: dict[tuple[int, int], tuple[Array, Array]] = field(default_factory=dict)
    kept: dict[tuple[int, int], NDArray[np.int32]] = field(default_factory=dict)

    def stored(self, session_id: int, layer: int) -> tuple[Array, Array]:
        """K and V, each [tokens, Hkv, D]."""
        empty = np.zeros((0, self.layout.num_kv_heads, self.layout.head_dim), np.float32)
        return self.rows.get((session_id, layer), (empty, empty))

    def append(self, session_id: int, layer: int, start: int, keys: Array, values: Array) -> None:
        held = self.stored(session_id, layer)
        new = (self._round(np.asarray(keys)), self._round(np.asarray(values)))
        joined = [np.concatenate((old[:start], rows)) for old, rows in zip(held, new, strict=True)]
        self.rows[session_id, layer] = (joined[0], joined[1])

    def truncate(self, session_id: int, num_tokens: int) -> None:
        for (owner, layer), (keys, values) in list(self.rows.items()):
            if owner == session_id:
                self.rows[owner, layer] = (keys[:num_tokens], values[:num_tokens])

    def block(self, session_id: int, layer: int, block: int) -> Array:
        """[2, Hkv, tokens of the block, D]."""
        size = self.layout.block_size
        part = slice(block * size, (block + 1) * size)
        return np.stack([rows[part].swapaxes(0, 1) for rows in self.stored(session_id, layer)])

    def logits(self, session_id: int, layer: int, queries: Array) -> NDArray[np.float64]:
        """[R, Hq, sealed blocks]"""
        num_sealed = len(self.stored(session_id, layer)[0]) // self.layout.block_size
        keys = [self.block(session_id, layer, block)[0] for block in range(num_sealed)]
        rows, heads, _ = queries.shape
        out = np.zeros((rows, heads, num_sealed))
        group = heads // self.layout.num_kv_heads
        for b, block in enumerate(keys):
            for head in range(heads):
                out[:, head, b] = self._bound(queries[:, head].astype(np.float64), block[head // group])
        return out

    def _bound(self, queries: NDArray[np.float64], keys: Array) -> NDArray[np.float64]:
        best = np.full(len(queries), -np.inf)
        for part in np.split(keys, self.layout.anchor_num):
            if self.layout.anchor_type is AnchorType.QUEST:
                score = np.maximum(queries * part.max(0), queries * part.min(0)).sum(1)
            else:
                score = queries @ self._round(part.mean(0)).astype(np.float64)
            best = np.maximum(best, score)
        return best

    def select(self, request: SelectRequest) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
        """(ids, scores), [R, S, k]"""
        logits = request.scale * self.logits(request.session_id, request.layer, request.queries)
        rows, _, count = logits.shape
        choices = 1 if request.shared else self.layout.num_kv_heads
        ids = np.full((rows, choices, request.k), -1, np.int32)
        scores = np.full(ids.shape, -np.inf)
        for row in range(rows):
            allowed = np.arange(request.first, max(request.first, min(int(request.limits[row]), count)))
            kept = self.kept.get((request.session_id, request.layer))
            if request.use_preselected and kept is not None:
                allowed = np.intersect1d(allowed, kept)
            if not len(allowed):
                continue
            pooled = pool(logits[row][:, allowed], request.pooling).reshape(choices, -1, len(allowed))
            pooled = pooled.max(1) if request.pooling is Pooling.MAX else pooled.mean(1)
            for choice in range(choices):
                best = np.sort(np.argsort(-pooled[choice], kind="stable")[: request.k])
                ids[row, choice, : len(best)] = allowed[best]
                scores[row, choice, : len(best)] = pooled[choice][best]
        return ids, scores

    def preselect(
        self, session_id: int, layer: int, queries: Array, *, first: int, limit: int, count: int, scale: float
    ) -> None:
        logits = scale * self.logits(session_id, layer, queries)[:, :, first:limit]
        mass = np.zeros(limit - first)
        share = pool(logits, Pooling.SOFTMAX).sum((0, 1)) if logits.shape[2] else np.zeros(0)
        mass[: len(share)] = share
        spread = mass + 0.25 * np.concatenate((mass[1:], [0])) + 0.25 * np.concatenate(([0], mass[:-1]))
        best = np.argsort(-spread, kind="stable")[:count]
        self.kept[session_id, layer] = np.sort(best + first).astype(np.int32)

    def _round(self, rows: NDArray[np.generic]) -> Array:
        dtype = np.float16 if self.layout.kv_type is KvType.FP16 else np.float32
        return rows.astype(dtype).astype(np.float32)


def pool(logits: NDArray[np.float64], pooling: Pooling) -> NDArray[np.float64]:
    """Per head: the softmax over the last axis, or the logits themselves."""
    if pooling is not Pooling.SOFTMAX:
        return logits
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return np.asarray(weights / weights.sum(-1, keepdims=True))


@pytest.fixture(scope="session")
def reference() -> type[ReferenceStore]:
    return ReferenceStore


@pytest.fixture(scope="module")
def serve_process() -> Iterator[Callable[[KvLayout, int], tuple[str, subprocess.Popen[str]]]]:
    """Starts a mailbox server in a process of its own: (address, process)."""
    started: list[subprocess.Popen[str]] = []

    def serve(layout: KvLayout, num_pages: int) -> tuple[str, subprocess.Popen[str]]:
        text = (
            f"KvLayout({layout.num_layers}, {layout.num_kv_heads}, {layout.head_dim}, {layout.block_size}, "
        )
        text += (
            f"KvType({str(layout.kv_type)!r}), AnchorType({str(layout.anchor_type)!r}), {layout.anchor_num})"
        )
        code = SERVE.format(layout=text, num_pages=num_pages)
        process = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        assert process.stdout is not None
        return process.stdout.readline().strip(), process

    yield serve
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    """A private Ray of two CPUs."""
    import ray

    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        object_store_memory=100 * 2**20,
        configure_logging=False,
    )
    yield
    ray.shutdown()
