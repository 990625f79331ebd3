"""Blocks packed and unpacked one by one, as `layout.py` draws them, in plain numpy."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from moorage.kernels.packed_blocks.layout import PackedLayout
from moorage.kernels.packed_blocks.tables import DEVIATIONS, MOST, LayerTables

Bits = NDArray[np.uint16]
Floats = NDArray[np.float32]
Mask = NDArray[np.bool_]


def encode_block(layout: PackedLayout, tables: LayerTables, block: Bits) -> NDArray[np.uint8]:
    """The bytes of a block [2, Hkv, B, D], given as bits of fp16."""
    packed = np.zeros(layout.block_bytes, np.uint8)
    keys, values = block.view(np.float16).astype(np.float32)
    if layout.key_stats < 0:
        low, high = (each[:, None, : layout.head_dim] for each in (tables.key_low, tables.key_high))
        scale, zero = (each[:, None, : layout.head_dim] for each in (tables.key_scale, tables.key_zero))
        beyond = np.maximum(low - keys, keys - high) * _inverse(scale, MOST)
        listed = _largest(layout.key_capacity, beyond, np.float32(0))
    else:
        listed = _largest(layout.key_capacity, _deviations(keys, axis=(1,)), DEVIATIONS)
        scale, zero = _statistics(layout, keys, listed, axis=(1,))
    wanted = _fed_back(tables, keys, scale, zero, listed) if tables.key_feedback.shape[1] else keys
    _write(layout, packed, 0, keys, scale, zero, tables.key_limits, listed, wanted)
    axis = (2,) if layout.value_stats_stride else (0, 2)
    left = layout.capacity - listed.sum((1, 2))
    apart = _largest(left, _deviations(values, axis), DEVIATIONS)
    scale, zero = _statistics(layout, values, apart, axis)
    _write(layout, packed, 1, values, scale, zero, tables.value_limits, apart)
    return packed


def decode_block(layout: PackedLayout, tables: LayerTables, packed: NDArray[np.uint8]) -> Bits:
    """The block [2, Hkv, B, D] that `packed` holds, as bits of fp16."""
    return decoded_numbers(layout, tables, packed).clip(-MOST, MOST).astype(np.float16).view(np.uint16)


def decoded_numbers(layout: PackedLayout, tables: LayerTables, packed: NDArray[np.uint8]) -> Floats:
    """The block [2, Hkv, B, D] that `packed` holds, before it is rounded to fp16."""
    block = np.empty((2, layout.num_kv_heads, layout.block_size, layout.head_dim), np.float32)
    for part, levels in enumerate((tables.key_levels, tables.value_levels)):
        for head in range(layout.num_kv_heads):
            codes = _read_codes(layout, packed, part, head)
            scale, zero = _read_statistics(layout, packed, tables, part, head)
            rows = zero + scale * (codes.astype(np.float32) if layout.uniform else levels[codes])
            if layout.capacity:
                places, exact = _read_outliers(layout, packed, part, head)
                rows.reshape(-1)[places] = exact
            block[part, head] = rows
    return block


def _inverse(scale: Floats, of_zero: float) -> Floats:
    return np.divide(np.float32(1), scale, out=np.full_like(scale, of_zero), where=scale > 0)


def _deviations(rows: Floats, axis: tuple[int, ...]) -> Floats:
    """How many standard deviations each element is from the mean over `axis`; 0 in a constant vector."""
    wide = rows.astype(np.float64)
    mean = wide.mean(axis, keepdims=True)
    variance = np.maximum((wide * wide).mean(axis, keepdims=True) - mean * mean, 0)
    spread = np.sqrt(variance).astype(np.float32)
    found: Floats = np.abs(rows - mean.astype(np.float32)) * _inverse(spread, 0)
    return found


def _largest(capacity: int | NDArray[np.int64], excess: Floats, least: np.float32) -> Mask:
    """Of each head, the `capacity` elements of largest excess above `least`; of equal ones those that come first."""
    found = np.zeros(excess.shape, np.bool_)
    for head, most in enumerate(np.broadcast_to(capacity, len(excess))):
        of_head = excess[head].reshape(-1)
        places = np.argsort(-of_head, kind="stable")[:most]
        found[head].reshape(-1)[places[of_head[places] > least]] = True
    return found


def _statistics(
    layout: PackedLayout, rows: Floats, apart: Mask, axis: tuple[int, ...]
) -> tuple[Floats, Floats]:
    """Scale and zero point over `axis` of what is not apart, in numbers that fp16 holds."""
    low = np.where(apart, np.float32(np.inf), rows).min(axis, keepdims=True) + np.float32(0)  # -0 becomes 0
    high = np.where(apart, np.float32(-np.inf), rows).max(axis, keepdims=True) + np.float32(0)
    if layout.uniform:
        return _raised((high - low) / np.float32(2**layout.bits - 1)), low
    zero = ((low + high) / 2).astype(np.float16).astype(np.float32)
    return _raised(np.maximum(high - zero, zero - low)), zero


def _fed_back(tables: LayerTables, keys: Floats, scale: Floats, zero: Floats, apart: Mask) -> Floats:
    """Keys [Hkv, B, D] of which each channel makes up for what the codes of those before it have changed."""
    wanted, levels = keys.copy(), tables.key_levels[: len(tables.key_limits) + 1]
    for d in range(keys.shape[2]):
        own_scale, own_zero = scale[..., d], zero[..., d]
        normal = (wanted[..., d] - own_zero) * _inverse(own_scale, 0)
        stored = own_zero + own_scale * levels[(normal[..., None] > tables.key_limits).sum(-1)]
        error = wanted[..., d] - np.where(apart[..., d], keys[..., d], stored)
        wanted[..., d + 1 :] -= tables.key_feedback[:, None, d, d + 1 :] * error[..., None]
    return wanted


def _raised(numbers: Floats) -> Floats:
    """The least fp16 that is not below each number, which is not negative."""
    halves = numbers.astype(np.float16)
    below = halves.astype(np.float32) < numbers
    return (halves.view(np.uint16) + below).view(np.float16).astype(np.float32)


def _write(
    layout: PackedLayout, packed: NDArray[np.uint8], part: int, rows: Floats,
    scale: Floats, zero: Floats, limits: Floats, apart: Mask, wanted: Floats | None = None,
) -> None:  # fmt: skip
    """Codes, statistics and outliers of all keys (part 0) or values (part 1) [Hkv, B, D].

    Codes are those of `wanted`, if it is given.
    """
    normal = ((rows if wanted is None else wanted) - zero) * _inverse(scale, 0)
    if layout.uniform:
        codes = np.floor(normal + np.float32(0.5)).clip(0, 2**layout.bits - 1)
    else:
        codes = (normal[..., None] > limits).sum(-1)
    codes = np.where(apart, 0, codes).astype(np.uint8)
    padding = layout.width - layout.head_dim
    codes = np.pad(codes, ((0, 0), (0, 0), (0, padding)))
    size = layout.block_size * layout.row_bytes
    for head in range(layout.num_kv_heads):
        base = head * layout.head_bytes
        at = base + (layout.value_codes if part else layout.key_codes)
        packed[at : at + size] = _pack(layout, codes[head]).reshape(-1)
        if layout.capacity:
            places = np.flatnonzero(apart[head]).astype(np.uint16)
            exact = rows[head].reshape(-1)[places].astype(np.float16)
            _write_outliers(layout, packed, part, head, places, exact)
        if part:
            stats = [np.broadcast_to(each, (layout.num_kv_heads, *each.shape[1:])) for each in (scale, zero)]
            at = layout.value_stats + head * layout.value_stats_stride
            count = layout.block_size
        elif layout.key_stats >= 0:
            stats = [np.pad(each, ((0, 0), (0, 0), (0, padding))) for each in (scale, zero)]
            at, count = base + layout.key_stats, layout.width
        else:
            continue
        for place, each in enumerate(stats):
            _put(packed, at + 2 * place * count, each[head].reshape(-1).astype(np.float16))


def _write_outliers(
    layout: PackedLayout,
    packed: NDArray[np.uint8],
    part: int,
    head: int,
    places: Bits,
    exact: NDArray[np.float16],
) -> None:
    """Adds the outliers of a head's keys (part 0), or then those of its values (part 1), to its list."""
    counts, first = _counts(layout, packed, head)
    before = int(counts[0]) if part else 0
    _put(packed, first - 4 + 2 * part, np.array([len(places)], np.uint16))
    _put(packed, first + 2 * before, places)
    _put(packed, first + 2 * (layout.capacity + before), exact)


def _counts(layout: PackedLayout, packed: NDArray[np.uint8], head: int) -> tuple[Bits, int]:
    """How many outliers the keys and the values of a head have, and where the list of places begins."""
    at = head * layout.head_bytes + layout.outliers
    return packed[at : at + 4].view(np.uint16), at + 4


def _put(packed: NDArray[np.uint8], at: int, numbers: NDArray[np.uint16] | NDArray[np.float16]) -> None:
    packed[at : at + numbers.nbytes] = numbers.view(np.uint8)


def _halves(packed: NDArray[np.uint8], at: int, count: int) -> Floats:
    return packed[at : at + 2 * count].view(np.float16).astype(np.float32)


def _pack(layout: PackedLayout, codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Rows of codes [B, width] as bytes [B, row_bytes]."""
    if layout.bits == 8:
        return codes
    if layout.bits == 4:
        half = layout.width // 2
        return codes[:, :half] | codes[:, half:] << np.uint8(4)
    pairs = codes.reshape(len(codes), -1, 4) & 3
    low: NDArray[np.uint8] = (pairs << np.array([0, 2, 4, 6], np.uint8)).sum(-1, dtype=np.uint8)
    if layout.bits == 2:
        return low
    return np.concatenate([low, np.packbits(codes >> 2, axis=1, bitorder="little")], 1)


def _read_codes(layout: PackedLayout, packed: NDArray[np.uint8], part: int, head: int) -> NDArray[np.uint8]:
    """Codes [B, D] of a head's keys (part 0) or values (part 1)."""
    at = head * layout.head_bytes + (layout.value_codes if part else layout.key_codes)
    rows = packed[at : at + layout.block_size * layout.row_bytes].reshape(layout.block_size, -1)
    if layout.bits == 4:
        codes = np.concatenate([rows & 15, rows >> 4], 1)
    elif layout.bits < 4:
        pairs = rows[:, : layout.width // 4, None] >> np.array([0, 2, 4, 6], np.uint8) & 3
        codes = pairs.reshape(layout.block_size, -1)
        if layout.bits == 3:
            codes = codes | np.unpackbits(rows[:, layout.high_plane :], axis=1, bitorder="little") << 2
    else:
        codes = rows
    return codes[:, : layout.head_dim]


def _read_statistics(
    layout: PackedLayout, packed: NDArray[np.uint8], tables: LayerTables, part: int, head: int
) -> tuple[Floats, Floats]:
    """Scale and zero point of a head, [1, D] of keys and [B, 1] of values."""
    if part:
        at, count = layout.value_stats + head * layout.value_stats_stride, layout.block_size
        return _halves(packed, at, count)[:, None], _halves(packed, at + 2 * count, count)[:, None]
    if layout.key_stats < 0:
        scale, zero = tables.key_scale[head], tables.key_zero[head]
    else:
        at = head * layout.head_bytes + layout.key_stats
        scale, zero = (_halves(packed, at + place * 2 * layout.width, layout.width) for place in (0, 1))
    return scale[None, : layout.head_dim], zero[None, : layout.head_dim]


def _read_outliers(
    layout: PackedLayout, packed: NDArray[np.uint8], part: int, head: int
) -> tuple[NDArray[np.uint16], Floats]:
    """Places and exact numbers of the outliers of a head's keys (part 0) or values (part 1)."""
    counts, at = _counts(layout, packed, head)
    count, at = int(counts[part]), at + 2 * part * int(counts[0])
    return packed[at : at + 2 * count].view(np.uint16), _halves(packed, at + 2 * layout.capacity, count)
