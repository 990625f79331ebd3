"""Packed blocks on a GPU beside blocks of fp16: how soon they are in slots, and how soon they are attended."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from moorage.runtime.bench.gpu.ceilings import Ceilings, seconds
from moorage.runtime.bench.gpu.options import Options
from moorage.runtime.bench.report import Row
from moorage.workers.gpu.transfer.packed_copies import PackedOperand
from moorage.workers.kv.formats import format_of
from moorage.workers.kv.formats.base import PackedFormat
from moorage.workers.spec import BlockShape, KvType, ModelSpec

FORMATS = (KvType.NUQ3, KvType.INT8, KvType.NUQ4)
"""Each compiles two kernels, some ten seconds in all."""
BLOCK_SIZE = 128
TOKENS = 64 * 1024
"""Tokens of one layer: 268 MB in fp16 for 8 heads of 128 channels, more than the caches of a GPU hold."""
DISTINCT_BLOCKS = 8
"""Blocks that are packed; they come again and again."""


@dataclass(frozen=True, slots=True)
class PackedLayerBlocks:
    """The blocks of one layer in one format."""

    here: torch.Tensor
    """uint8 [n, block_bytes], pinned where there is a GPU."""
    there: torch.Tensor
    """The same on the device."""
    operand: PackedOperand | None
    """None in fp16."""


class PackedCase:
    """Blocks of one layer of a model in any format, the slots that they go to, and a query over all of them."""

    def __init__(self, options: Options, model: ModelSpec, num_blocks: int, block_size: int) -> None:
        from moorage.kernels.attention_steps.triton import Turns

        self._device, self._cuda, self.num_blocks = options.device, options.cuda, num_blocks
        self._shape = BlockShape(model.num_kv_heads, block_size, model.head_dim)
        self._scale = model.head_dim**-0.5
        rng, half = np.random.default_rng(0), model.head_dim // 2
        drawn = rng.standard_normal((min(DISTINCT_BLOCKS, num_blocks), 2, *self._shape), np.float32)
        self._few = drawn.astype(np.float16)
        slots = (num_blocks, 2, *self._shape)
        self.slots = torch.zeros(slots, dtype=torch.float16, device=self._device)
        self._places = torch.arange(num_blocks, dtype=torch.int32, device=self._device)
        number = np.arange(num_blocks, dtype=np.int32)
        fields = number, 0 * number, 0 * number + block_size, 0 * number, number, 0 * number + 1
        self._entries = torch.from_numpy(np.stack(fields)).to(self._device)
        self._first = torch.tensor([0, num_blocks], dtype=torch.int32, device=self._device)
        angles = (torch.rand(rows, half, device=self._device) for rows in (num_blocks, block_size))
        self._turns = Turns(*(part for each in angles for part in (torch.cos(each), torch.sin(each))))
        self._queries = torch.randn(1, model.num_heads, model.head_dim, device=self._device)

    def blocks(self, kv_type: KvType) -> PackedLayerBlocks:
        """All blocks in a format; one that takes a quantizer goes without."""
        format, operand = format_of(kv_type), None
        if isinstance(format, PackedFormat):
            from moorage.kernels.packed_blocks.triton import device_tables

            codec = format.codec(self._shape)
            few = np.zeros((len(self._few), codec.layout_of(0).block_bytes), np.uint8)
            codec.encode(0, self._few.view(np.uint16), few, np.arange(len(few), dtype=np.int32))
            operand = PackedOperand(codec.layout_of(0), device_tables(codec.tables_of(0), self._device))
        else:
            few = self._few.view(np.uint8).reshape(len(self._few), -1)
        here = torch.empty((self.num_blocks, few.shape[1]), dtype=torch.uint8, pin_memory=self._cuda)
        here.numpy()[:] = few[np.arange(self.num_blocks) % len(few)]
        return PackedLayerBlocks(here, here.to(self._device), operand)

    def read(self, blocks: PackedLayerBlocks) -> None:
        """A kernel reads all blocks from the host, into slots of fp16."""
        self._expand(blocks, blocks.here)

    def copy(self, blocks: PackedLayerBlocks) -> None:
        """DMA copies all blocks to the device, where packed ones are then expanded into slots."""
        if blocks.operand is None:
            self.slots.view(torch.uint8).view(blocks.here.shape).copy_(blocks.here, non_blocking=True)
        else:
            blocks.there.copy_(blocks.here, non_blocking=True)
            self._expand(blocks, blocks.there)

    def _expand(self, blocks: PackedLayerBlocks, stored: torch.Tensor) -> None:
        from moorage.kernels.block_gather.triton import gather_pieces
        from moorage.kernels.packed_gather.triton import expand_blocks

        if blocks.operand is None:
            halves = stored.view(torch.float16).view(self.slots.shape)
            gather_pieces(halves, self._places, self.slots, self._places)
        else:
            expand_blocks(*blocks.operand, stored, self._places, self.slots, self._places)

    def attend(self, blocks: PackedLayerBlocks, from_host: bool = False) -> torch.Tensor:
        """[1, Hq, D] over all blocks on the device, or in the host's memory."""
        from moorage.kernels.attention_steps.triton import splits_for
        from moorage.kernels.block_attention.triton import attend_lists
        from moorage.kernels.packed_attention.triton import attend_packed_lists

        stored = blocks.here if from_host else blocks.there
        splits = splits_for(self.num_blocks, self._shape.num_kv_heads, self._device)
        lists = self._entries, self._first, self._turns, self._scale, 1, splits
        if blocks.operand is None:
            halves = stored.view(torch.float16).view(self.slots.shape)
            return attend_lists(self._queries, halves, *lists)[0]
        layout, tables = blocks.operand
        return attend_packed_lists(layout, tables, self._queries, stored, *lists)[0]


def measure_packed(
    options: Options,
    model: ModelSpec,
    ceilings: Ceilings,
    tokens: int = TOKENS,
    block_size: int = BLOCK_SIZE,
    formats: Sequence[KvType] = FORMATS,
) -> Iterator[Row]:
    """Rows by format that the options want; each stands against fp16 and against the link or the device's memory."""
    case = PackedCase(options, model, tokens // block_size, block_size)
    exact_s: dict[str, float] = {}
    for kv_type in (KvType.FP16, *formats):
        blocks = case.blocks(kv_type)
        for name, run in _runs(case, blocks):
            row_name = f"packed-{name}-{kv_type.value}"
            if not options.wants(row_name):
                continue
            taken = seconds(run, options.device)
            exact_s.setdefault(name, taken)
            limit = ceilings.device_bytes_per_s if name == "attend" else ceilings.link_bytes_per_s
            ratios = {} if kv_type is KvType.FP16 else {"FP16": exact_s[name] / taken}
            size = blocks.here.numel()
            yield Row(row_name, taken, tokens, None, size, size / limit / taken, ratios)


def _runs(case: PackedCase, blocks: PackedLayerBlocks) -> Iterator[tuple[str, Callable[[], object]]]:
    yield "gather-by-kernel", partial(case.read, blocks)
    yield "gather-by-dma", partial(case.copy, blocks)
    yield "attend", partial(case.attend, blocks)
    yield "attend-from-host", partial(case.attend, blocks, from_host=True)
