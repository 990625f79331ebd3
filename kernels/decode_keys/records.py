"""What a layer of decode needs beside its sessions to select single keys, and the memory it works in."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Int32 = NDArray[np.int32]
UInt8 = NDArray[np.uint8]


class KeySelections(NamedTuple):
    """Which single keys the sessions attend in this layer beside sinks and window."""

    selects: UInt8
    """[N]: 1 selects; 0 attends no single key."""
    positions: Int32
    """[N, Hkv, k], written: the tokens of the selected keys, ascending, padded at the end with -1."""
    lse: Float32
    """[N, Hq], written where a session selects: log-sum-exp of the keys that are attended, without all others."""
    is_rotated: bool
    """Whether codes and means are of keys that are rotated at their own positions."""
    base_turns: Float32
    """[rows, 2, rd / 2]: cosines and sines of `SessionBatch.bases`."""
    offset_turns: Float32
    """[B, 2, rd / 2]: cosines and sines of a key's place in its block."""
    completes: bool = True
    """Whether the means of blocks stand for the keys that are not selected."""


class Layer(NamedTuple):
    """All that one call works on."""

    table: Any
    empty: Any
    shape: Any
    batch: Any
    query: Any
    keys: Any
    """KeySelections"""
    attended: Any
    memory: Any
    first: Any
    """The arrays that `all_memory` gives."""
    head_codes: Any
    """Bytes of the codes of one head of a block, see `kernels.key_codes`."""
    packed: Any
    """The field of `LayerMemory`: None where blocks are not packed."""
    kept: Any
    """Kept"""


class Kept(NamedTuple):
    """The blocks that each KV head of a session with a first level scans; others scan all candidates.

    To the scan the j-th of them is block num_sinks + j.
    """

    has: Any
    """[N]: whether a session has a first level."""
    blocks: Any
    """[N * Hkv, most]: ascending."""
    counts: Any
    """[N * Hkv]"""


class FirstLevel(NamedTuple):
    """The work on the centres of all candidates, UNIT_BLOCKS blocks at a time."""

    units: Any
    """[N + 1]: the first unit of each session; one without a first level has none."""
    less: Any
    """[N * Hkv, G]: what a score is relative to."""
    queries: Any
    """[N, R, Hq, bytes] int8 of the Runs."""
    terms: Any
    """[N, R, Hq, 3]"""
    scores: Any
    """[N * Hkv, most]: of each candidate."""


class Runs(NamedTuple):
    """Blocks whose keys one rotation of a session's queries meets, R runs for each session at most."""

    bounds: Any
    """[N, R, 2]: blocks [first, end); none where both are equal."""
    queries: Any
    """[N, R, Hq, D], scaled, as they meet the codes."""
    tables: Any
    """[N, R, Hq, D / 8, 2, TABLE_BYTES] of `make_tables`."""
    terms: Any
    """[N, R, Hq, 2] of `make_tables`."""


class Slices(NamedTuple):
    """The candidates of each session in slices of a fixed length, and what is found in each for each KV head.

    The row of KV head h of a slice is slice * Hkv + h.
    """

    first: Any
    """[N + 1]: the first slice of each session."""
    less: Any
    """[N * Hkv, G]: log-sum-exp of what is always attended; weights are relative to it."""
    threshold: Any
    """[N * Hkv]"""
    ids: Any
    """[rows, most]: keys above the threshold, numbered from the first candidate on."""
    values: Any
    """[rows, most]"""
    counts: Any
    """[rows]"""
    weights: Any
    """[rows, G, blocks of a slice + LANES]: weight of a key at the logit of its block's mean, where means stand for
    keys."""
    rest: Any
    """[rows, G]: the sum of the weights of all blocks."""
    rest_sums: Any
    """[rows, G, D]: the sum of the blocks' mean values by their weights."""
    halves: Any
    """An array of fp16 bits, the type of mean values."""


class Selected(NamedTuple):
    """The keys that each session and KV head attends, n at most."""

    counts: Any
    """[N * Hkv]"""
    blocks: Any
    places: Any
    """[N * Hkv, n]: their blocks, and where they stand in these; positions ascend."""
    rows: Any
    """[N * Hkv, n]: elements of all memory at which the keys begin; their blocks, where these are packed."""


class Parts(NamedTuple):
    """What is attended of each chunk of a head's selected keys."""

    own: Any
    """[chunks, G]: weight of the keys."""
    less: Any
    """[chunks, G]: weight that they had as keys of their blocks."""
    sums: Any
    """[chunks, G, D]: values of the keys by their weights, less the blocks' mean values by theirs."""
