"""Tiles of packed blocks as numbers in registers of a GPU, for the kernels that attend blocks or expand them.

`layout.py` draws a block. A page is the address of its first byte, a multiple of 64; the parts of a head begin at
multiples of 16, and rows of codes at multiples of 2. Where a function takes channels, these are the `COUNT` from
`FIRST` on, in `PAD` lanes, of which `lanes` tells the channels. A lane without a channel has the number 0.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from moorage.kernels.packed_blocks.layout import PackedLayout
from moorage.kernels.packed_blocks.tables import MOST, LayerTables
from moorage.kernels.triton_support import power_of_2, upload

_MOST = tl.constexpr(float(MOST))
_LEAST = tl.constexpr(2.0**-24)
"""The smallest fp16 above 0."""
_CHUNK = tl.constexpr(32)
"""Outliers that are put in place by one matrix product."""


class DeviceTables(NamedTuple):
    """What a layer's blocks are read by, in fp32 on a device; see `LayerTables`."""

    key_levels: torch.Tensor
    value_levels: torch.Tensor
    key_scale: torch.Tensor
    key_zero: torch.Tensor


def device_tables(tables: LayerTables, device: torch.device) -> DeviceTables:
    """The tables on a device, by one copy that does not wait."""
    arrays = tables.key_levels, tables.value_levels, tables.key_scale, tables.key_zero
    return DeviceTables(*upload(arrays, device))


def pad_of_list(layout: PackedLayout) -> int:
    """Lanes that hold the places of a head's outliers."""
    return power_of_2(layout.capacity, 16)


@triton.jit
def lanes(FIRST: tl.constexpr, COUNT: tl.constexpr, PAD: tl.constexpr, LAYOUT: tl.constexpr):
    """(the channel of each lane, whether the lane has one)."""
    lane = tl.arange(0, PAD)
    MIDDLE: tl.constexpr = LAYOUT.width // 2
    if LAYOUT.bits == 4 and FIRST == 0 and COUNT > MIDDLE:
        # Both codes of a byte are neighbours, so that no lane has to move.
        channel = lane % 2 * MIDDLE + lane // 2
        is_one = (lane // 2 < MIDDLE) & (channel < COUNT)
    else:
        channel = FIRST + lane
        is_one = lane < COUNT
    return channel, is_one


@triton.jit
def _bytes(row, at, seen, is_one):
    return tl.load(row[:, None] + at[None, :], mask=seen[:, None] & is_one[None, :], other=0).to(tl.int32)


@triton.jit
def _codes_4(row, seen, FIRST: tl.constexpr, COUNT: tl.constexpr, PAD: tl.constexpr, LAYOUT: tl.constexpr):
    MIDDLE: tl.constexpr = LAYOUT.width // 2
    c = FIRST + tl.arange(0, PAD)
    is_one = c < FIRST + COUNT
    if FIRST >= MIDDLE:
        codes = _bytes(row, c - MIDDLE, seen, is_one) >> 4
    elif FIRST + COUNT <= MIDDLE:
        codes = _bytes(row, c, seen, is_one) & 15
    elif FIRST == 0:
        b = tl.arange(0, PAD // 2)
        both = _bytes(row, b, seen, b < MIDDLE)
        codes = tl.reshape(tl.join(both & 15, both >> 4), [row.shape[0], PAD])
    else:
        is_high = c >= MIDDLE
        byte = _bytes(row, tl.where(is_high, c - MIDDLE, c), seen, is_one)
        codes = (byte >> tl.where(is_high, 4, 0)[None, :]) & 15
    return codes


@triton.jit
def _codes_2_or_3(
    row, seen, FIRST: tl.constexpr, COUNT: tl.constexpr, PAD: tl.constexpr, LAYOUT: tl.constexpr
):
    if FIRST % 8 == 0:
        # The codes of eight channels are 16 bits of one plane, and 8 bits of the other.
        u, i = tl.arange(0, PAD // 8), tl.arange(0, 8)
        there = seen[:, None] & (8 * u < COUNT)[None, :]
        words = row.to(tl.pointer_type(tl.uint16))[:, None] + (FIRST // 8 + u)[None, :]
        pairs = tl.load(words, mask=there, other=0).to(tl.int32)
        codes = (pairs[:, :, None] >> (2 * i)[None, None, :]) & 3
        if LAYOUT.bits == 3:
            thirds = _bytes(row, LAYOUT.high_plane + FIRST // 8 + u, seen, 8 * u < COUNT)
            codes |= (thirds[:, :, None] >> i[None, None, :] & 1) << 2
        codes = tl.reshape(codes, [row.shape[0], PAD])
    else:
        c = FIRST + tl.arange(0, PAD)
        is_one = c < FIRST + COUNT
        codes = (_bytes(row, c // 4, seen, is_one) >> (2 * (c % 4))[None, :]) & 3
        if LAYOUT.bits == 3:
            thirds = _bytes(row, LAYOUT.high_plane + c // 8, seen, is_one)
            codes |= (thirds >> (c % 8)[None, :] & 1) << 2
    return codes


@triton.jit
def _numbers(
    row,
    seen,
    levels,
    scale,
    zero,
    FIRST: tl.constexpr,
    COUNT: tl.constexpr,
    PAD: tl.constexpr,
    LAYOUT: tl.constexpr,
):
    """zero + scale * level [T, PAD] of rows of codes at `row` [T], limited to the range of fp16."""
    if LAYOUT.bits == 8:
        c = FIRST + tl.arange(0, PAD)
        codes = _bytes(row, c, seen, c < FIRST + COUNT)
    elif LAYOUT.bits == 4:
        codes = _codes_4(row, seen, FIRST, COUNT, PAD, LAYOUT)
    else:
        codes = _codes_2_or_3(row, seen, FIRST, COUNT, PAD, LAYOUT)
    if LAYOUT.uniform:
        level = codes.to(tl.float32)
    else:
        level = tl.load(levels + codes)
    return tl.minimum(tl.maximum(zero + scale * level, -_MOST), _MOST)


@triton.jit
def key_numbers(
    page,
    head,
    rows,
    seen,
    levels,
    layer_scale,
    layer_zero,
    FIRST: tl.constexpr,
    COUNT: tl.constexpr,
    PAD: tl.constexpr,
    LAYOUT: tl.constexpr,
):
    """Keys [T, PAD] of some rows in fp32, without outliers; unseen rows are not read, and hold anything finite."""
    channel, is_one = lanes(FIRST, COUNT, PAD, LAYOUT)
    base = page + head * LAYOUT.head_bytes
    if LAYOUT.key_stats < 0:
        scale = tl.load(layer_scale + head * LAYOUT.width + channel, mask=is_one, other=0.0)
        zero = tl.load(layer_zero + head * LAYOUT.width + channel, mask=is_one, other=0.0)
    else:
        own = (base + LAYOUT.key_stats).to(tl.pointer_type(tl.float16)) + channel
        scale = tl.load(own, mask=is_one, other=0.0).to(tl.float32)
        zero = tl.load(own + LAYOUT.width, mask=is_one, other=0.0).to(tl.float32)
    row = base + LAYOUT.key_codes + rows * LAYOUT.row_bytes
    return _numbers(row, seen, levels, scale[None, :], zero[None, :], FIRST, COUNT, PAD, LAYOUT)


@triton.jit
def value_numbers(page, head, rows, seen, levels, PAD: tl.constexpr, LAYOUT: tl.constexpr):
    """Values [T, PAD] of all channels of some rows in fp32, without outliers; unseen rows are not read."""
    _, is_one = lanes(0, LAYOUT.head_dim, PAD, LAYOUT)
    own = (page + LAYOUT.value_stats + head * LAYOUT.value_stats_stride).to(
        tl.pointer_type(tl.float16)
    ) + rows
    scale = tl.load(own, mask=seen, other=0.0).to(tl.float32)
    zero = tl.load(own + LAYOUT.block_size, mask=seen, other=0.0).to(tl.float32)
    row = page + head * LAYOUT.head_bytes + LAYOUT.value_codes + rows * LAYOUT.row_bytes
    found = _numbers(row, seen, levels, scale[:, None], zero[:, None], 0, LAYOUT.head_dim, PAD, LAYOUT)
    return tl.where(is_one[None, :], found, 0.0)


@triton.jit
def outlier_list(page, head, OF_VALUES: tl.constexpr, LAYOUT: tl.constexpr):
    """(places, exact numbers, how many there are) of the outliers of a head's keys or values."""
    counts = (page + head * LAYOUT.head_bytes + LAYOUT.outliers).to(tl.pointer_type(tl.uint16))
    count = tl.load(counts + OF_VALUES).to(tl.int32)
    places = counts + 2
    if OF_VALUES:
        places += tl.load(counts).to(tl.int32)
    return places, (places + LAYOUT.capacity).to(tl.pointer_type(tl.float16)), count


@triton.jit
def outliers_of_rows(places, count, first_row, num_rows, PAD_LIST: tl.constexpr, LAYOUT: tl.constexpr):
    """[begin, end) of the outliers, whose places ascend, that lie in `num_rows` rows from `first_row` on."""
    n = tl.arange(0, PAD_LIST)
    listed = n < count
    row = tl.load(places + n, mask=listed, other=0).to(tl.int32) // LAYOUT.head_dim
    begin = tl.sum((listed & (row < first_row)).to(tl.int32), axis=0)
    return begin, tl.sum((listed & (row < first_row + num_rows)).to(tl.int32), axis=0)


@triton.jit
def with_outliers(
    numbers,
    rows,
    channel,
    is_one,
    places,
    exact,
    begin,
    end,
    LAYOUT: tl.constexpr,
):
    """Numbers [T, PAD] of `rows` [T] and channels [PAD] with the outliers [begin, end) in place of what codes say.

    Registers have no addresses: a matrix product of rows that are 1 where an outlier is, with channels that are its
    number there, spreads them. Each sum has one term other than 0 at most, so it is exact.
    """
    found = tl.zeros(numbers.shape, tl.float32)
    for first in range(begin, end, _CHUNK):
        n = first + tl.arange(0, _CHUNK)
        listed = n < end
        place = tl.load(places + n, mask=listed, other=0).to(tl.int32)
        number = tl.load(exact + n, mask=listed, other=0.0).to(tl.float32)
        # An outlier of 0 must differ from a place without one.
        number = tl.where(number == 0.0, _LEAST, number)
        is_row = (rows[:, None] == (place // LAYOUT.head_dim)[None, :]) & listed[None, :]
        is_channel = ((place % LAYOUT.head_dim)[:, None] == channel[None, :]) & is_one[None, :]
        spread = tl.where(is_channel, number[:, None], 0.0).to(tl.float16)
        found = tl.dot(is_row.to(tl.float16), spread, found)
    return tl.where(found == 0.0, numbers, found)
