"""A slow store of plain numpy arrays that every link must agree with, and servers to link to."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import psutil
import pytest
from numpy.typing import NDArray

from moorage.workers.kv.messages import SelectRequest
from moorage.workers.spec import AnchorPool, AnchorSpace, AnchorType, HeadPool, KvLayout, KvType

RAY_ATTEMPTS = 3
Array = NDArray[np.float32]

SERVE = """
import sys
from moorage.workers.kv.mailbox_server import MailboxServer
from moorage.workers.kv.store import KvStore
from moorage.workers.spec import AnchorSpace, AnchorType, KvLayout, KvType
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
    kept: dict[tuple[int, int], tuple[NDArray[np.int32], int]] = field(default_factory=dict)
    importance: dict[tuple[int, int, int], Array] = field(default_factory=dict)
    inv_freq: NDArray[np.float64] | None = None

    def stored(self, session_id: int, layer: int) -> tuple[Array, Array]:
        """K and V, each [tokens, Hkv, D]."""
        empty = np.zeros((0, self.layout.num_kv_heads, self.layout.head_dim), np.float32)
        return self.rows.get((session_id, layer), (empty, empty))

    def append(self, session_id: int, layer: int, start: int, keys: Array, values: Array) -> None:
        held = self.stored(session_id, layer)
        new = (self._round(np.asarray(keys)), self._round(np.asarray(values)))
        self._forget(session_id, layer, start)
        joined = [np.concatenate((old[:start], rows)) for old, rows in zip(held, new, strict=True)]
        self.rows[session_id, layer] = (joined[0], joined[1])

    def truncate(self, session_id: int, num_tokens: int) -> None:
        for (owner, layer), (keys, values) in list(self.rows.items()):
            if owner == session_id:
                self.rows[owner, layer] = (keys[:num_tokens], values[:num_tokens])
                self._forget(owner, layer, num_tokens)

    def _forget(self, session_id: int, layer: int, num_tokens: int) -> None:
        for owner, at, block in list(self.importance):
            if (owner, at) == (session_id, layer) and block >= num_tokens // self.layout.block_size:
                del self.importance[owner, at, block]

    def rebuild_anchors(self, session_id: int, layer: int, first: int, importance: Array) -> None:
        for i, part in enumerate(importance):
            self.importance[session_id, layer, first + i] = part

    def anchors(self, session_id: int, layer: int, block: int, head: int) -> list[list[Array]]:
        """For each sub-block, its vectors."""
        layout, kind = self.layout, self.layout.anchor_type
        keys = self.block(session_id, layer, block)[0][head].astype(np.float64)
        if layout.anchor_space is AnchorSpace.ROTATED:
            assert self.inv_freq is not None
            keys = rotated(keys, block * layout.block_size + np.arange(len(keys)), self.inv_freq)
        parts = np.split(keys, layout.anchor_num)
        importance = self.importance.get((session_id, layer, block))
        if kind.needs_importance and importance is not None:
            num_top = layout.repr_topk if kind is AnchorType.REPR_TOPK else layout.anchor_num
            best = np.argsort(-importance[head], kind="stable")[:num_top]
            found = [[keys[part].mean(0)] for part in np.split(best, layout.anchor_num)]
        elif kind.bounds:
            found = [[part.max(0), part.min(0)] for part in parts]
        elif kind is AnchorType.BLOCK_MAX:
            found = [[part.max(0)] for part in parts]
        else:
            found = [[part[0] if kind is AnchorType.FIXED else part.mean(0)] for part in parts]
        return [[self._round(vector) for vector in vectors] for vectors in found]

    def block(self, session_id: int, layer: int, block: int) -> Array:
        """[2, Hkv, tokens of the block, D]."""
        size = self.layout.block_size
        part = slice(block * size, (block + 1) * size)
        return np.stack([rows[part].swapaxes(0, 1) for rows in self.stored(session_id, layer)])

    def logits(self, request: SelectRequest) -> NDArray[np.float64]:
        """[R, Hq, sealed blocks]"""
        session_id, layer, queries = request.session_id, request.layer, request.queries
        num_sealed = len(self.stored(session_id, layer)[0]) // self.layout.block_size
        rows, heads, _ = queries.shape
        out = np.zeros((rows, heads, num_sealed))
        group = heads // self.layout.num_kv_heads
        for b in range(num_sealed):
            for head in range(heads):
                query = queries[:, head].astype(np.float64)
                scores = []
                for vectors in self.anchors(session_id, layer, b, head // group):
                    ends = [query * vector for vector in vectors]
                    scores.append(np.max(ends, axis=0).sum(1))
                pool = np.sum if request.anchor_pool is AnchorPool.SUM else np.max
                out[:, head, b] = pool(scores, axis=0)
        return out

    def select(self, request: SelectRequest) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
        """(ids, scores), [R, S, k]"""
        logits = request.scale * self.logits(request)
        rows, _, count = logits.shape
        selections = request.num_selections(self.layout.num_kv_heads)
        ids = np.full((rows, selections, request.k), -1, np.int32)
        scores = np.full(ids.shape, -np.inf)
        for row in range(rows):
            allowed = np.arange(request.first, max(request.first, min(int(request.limits[row]), count)))
            kept = self.kept.get((request.session_id, request.layer))
            if request.use_preselected and kept is not None:
                allowed = allowed[np.isin(allowed, kept[0]) | (allowed >= kept[1])]
            if not len(allowed):
                continue
            pooled = pool(logits[row][:, allowed], request.pooling).reshape(selections, -1, len(allowed))
            pooled = pooled.max(1) if request.pooling is HeadPool.MAX else pooled.mean(1)
            for selection in range(selections):
                best = np.sort(np.argsort(-pooled[selection], kind="stable")[: request.k])
                ids[row, selection, : len(best)] = allowed[best]
                scores[row, selection, : len(best)] = pooled[selection][best]
        return ids, scores

    def _round(self, rows: NDArray[np.generic]) -> Array:
        dtype = np.float16 if self.layout.kv_type is KvType.FP16 else np.float32
        return rows.astype(dtype).astype(np.float32)


def rotated(keys: Array, positions: NDArray[np.int64], inv_freq: NDArray[np.float64]) -> Array:
    """Keys [n, D] turned at their positions, channel i with channel i + rd / 2."""
    cos, sin = np.cos(np.outer(positions, inv_freq)), np.sin(np.outer(positions, inv_freq))
    half = len(inv_freq)
    low, high = keys[:, :half], keys[:, half : 2 * half]
    return np.concatenate((low * cos - high * sin, high * cos + low * sin, keys[:, 2 * half :]), axis=1)


def pool(logits: NDArray[np.float64], pooling: HeadPool) -> NDArray[np.float64]:
    """Per head: the softmax over the last axis, or the logits themselves."""
    if pooling is not HeadPool.SOFTMAX:
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
            f"KvType({str(layout.kv_type)!r}), AnchorType({str(layout.anchor_type)!r}), {layout.anchor_num}, "
            f"AnchorSpace({str(layout.anchor_space)!r}), {layout.repr_topk})"
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

    os.environ.update({"RAY_gcs_server_port_wait_time_s": "10"})  # as in runtime/cluster/ray_environment.py
    for attempt in range(1, RAY_ATTEMPTS + 1):
        if _start_ray(last=attempt == RAY_ATTEMPTS):
            break
        with warnings.catch_warnings():
            # What Ray left behind when it gave up would be told in the middle of some later test.
            warnings.simplefilter("ignore", ResourceWarning)
            gc.collect()
    yield
    ray.shutdown()


def _start_ray(*, last: bool) -> bool:
    """Whether Ray has started; on a busy machine its processes may take longer than Ray waits for them."""
    import ray

    before = set(psutil.Process().children(recursive=True))
    try:
        ray.init(
            address="local",
            num_cpus=2,
            include_dashboard=False,
            object_store_memory=100 * 2**20,
            configure_logging=False,
        )
    except Exception as error:
        if last or "timed out" not in str(error).lower():
            raise
        started = set(psutil.Process().children(recursive=True)) - before
        for process in started:
            process.kill()
        psutil.wait_procs(started, timeout=10)
        return False
    return True
