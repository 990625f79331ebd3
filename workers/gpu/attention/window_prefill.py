"""Prefill of sliding-window layers: each chunk attends what the ring holds of its past, and itself."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from moorage.kernels.prefill_attention import attend_dense
from moorage.workers.gpu.attention.sinks import AttentionSinks
from moorage.workers.gpu.attention.window_rings import Ring, RingRows, WindowRings
from moorage.workers.gpu.engine.batch import PrefillBatch
from moorage.workers.gpu.engine.session_state import WorkerSession
from moorage.workers.gpu.engine.timing import PartTimer
from moorage.workers.gpu.model.rope import cos_sin, rotate
from moorage.workers.kv.rows import beyond_storage
from moorage.workers.spec import KvType, ModelSpec

CosSin = tuple[torch.Tensor, torch.Tensor]


@dataclass(slots=True)
class WindowChunk:
    """A chunk of one session in one step."""

    session: WorkerSession
    ring: Ring
    rows: slice
    """The rows of the batch's queries."""
    start: int
    cos_sin: list[CosSin]
    """(cos, sin) by kind of layers, each [T, rotary_dim / 2], of the chunk's positions."""
    past: list[RingRows | None]
    """The tokens by kind of layers before the chunk that its first query attends; None without any."""
    written: list[torch.Tensor] = field(default_factory=list)
    """Keys and values by layer: [2, Hkv, n, D] of the chunk's last tokens, which the ring will hold."""


@dataclass(frozen=True, slots=True)
class WindowPrefillMetadata:
    """What the layers of one step share."""

    batch: PrefillBatch
    chunks: list[WindowChunk]


class WindowPrefill:
    """One chunk after the other. Rings change when the step is `committed`, so that it can run again before."""

    def __init__(
        self,
        rings: WindowRings,
        model: ModelSpec,
        sinks: AttentionSinks,
        compute: torch.dtype,
        timer: PartTimer,
    ) -> None:
        """`compute` is the type of queries and keys."""
        self._rings, self._layers = rings, rings.layers_of
        self._sinks, self._compute, self._timer = sinks, compute, timer
        self._softcap = model.attention_softcap or 0.0
        self._scale = model.softmax_scale

    def prepare(self, batch: PrefillBatch) -> WindowPrefillMetadata:
        """See AttentionBackend."""
        chunks = [
            self._chunk(session, slice(begin, end))
            for session, begin, end in zip(batch.sessions, batch.bounds, batch.bounds[1:], strict=False)
        ]
        return WindowPrefillMetadata(batch, chunks)

    def _chunk(self, session: WorkerSession, rows: slice) -> WindowChunk:
        start, ring = session.num_tokens, session.ring
        assert ring is not None
        positions = torch.arange(start, start + rows.stop - rows.start)
        device = self._rings.device
        tables = []
        for view in ring.views:
            cos, sin = cos_sin(view, positions)
            tables.append((cos.to(device), sin.to(device)))
        past = [
            self._rings.rows(ring, max(0, start - kind.window + 1), start)
            if start and kind.window > 1
            else None
            for kind in self._layers.kinds
        ]
        return WindowChunk(session, ring, rows, start, tables, past)

    def forward(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, metadata: WindowPrefillMetadata
    ) -> torch.Tensor:
        """See AttentionBackend; `layer` counts window layers."""
        out = q.new_zeros(q.shape)
        for chunk in metadata.chunks:

            def attend(chunk: WindowChunk = chunk) -> None:
                heads = (part[chunk.rows].transpose(0, 1) for part in (q, k, v))
                out[chunk.rows] = self._attend(layer, chunk, *heads).to(out.dtype)

            metadata.batch.guard.run(chunk.session, attend)
        return out

    def finish(self, metadata: WindowPrefillMetadata) -> None:
        """Nothing is left open."""

    def commit(self, metadata: WindowPrefillMetadata) -> None:
        """Writes the chunks to the rings, once nothing of the step will run again."""
        for chunk in metadata.chunks:

            def write(chunk: WindowChunk = chunk) -> None:
                end = chunk.start + chunk.rows.stop - chunk.rows.start
                self._rings.write(chunk.ring, end - chunk.written[0].shape[2], chunk.written)

            metadata.batch.guard.run(chunk.session, write)

    def _attend(
        self, layer: int, chunk: WindowChunk, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor
    ) -> torch.Tensor:
        """[T, Hq, D] for q [Hq, T, D] and k, v [Hkv, T, D] of a chunk."""
        at = self._layers.kind_of[layer]
        kind, past, view = self._layers.kinds[at], chunk.past[at], chunk.ring.views[at]
        with self._timer("attend"):
            new = torch.stack((rotate(k, *chunk.cos_sin[at]), v)).to(self._rings.dtype)
            self._check_finite(layer, new, k, v)
            self._keep(layer, chunk, new)
            queries = rotate(q, *chunk.cos_sin[at]).to(self._compute)
            first = chunk.start
            if past is not None:
                first -= past.end - past.begin
                new = torch.cat((self._rings.read(layer, past), new), dim=2)
            keys, values = new.to(self._compute)
            scale = self._scale * view.attention_scale**2
            out, lse = attend_dense(
                queries,
                keys,
                values,
                scale,
                band=(0, kind.window),
                q_start=chunk.start,
                k_start=first,
                softcap=self._softcap,
            )
            return self._sinks.weigh(layer, out.transpose(0, 1), lse.T)

    def _keep(self, layer: int, chunk: WindowChunk, new: torch.Tensor) -> None:
        end = chunk.start + new.shape[2]
        count = end - max(chunk.start, self._rings.layout.first_held(end))
        # A copy, so that the rest of the chunk is free again; of a layer that runs again only the last one counts.
        chunk.written[layer:] = [new[:, :, new.shape[2] - count :].clone()]

    def _check_finite(self, layer: int, stored: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> None:
        """Raises NotFinite. A GPU is not waited for: what is not finite there comes out in the logits."""
        if stored.device.type == "cpu" and not np.isfinite(float(stored.sum(dtype=torch.float32))):
            if torch.isfinite(stored).all():
                return
            finite = bool(torch.isfinite(k).all() and torch.isfinite(v).all())
            raise beyond_storage(layer, KvType.FP16 if finite else KvType.FP32)
