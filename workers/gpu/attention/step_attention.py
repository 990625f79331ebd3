"""Attention of a whole step: its prompts' chunks and its generated tokens, each by its backend."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from moorage.workers.gpu.attention.backend import AttentionBackend, DecodeBackend, DecodeMetadata
from moorage.workers.gpu.attention.prefill import PrefillMetadata
from moorage.workers.gpu.engine.batch import DecodeBatch, DecodeStep, PrefillBatch, SessionGuard
from moorage.workers.gpu.engine.session_state import WorkerSession


@dataclass(frozen=True, slots=True)
class Part:
    """One session of a step: its rows of the step's queries, and its decode step if it generates a token."""

    session: WorkerSession
    rows: slice
    decode: DecodeStep | None


@dataclass(frozen=True, slots=True)
class StepMetadata:
    """What all layers of one step share."""

    decode: DecodeMetadata | None
    prefill: PrefillMetadata | None
    decode_rows: torch.Tensor | None
    """int64 [N]: rows of the step's queries that generated tokens have; None is all."""
    prefill_rows: torch.Tensor | None


class StepAttention:
    """Deals the rows of a step to the backends."""

    def __init__(
        self,
        decode: DecodeBackend,
        prefill: AttentionBackend[PrefillBatch, PrefillMetadata],
        device: torch.device,
    ) -> None:
        self.decode, self._prefill, self._device = decode, prefill, device

    def prepare(self, parts: Sequence[Part], guard: SessionGuard) -> StepMetadata:
        """Prepares the backends for some sessions."""
        decoding = [(part, part.decode) for part in parts if part.decode is not None]
        prompts = [part for part in parts if part.decode is None]
        decode, prefill = None, None
        if decoding:
            decode = self.decode.prepare(DecodeBatch.of([step for _, step in decoding], guard))
        if prompts:
            bounds = [0]
            for part in prompts:
                bounds.append(bounds[-1] + part.rows.stop - part.rows.start)
            sessions = tuple(part.session for part in prompts)
            prefill = self._prefill.prepare(PrefillBatch(sessions, tuple(bounds), guard))
        mixed = bool(decoding) and bool(prompts)
        decode_rows = self._rows([part for part, _ in decoding]) if mixed else None
        return StepMetadata(decode, prefill, decode_rows, self._rows(prompts) if mixed else None)

    def _rows(self, parts: Sequence[Part]) -> torch.Tensor:
        rows = [row for part in parts for row in range(part.rows.start, part.rows.stop)]
        return torch.tensor(rows, dtype=torch.long).to(self._device)

    def forward(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, metadata: StepMetadata
    ) -> torch.Tensor:
        """Attention of all rows in one layer: q [T, Hq, D], k, v [T, Hkv, D] -> [T, Hq, D]."""
        if metadata.decode is not None and metadata.decode_rows is None:
            return self.decode.forward(layer, q, k, v, metadata.decode)
        if metadata.prefill is not None and metadata.prefill_rows is None:
            return self._prefill.forward(layer, q, k, v, metadata.prefill)
        out, rows = torch.empty_like(q), metadata.decode_rows
        if metadata.decode is not None:
            out[rows] = self.decode.forward(layer, q[rows], k[rows], v[rows], metadata.decode).to(q.dtype)
        rows = metadata.prefill_rows
        if metadata.prefill is not None:
            out[rows] = self._prefill.forward(layer, q[rows], k[rows], v[rows], metadata.prefill)
        return out

    def finish(self, metadata: StepMetadata) -> None:
        """Ends the step."""
        if metadata.decode is not None:
            self.decode.finish(metadata.decode)
        if metadata.prefill is not None:
            self._prefill.finish(metadata.prefill)
