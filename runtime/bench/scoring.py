"""`bench scoring`: logits of all blocks of a layer, against the memory's bandwidth and against other libraries."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import cycle

import numpy as np
import torch
from numpy.typing import NDArray

from moorage.kernels.block_score import score_blocks
from moorage.kernels.block_select import select_blocks
from moorage.kernels.pool_scores import pool_scores
from moorage.kernels.top_blocks import top_blocks
from moorage.runtime.bench.measure import Subject, installed, interleave
from moorage.runtime.bench.report import Row
from moorage.runtime.bench.threads import Pieces, stream_read, use_threads

Float32 = NDArray[np.float32]

NUM_KV_HEADS, HEAD_DIM, BLOCK_SIZE = 8, 128, 128
COLD_BYTES = 256 * 2**20
"""Layers are read in turn until at least this much has passed, several times a large cache."""
READ_BYTES = 48 * 2**20
"""Read by one run of the limit: enough that handing pieces to threads does not count."""
TOPK = 96
ABSENT = "faiss is not installed, so its columns are missing: pip install faiss-cpu"


@dataclass(frozen=True, slots=True)
class Case:
    """One row of the benchmark: query heads per KV head, anchors per block."""

    name: str
    group: int
    anchor_num: int


CASES = (
    Case("scoring", 1, 1),
    Case("scoring-group4", 4, 1),
    Case("scoring-anchors4", 1, 4),
    Case("scoring-anchors4-group4", 4, 4),
)


class Layers:
    """The anchors of several layers in every form that a competitor likes best."""

    def __init__(self, num_blocks: int, anchor_num: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        shape = (num_blocks, NUM_KV_HEADS, anchor_num, HEAD_DIM)
        half_bytes = 2 * int(np.prod(shape))
        self.count = max(2, -(-COLD_BYTES // half_bytes))
        floats = [rng.standard_normal(shape, np.float32) for _ in range(self.count)]
        self.half = [array.astype(np.float16).view(np.uint16) for array in floats]
        self.heads = [
            np.ascontiguousarray(array.transpose(1, 0, 2, 3).reshape(NUM_KV_HEADS, -1, HEAD_DIM))
            for array in floats
        ]
        self.heads_torch = [torch.from_numpy(array) for array in self.heads]
        self.heads_half = [array.half() for array in self.heads_torch]


def run_scoring(context_tokens: int, threads: Sequence[int], rounds: int) -> Iterator[Row]:
    """Rows of every case and thread count, each against the streaming read of the same bytes, and of top-k."""
    num_blocks = context_tokens // BLOCK_SIZE
    for anchor_num in dict.fromkeys(case.anchor_num for case in CASES):
        layers = Layers(num_blocks, anchor_num, seed=anchor_num)
        indexes = _faiss_indexes(layers) if installed("faiss-cpu") else {}
        for case in (case for case in CASES if case.anchor_num == anchor_num):
            queries = np.random.default_rng(7).standard_normal(
                (1, NUM_KV_HEADS * case.group, HEAD_DIM), np.float32
            )
            for count in threads:
                use_threads(count)
                material = Material(case, layers, queries, indexes)
                yield from _measure(material, context_tokens, count, rounds)


@dataclass(frozen=True, slots=True)
class Material:
    """What one case is measured on."""

    case: Case
    layers: Layers
    queries: Float32
    indexes: dict[str, list[list[object]]]


def _measure(material: Material, context_tokens: int, threads: int, rounds: int) -> Iterator[Row]:
    case, layers, queries, pieces = material.case, material.layers, material.queries, Pieces(threads)
    num_blocks = len(layers.half[0])
    scores = np.empty((1, queries.shape[1], num_blocks), np.float32)
    subjects = {case.name: _own(layers, queries, scores), **_peers(layers, queries)}
    ending = case.name.removeprefix("scoring")
    whole = {f"choosing{ending}": _whole_choice(layers, queries)} if case.anchor_num == 1 else {}
    subjects |= whole
    for name, layered in material.indexes.items():
        subjects[name] = _search(layered, queries)
    turn = cycle(layers.half)
    at_once = max(1, READ_BYTES // layers.half[0].nbytes)
    subjects["read"] = lambda: stream_read(pieces, [next(turn) for _ in range(at_once)])
    taken = interleave(subjects, rounds)
    num_bytes, read_s = layers.half[0].nbytes, taken.pop("read") / at_once
    own = {name: taken.pop(name) for name in (case.name, *whole)}
    for name, seconds in own.items():
        ratios = {peer: peer_s / seconds for peer, peer_s in taken.items()}
        yield Row(name, seconds, context_tokens, threads, num_bytes, read_s / seconds, ratios)
    yield Row(f"{case.name}-limit", read_s, context_tokens, threads, num_bytes)
    if case == CASES[0]:
        # In the order of a selection, so that each finds in the cache what the one before has left there.
        taken = interleave({case.name: subjects[case.name], **_choosing(scores)}, 3 * rounds)
        for name in ("pool", "topk"):
            ratio_to = {case.name: taken[case.name] / taken[name]}
            yield Row(name, taken[name], context_tokens, threads, ratio_to=ratio_to)


def _own(layers: Layers, queries: Float32, scores: Float32) -> Subject:
    pages = np.arange(scores.shape[2], dtype=np.int32)
    turn = cycle(layers.half)
    return lambda: score_blocks(next(turn), pages, queries, False, scores)


def _whole_choice(layers: Layers, queries: Float32) -> Subject:
    """What a decode step does in one layer: scoring, pooling and top-k of the blocks for all heads in one call."""
    num_blocks = len(layers.half[0])
    pages, limits = np.arange(num_blocks, dtype=np.int32), np.array([num_blocks], np.int32)
    ids, best = np.empty((1, 1, TOPK), np.int32), np.empty((1, 1, TOPK), np.float32)
    scratch, turn = np.empty(num_blocks, np.float32), cycle(layers.half)
    return lambda: select_blocks(
        next(turn), pages, queries, limits, quest=False, scale=1.0, ids=ids, scores=best, scratch=scratch
    )


def _choosing(scores: Float32) -> dict[str, Subject]:
    """What follows scoring in a selection: one score per block for all heads, then the best blocks."""
    limits = np.array([scores.shape[2]], np.int32)
    pooled = np.empty((1, 1, scores.shape[2]), np.float32)
    ids, top = np.empty((1, TOPK), np.int32), np.empty((1, TOPK), np.float32)
    pooled[:] = np.random.default_rng(1).standard_normal(pooled.shape)
    chosen = pooled[0].copy()
    return {
        "pool": lambda: pool_scores(scores, NUM_KV_HEADS, True, 1.0, limits, pooled, "sum"),
        "topk": lambda: top_blocks(chosen, limits, TOPK, ids, top),
    }


def _peers(layers: Layers, queries: Float32) -> dict[str, Subject]:
    """Matrix products of numpy and torch: per KV head, anchors [n, D] by queries [D, G]."""
    columns = np.ascontiguousarray(queries.reshape(NUM_KV_HEADS, -1, HEAD_DIM).transpose(0, 2, 1))
    wide, half = torch.from_numpy(columns), torch.from_numpy(columns).half()
    arrays, tensors, halves = cycle(layers.heads), cycle(layers.heads_torch), cycle(layers.heads_half)
    return {
        "numpy": lambda: [head @ column for head, column in zip(next(arrays), columns, strict=True)],
        "torch-half": lambda: next(halves) @ half,
        "torch-float32": lambda: next(tensors) @ wide,
    }


def _faiss_indexes(layers: Layers) -> dict[str, list[list[object]]]:
    """The indexes of each kind: for each layer one per KV head."""
    import faiss

    def fp16() -> object:
        return faiss.IndexScalarQuantizer(HEAD_DIM, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)

    kinds: dict[str, Callable[[], object]] = {
        "faiss-float32": lambda: faiss.IndexFlatIP(HEAD_DIM),
        "faiss-fp16": fp16,
    }
    return {name: [_filled(make, heads) for heads in layers.heads] for name, make in kinds.items()}


def _filled(make: Callable[[], object], heads: Float32) -> list[object]:
    indexes = []
    for vectors in heads:
        index = make()
        index.train(vectors)  # type: ignore[attr-defined]
        index.add(vectors)  # type: ignore[attr-defined]
        indexes.append(index)
    return indexes


def _search(layered: list[list[object]], queries: Float32) -> Subject:
    rows = queries.reshape(NUM_KV_HEADS, -1, HEAD_DIM)
    turn = cycle(layered)

    def search() -> None:
        for index, row in zip(next(turn), rows, strict=True):
            index.search(row, TOPK)  # type: ignore[attr-defined]

    return search
