"""Piecewise CUDA graphs: all that the decoder runs between two attentions is one launch instead of about ten.

Attention stays outside the graphs, because the host decides what it attends.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from moorage.workers.gpu.model.decoder import Attend, Decoder

Run = Callable[[], Tensor]
Capture = Callable[[Run], tuple[Callable[[], None], Tensor]]
"""Records the kernels that a function launches. Returns their replay, and the tensor that each replay fills."""

MAX_TOKENS = 64
"""Steps of more tokens run without graphs: they keep the device busy for longer than their launches take."""


@dataclass(frozen=True, slots=True)
class Pieces:
    """The graphs for one number of rows, and the tensors that they read and write."""

    hidden: Tensor
    attended: Tensor
    replays: tuple[Callable[[], None], ...]
    """One makes the first layer's inputs; then one a layer makes the next layer's inputs, or the final norm."""
    results: tuple[Tensor, ...]


class PieceGraphs:
    """Graphs for 1, 2, 4, 8, ... rows, recorded on first use. A step of another size is padded to the next one."""

    def __init__(self, decoder: Decoder, capture: Capture) -> None:
        self._decoder = decoder
        self._capture = capture
        self._pieces: dict[int, Pieces] = {}
        self._refused = False

    def takes(self, num_tokens: int) -> bool:
        """Whether a step of `num_tokens` runs from graphs; records them where there are none yet."""
        if self._refused or not 0 < num_tokens <= MAX_TOKENS:
            return False
        rows = _rows_for(num_tokens)
        if rows not in self._pieces:
            try:
                self._pieces[rows] = self._record(rows)
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                self._refused = True
                reason = str(error).partition("\n")[0]
                warnings.warn(f"CUDA graphs are off, the device refuses to record: {reason}", stacklevel=2)
                return False
        return True

    def forward(self, token_ids: Tensor, attend: Attend) -> Tensor:
        """See Decoder.forward."""
        count = len(token_ids)
        pieces = self._pieces[_rows_for(count)]
        pieces.hidden[:count] = self._decoder.embed(token_ids)
        pieces.replays[0]()
        for index in range(len(self._decoder.weights.layers)):
            pieces.attended[:count] = attend(index, *self._decoder.split(pieces.results[index][:count]))
            pieces.replays[index + 1]()
        return pieces.results[-1][:count].clone()

    def _record(self, rows: int) -> Pieces:
        decoder, spec = self._decoder, self._decoder.spec
        like = decoder.weights
        hidden = torch.zeros((rows, spec.hidden_size), dtype=like.dtype, device=decoder.device)
        attended = torch.zeros((rows, spec.num_heads, spec.head_dim), dtype=like.dtype, device=decoder.device)
        recorded = [self._capture(lambda: decoder.inputs(0, hidden))]
        for index in range(len(decoder.weights.layers)):

            def run(index: int = index) -> Tensor:
                return decoder.between(index, hidden, attended)

            recorded.append(self._capture(run))
        replays, results = zip(*recorded, strict=True)
        return Pieces(hidden, attended, replays, results)


def cuda_capture() -> Capture:
    """Records CUDA graphs in one pool of memory, which they can share because they run in the order of recording.

    All are recorded on one stream, because cuBLAS keeps a workspace, 32 MiB on Hopper, for every stream.
    """
    pool = torch.cuda.graph_pool_handle()
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]

    def capture(run: Run) -> tuple[Callable[[], None], Tensor]:
        # Modules are loaded and kernels compiled by this first run; a recording allows neither.
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            run()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool, stream=stream):
            result = run()
        return graph.replay, result

    return capture


def _rows_for(num_tokens: int) -> int:
    return 1 << (num_tokens - 1).bit_length()
