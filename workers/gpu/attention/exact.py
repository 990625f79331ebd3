"""Exact attention of one generated token: all of its past, streamed from the stores."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from moorage.workers.gpu.attention.stored_blocks import Partial, TokenQuery, merged
from moorage.workers.gpu.engine.batch import DecodeStep
from moorage.workers.gpu.engine.timing import PartTimer
from moorage.workers.gpu.positions.rotary import RotaryCache
from moorage.workers.gpu.positions.rotary_tables import DecodeQuery
from moorage.workers.gpu.selection.queries import attention_scale
from moorage.workers.gpu.transfer.block_loader import BlockLoader
from moorage.workers.spec import KvLayout

Int32 = NDArray[np.int32]


class ExactAttention:
    """Attends blocks as they come, piece by piece. Every row must already be stored."""

    def __init__(self, loader: BlockLoader, layout: KvLayout, timer: PartTimer) -> None:
        self._loader, self._layout, self._timer = loader, layout, timer

    def query(self, step: DecodeStep, layer: int, plain: torch.Tensor, rotary: RotaryCache) -> TokenQuery:
        """`plain` [Hq, D] in fp32, un-rotated, as `rotary` shows it the keys."""
        scale, softcap = attention_scale(step.session, layer), step.session.softcap
        return TokenQuery(step, layer, DecodeQuery(plain), rotary, scale, softcap)

    def __call__(self, query: TokenQuery) -> Partial:
        """Over all keys up to the query's own."""
        end = query.position // self._layout.block_size + 1
        return merged(list(self.pieces(query, end)))

    def pieces(self, query: TokenQuery, end: int) -> Iterator[Partial]:
        """Over blocks [0, end), a part for each streamed piece."""
        session_id, layer, everything = query.session_id, query.layer, np.arange(end, dtype=np.int32)
        packed = self._loader.packed
        if packed is not None and query.attends_packed:
            are_packed = packed.are_packed(session_id, layer, everything)
            packed_blocks, everything = everything[are_packed], everything[~are_packed]
            for piece, stored in self._loader.stream_packed(session_id, layer, packed_blocks):
                blocks = query.rotary.entries(query.position, piece)
                with self._timer("attend"):
                    places = _places_of(blocks.blocks, piece)
                    yield query.attend_packed(packed.operand(layer), stored, places, blocks)
        for piece, staged in self._loader.stream(session_id, layer, everything):
            blocks = query.rotary.entries(query.position, piece)
            with self._timer("attend"):
                yield query.attend(staged, _places_of(blocks.blocks, piece), blocks)

    def mass_by_block(self, query: TokenQuery) -> tuple[torch.Tensor, torch.Tensor]:
        """[n] mean over heads of the mass on each block up to the query's own; [Hq] log-sum-exp of all keys."""
        num_blocks = query.position // self._layout.block_size + 1
        everything = np.arange(num_blocks, dtype=np.int32)
        found, ids = [], []
        for piece, staged in self._loader.stream(query.session_id, query.layer, everything):
            blocks = query.rotary.entries(query.position, piece)
            found.append(query.lse_by_block(staged, blocks.blocks - piece[0], blocks))
            ids.append(blocks.blocks)
        lse = torch.cat(found)
        shares = torch.softmax(lse, dim=0).mean(dim=1)
        index = torch.from_numpy(np.concatenate(ids)).to(shares.device, torch.int64)
        return shares.new_zeros(num_blocks).index_add_(0, index, shares), torch.logsumexp(lse, dim=0)

    def lse_by_block(self, query: TokenQuery, wanted: Int32) -> torch.Tensor:
        """[n, Hq] log-sum-exp of the logits of each of the `wanted` blocks alone."""
        found = []
        for piece, staged in self._loader.stream(query.session_id, query.layer, wanted):
            # One by one, since a block that two variants of the query meet has two entries.
            for slot in range(len(piece)):
                blocks = query.rotary.entries(query.position, piece[slot : slot + 1])
                slots = np.full(len(blocks.blocks), slot, np.int32)
                found.append(torch.logsumexp(query.lse_by_block(staged, slots, blocks), dim=0))
        plain = query.query.plain
        return torch.stack(found) if found else plain.new_zeros((0, len(plain)))


def _places_of(blocks: Int32, piece: Int32) -> Int32:
    """Where in a piece, whose blocks ascend, some of its blocks lie."""
    return np.searchsorted(piece, blocks).astype(np.int32)
