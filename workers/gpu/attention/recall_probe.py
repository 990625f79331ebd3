"""How much of the exact attention a selection of blocks holds, beside the best selection of the same size."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from moorage.workers.gpu.attention.attended import Attended
from moorage.workers.gpu.attention.exact import ExactAttention
from moorage.workers.gpu.engine.batch import DecodeStep
from moorage.workers.gpu.positions.rotary import BlockRanges

Float32 = NDArray[np.float32]
Int32 = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class RecallSample:
    """One layer of one decode step. Shares are of the exact attention mass, one for each query head."""

    step: int
    layer: int
    recall: Float32
    """[Hq] on the attended keys: exp(lse_chosen - lse_all)."""
    oracle: Float32
    """[Hq] on sinks, window and the distant blocks of most mass, as many as were selected and shared alike."""
    blocks: tuple[int, ...]
    """Distant blocks that any head attended."""
    masses: Float32
    """[len(blocks)] exact mass of each, the mean over heads."""
    num_keys: int
    """Keys that one head attended: sinks, its selected blocks, and everything from the first near block on."""


class RecallProbe:
    """Measures every attention of decode steps whose index divides by `every`; an `Observer` for evaluations.

    Slow: each distant block is attended on its own, so that every scheme of positions is measured as it is.
    """

    def __init__(self, exact: ExactAttention, block_size: int, every: int = 1) -> None:
        self._exact, self._block_size, self._every = exact, block_size, every
        self.samples: list[RecallSample] = []

    def __call__(self, step: DecodeStep, layer: int, attended: Attended) -> None:
        """Takes one sample."""
        session, ranges = step.session, step.ranges
        if session.decode_index % self._every:
            return
        rotary = session.rotations_of(layer).exact()
        if rotary is None:
            return
        query = self._exact.query(step, layer, attended.queries.plain[step.row], rotary)
        lse_all = self._exact(query).lse
        masses = torch.exp(self._exact.lse_by_block(query, ranges.candidates) - lse_all)
        recall = torch.exp(attended.lse[step.row] - lse_all)
        selected = attended.selected[step.row]
        ids = ranges.candidates[None] if selected is None else selected
        blocks = np.unique(ids[ids >= 0])
        self.samples.append(
            RecallSample(
                session.decode_index,
                layer,
                recall.cpu().numpy(),
                _oracle(masses, ids).cpu().numpy(),
                tuple(blocks.tolist()),
                masses.mean(dim=1).cpu().numpy()[blocks - ranges.num_sinks],
                int(num_attended_keys(ranges, attended, step.row, self._block_size)),
            )
        )


def num_attended_keys(ranges: BlockRanges, attended: Attended, row: int, block_size: int) -> float:
    """Keys that one head attends, the mean over heads: sinks, what was selected, all from the first near block on."""
    always = ranges.num_sinks * block_size + ranges.position + 1 - ranges.near_block * block_size
    keys, blocks = attended.keys.get(row), attended.selected[row]
    if keys is not None:
        return always + float(np.count_nonzero(keys >= 0)) / len(keys)
    if blocks is None:
        return always + ranges.num_candidates * block_size
    return always + float(np.count_nonzero(blocks >= 0)) / len(blocks) * block_size


def _oracle(masses: torch.Tensor, selected: Int32) -> torch.Tensor:
    """[Hq]: the best share that selections like `selected` [S, k] can hold, given masses [n, Hq] of the candidates.

    Without a candidate (n = 0), sinks and window hold everything.
    """
    num_selections = len(selected)
    num_blocks, num_heads = masses.shape
    always = 1 - masses.sum(dim=0)
    groups = masses.view(num_blocks, num_selections, num_heads // num_selections)
    best = masses.new_zeros(groups.shape[1:])
    for selection in range(num_selections):
        count = min(int((selected[selection] >= 0).sum()), num_blocks)
        top = groups[:, selection].mean(dim=1).topk(count).indices
        best[selection] = groups[top, selection].sum(dim=0)
    return always + best.reshape(num_heads)
