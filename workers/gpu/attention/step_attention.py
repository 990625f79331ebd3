"""Attention of a whole step: its prompts' chunks and its generated tokens, each by its backend."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from moorage.workers.gpu.attention.attended import DecodeMetadata
from moorage.workers.gpu.attention.backend import AttentionBackend, DecodeBackend
from moorage.workers.gpu.attention.prefill import PrefillMetadata
from moorage.workers.gpu.attention.unrotated import PartlyRotated, UnrotatedChannels
from moorage.workers.gpu.attention.window_decode import WindowDecode
from moorage.workers.gpu.attention.window_prefill import WindowPrefill, WindowPrefillMetadata
from moorage.workers.gpu.engine.batch import DecodeBatch, DecodeStep, PrefillBatch, SessionGuard
from moorage.workers.gpu.engine.session_state import WorkerSession
from moorage.workers.spec import ModelSpec


@dataclass(frozen=True, slots=True)
class Part:
    """One session of a step: its rows of the step's queries, and a decode step for each of them that is generated."""

    session: WorkerSession
    rows: slice
    decode: tuple[DecodeStep, ...]
    """None of them while its prompt is prefilled."""


@dataclass(frozen=True, slots=True)
class StepMetadata:
    """What all layers of one step share."""

    decode: DecodeMetadata | None
    prefill: PrefillMetadata | None
    window_decode: Any
    """The metadata of the backend of window layers, as are the next; None where it has nothing to do."""
    window_prefill: WindowPrefillMetadata | None
    decode_batch: DecodeBatch | None
    decode_rows: torch.Tensor | None
    """int64 [N]: rows of the step's queries that generated tokens have; None is all."""
    prefill_rows: torch.Tensor | None
    unrotated: dict[PartlyRotated, torch.Tensor | float]
    """See `UnrotatedChannels.factors`."""


@dataclass(frozen=True, slots=True)
class WindowBackends:
    """Attention of layers that attend a window alone."""

    decode: WindowDecode[Any]
    prefill: WindowPrefill


class LayerPlace(NamedTuple):
    """Where a layer of the decoder has its keys and values."""

    in_ring: bool
    """Whether its keys are in the rings of window layers, or in the stores."""
    at: int
    """Its place among the layers there."""


class StepAttention:
    """Deals the rows of a step to the backends, and the layers to those of stored and of window layers."""

    def __init__(
        self,
        decode: DecodeBackend,
        prefill: AttentionBackend[PrefillBatch, PrefillMetadata],
        windows: WindowBackends,
        model: ModelSpec,
        device: torch.device,
    ) -> None:
        self.decode, self._prefill, self._windows, self._device = decode, prefill, windows, device
        self._unrotated = UnrotatedChannels(model)
        self._has_stored, self._has_windows = bool(model.stored_layers), bool(model.window_layers)
        places = {layer: LayerPlace(False, at) for at, layer in enumerate(model.stored_layers)}
        places |= {layer: LayerPlace(True, at) for at, layer in enumerate(model.window_layers)}
        self._places = [places[layer] for layer in range(model.num_layers)]

    def prepare(self, parts: Sequence[Part], guard: SessionGuard) -> StepMetadata:
        """Prepares the backends for some sessions."""
        decoding = [part for part in parts if part.decode]
        prompts = [part for part in parts if not part.decode]
        decodes, prefills = None, None
        if decoding:
            decodes = DecodeBatch.of([step for part in decoding for step in part.decode], guard)
        if prompts:
            bounds = [0]
            for part in prompts:
                bounds.append(bounds[-1] + part.rows.stop - part.rows.start)
            prefills = PrefillBatch(tuple(part.session for part in prompts), tuple(bounds), guard)
        mixed = bool(decoding) and bool(prompts)
        return StepMetadata(
            decode=self.decode.prepare(decodes) if decodes and self._has_stored else None,
            prefill=self._prefill.prepare(prefills) if prefills and self._has_stored else None,
            window_decode=self._windows.decode.prepare(decodes) if decodes and self._has_windows else None,
            window_prefill=self._windows.prefill.prepare(prefills)
            if prefills and self._has_windows
            else None,
            decode_batch=decodes,
            decode_rows=self._rows(decoding) if mixed else None,
            prefill_rows=self._rows(prompts) if mixed else None,
            unrotated=self._unrotated.factors([(part.session, part.rows) for part in parts], self._device),
        )

    def _rows(self, parts: Sequence[Part]) -> torch.Tensor:
        rows = [row for part in parts for row in range(part.rows.start, part.rows.stop)]
        return torch.tensor(rows, dtype=torch.long).to(self._device)

    def forward(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, metadata: StepMetadata
    ) -> torch.Tensor:
        """Attention of all rows in one layer: q [T, Hq, D], which changes, k, v [T, Hkv, D] -> [T, Hq, D]."""
        self._unrotated.scale(layer, q, metadata.unrotated)
        in_ring, at = self._places[layer]
        decode: DecodeBackend = self._windows.decode if in_ring else self.decode
        prefill: AttentionBackend[PrefillBatch, Any] = self._windows.prefill if in_ring else self._prefill
        of_decode: Any = metadata.window_decode if in_ring else metadata.decode
        of_prefill: Any = metadata.window_prefill if in_ring else metadata.prefill
        if of_prefill is None:
            return decode.forward(at, q, k, v, of_decode)
        if of_decode is None:
            return prefill.forward(at, q, k, v, of_prefill)
        out, rows = torch.empty_like(q), metadata.decode_rows
        out[rows] = decode.forward(at, q[rows], k[rows], v[rows], of_decode).to(q.dtype)
        rows = metadata.prefill_rows
        out[rows] = prefill.forward(at, q[rows], k[rows], v[rows], of_prefill)
        return out

    def finish(self, metadata: StepMetadata) -> None:
        """Ends the layers of the step."""
        if metadata.decode is not None:
            self.decode.finish(metadata.decode)
        if metadata.prefill is not None:
            self._prefill.finish(metadata.prefill)

    def commit(self, metadata: StepMetadata) -> None:
        """Changes what the step could not run again without, once it is through."""
        if metadata.window_decode is not None and metadata.decode_batch is not None:
            self._windows.decode.commit(metadata.decode_batch)
        if metadata.window_prefill is not None:
            self._windows.prefill.commit(metadata.window_prefill)
