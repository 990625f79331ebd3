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
def raw_codes(row, seen, FIRST: tl.constexpr, COUNT: tl.constexpr, PAD: tl.constexpr, LAYOUT: tl.constexpr):
    """What `codes_of` takes apart, of rows of codes at `row` [T]: small, so that it is read long before it is used.

    A pair, whose second part only 3 bits have. Unseen rows are not read.
    """
    MIDDLE: tl.constexpr = LAYOUT.width // 2
    c = FIRST + tl.arange(0, PAD)
    is_one = c < FIRST + COUNT
    # The codes of eight channels are 16 bits of one plane, and 8 bits of the other.
    u = tl.arange(0, PAD // 8)
    raw, thirds = 0, 0
    if LAYOUT.bits == 8:
        raw = _bytes(row, c, seen, is_one)
    elif LAYOUT.bits == 4:
        if FIRST >= MIDDLE:
            raw = _bytes(row, c - MIDDLE, seen, is_one)
        elif FIRST + COUNT <= MIDDLE:
            raw = _bytes(row, c, seen, is_one)
        elif FIRST == 0:
            b = tl.arange(0, PAD // 2)
            raw = _bytes(row, b, seen, b < MIDDLE)
        else:
            raw = _bytes(row, tl.where(c < MIDDLE, c, c - MIDDLE), seen, is_one)
    elif FIRST % 8 == 0:
        words = row.to(tl.pointer_type(tl.uint16))[:, None] + (FIRST // 8 + u)[None, :]
        raw = tl.load(words, mask=seen[:, None] & (8 * u < COUNT)[None, :], other=0).to(tl.int32)
        if LAYOUT.bits == 3:
            thirds = _bytes(row, LAYOUT.high_plane + FIRST // 8 + u, seen, 8 * u < COUNT)
    else:
        raw = _bytes(row, c // 4, seen, is_one)
        if LAYOUT.bits == 3:
            thirds = _bytes(row, LAYOUT.high_plane + c // 8, seen, is_one)
    return raw, thirds


@triton.jit
def _codes_4(raw, FIRST: tl.constexpr, COUNT: tl.constexpr, PAD: tl.constexpr, LAYOUT: tl.constexpr):
    MIDDLE: tl.constexpr = LAYOUT.width // 2
    if FIRST >= MIDDLE:
        codes = raw >> 4
    elif FIRST + COUNT <= MIDDLE:
        codes = raw & 15
    elif FIRST == 0:
        codes = tl.reshape(tl.join(raw & 15, raw >> 4), [raw.shape[0], PAD])
    else:
        is_high = FIRST + tl.arange(0, PAD) >= MIDDLE
        codes = (raw >> tl.where(is_high, 4, 0)[None, :]) & 15
    return codes


@triton.jit
def _codes_2_or_3(raw, thirds, FIRST: tl.constexpr, PAD: tl.constexpr, LAYOUT: tl.constexpr):
    if FIRST % 8 == 0:
        i = tl.arange(0, 8)[None, None, :]
        codes = (raw[:, :, None] >> (2 * i)) & 3
        if LAYOUT.bits == 3:
            codes |= (thirds[:, :, None] >> i & 1) << 2
        codes = tl.reshape(codes, [raw.shape[0], PAD])
    else:
        c = FIRST + tl.arange(0, PAD)[None, :]
        codes = (raw >> (2 * (c % 4))) & 3
        if LAYOUT.bits == 3:
            codes |= (thirds >> (c % 8) & 1) << 2
    return codes


@triton.jit
def numbers_of(
    raw,
    levels,
    scale,
    zero,
    FIRST: tl.constexpr,
    COUNT: tl.constexpr,
    PAD: tl.constexpr,
    LAYOUT: tl.constexpr,
):
    """zero + scale * level [T, PAD] in fp32 of what `raw_codes` has read, limited to the range of fp16."""
    if LAYOUT.bits == 8:
        codes = raw[0]
    elif LAYOUT.bits == 4:
        codes = _codes_4(raw[0], FIRST, COUNT, PAD, LAYOUT)
    else:
        codes = _codes_2_or_3(raw[0], raw[1], FIRST, PAD, LAYOUT)
    if LAYOUT.uniform:
        level = codes.to(tl.float32)
    else:
        level = tl.load(levels + codes)
    return tl.minimum(tl.maximum(zero + scale * level, -_MOST), _MOST)


@triton.jit
def key_rows(page, head, rows, LAYOUT: tl.constexpr):
    """Where rows of codes of a head's keys begin."""
    return page + head * LAYOUT.head_bytes + LAYOUT.key_codes + rows * LAYOUT.row_bytes


@triton.jit
def value_rows(page, head, rows, LAYOUT: tl.constexpr):
    """Where rows of codes of a head's values begin."""
    return page + head * LAYOUT.head_bytes + LAYOUT.value_codes + rows * LAYOUT.row_bytes


@triton.jit
def key_statistics(page, head, layer_scale, layer_zero, channel, is_one, LAYOUT: tl.constexpr):
    """(scale, zero point) [PAD] of channels in fp32, 0 in lanes without one."""
    if LAYOUT.key_stats < 0:
        scale = tl.load(layer_scale + head * LAYOUT.width + channel, mask=is_one, other=0.0)
        zero = tl.load(layer_zero + head * LAYOUT.width + channel, mask=is_one, other=0.0)
    else:
        own = (page + head * LAYOUT.head_bytes + LAYOUT.key_stats).to(tl.pointer_type(tl.float16)) + channel
        scale = tl.load(own, mask=is_one, other=0.0).to(tl.float32)
        zero = tl.load(own + LAYOUT.width, mask=is_one, other=0.0).to(tl.float32)
    return scale, zero


@triton.jit
def value_statistics(page, head, rows, seen, LAYOUT: tl.constexpr):
    """(scale, zero point) [T] of rows in fp32, 0 of unseen ones."""
    own = (page + LAYOUT.value_stats + head * LAYOUT.value_stats_stride).to(
        tl.pointer_type(tl.float16)
    ) + rows
    scale = tl.load(own, mask=seen, other=0.0).to(tl.float32)
    return scale, tl.load(own + LAYOUT.block_size, mask=seen, other=0.0).to(tl.float32)


@triton.jit
def outlier_list(page, head, LAYOUT: tl.constexpr):
    """(places, exact numbers, how many keys have, how many values have) of a head's outliers, those of keys first."""
    counts = (page + head * LAYOUT.head_bytes + LAYOUT.outliers).to(tl.pointer_type(tl.uint16))
    places = counts + 2
    exact = (places + LAYOUT.capacity).to(tl.pointer_type(tl.float16))
    return places, exact, tl.load(counts).to(tl.int32), tl.load(counts + 1).to(tl.int32)


@triton.jit
def rows_of_list(places, PAD_LIST: tl.constexpr, LAYOUT: tl.constexpr):
    """The row [PAD_LIST] that each place of a list names; places that nothing uses name row 0."""
    n = tl.arange(0, PAD_LIST)
    return tl.load(places + n, mask=n < LAYOUT.capacity, other=0).to(tl.int32) // LAYOUT.head_dim


@triton.jit
def outliers_of_rows(listed_rows, first, end, first_row, num_rows, PAD_LIST: tl.constexpr):
    """[begin, end) of the outliers [first, end) of a list, whose rows ascend, that lie in some rows of the block."""
    n = tl.arange(0, PAD_LIST)
    listed = (n >= first) & (n < end)
    before = tl.sum((listed & (listed_rows < first_row)).to(tl.int32), axis=0)
    within = tl.sum((listed & (listed_rows < first_row + num_rows)).to(tl.int32), axis=0)
    return first + before, first + within


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
