"""Attention of generated tokens to single keys, whose rows the stores send to the device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch

from moorage.kernels.key_attention import attend_keys, key_logits
from moorage.kernels.triton_support import upload
from moorage.workers.errors import MoorageError
from moorage.workers.gpu.attention.stored_blocks import Partial, TokenQuery, merged
from moorage.workers.gpu.engine.batch import DecodeStep, SessionGuard
from moorage.workers.gpu.engine.timing import PartTimer
from moorage.workers.gpu.positions.key_rotations import KeyRotations
from moorage.workers.gpu.selection.code_queries import code_queries
from moorage.workers.gpu.selection.queries import LayerQueries, attention_scale
from moorage.workers.gpu.transfer.key_rows import KeyRowBuffer
from moorage.workers.kv.messages import Float32, KeyRequest
from moorage.workers.kv.shard_keys import FoundKeys
from moorage.workers.kv.shards import ShardedKv


class WithKeys(NamedTuple):
    """Attention of one session in a layer, once its selected keys are there."""

    attended: Partial
    """Over sinks, window and selected keys."""
    completed: Partial
    """The same with the completion, which stands for all other keys where it is asked for."""


class DeviceKeys:
    """Selects single keys by the stores, and attends them on the device.

    Sinks and window are attended first: the estimated logits of the other keys are compared with theirs.
    """

    def __init__(self, kv: ShardedKv, rows: KeyRowBuffer, timer: PartTimer, device: torch.device) -> None:
        self._kv, self._rows, self._timer, self._device = kv, rows, timer, device
        self._rotations = KeyRotations(device)

    def select(
        self,
        layer: int,
        queries: LayerQueries,
        steps: Sequence[DecodeStep],
        near: Mapping[int, Partial],
        guard: SessionGuard,
    ) -> dict[int, FoundKeys]:
        """The keys by row; none of a session that fails, as `guard` then records. `near` attended sinks and window.

        One question to each store and round is about all sessions, unless one of them fails.
        """
        if not steps:
            return {}
        rows, lses = queries.on_host(), torch.stack([near[step.row].lse for step in steps]).cpu().numpy()
        requests = {
            step.row: self._request(layer, step, rows[step.row], lse)
            for step, lse in zip(steps, lses, strict=True)
        }
        with self._timer("select"):
            found = self._together(requests)
            for step in steps:
                if step.row not in found:

                    def ask(row: int = step.row) -> None:
                        (found[row],) = self._kv.keys.select([requests[row]])

                    guard.run(step.session, ask)
        return found

    def _together(self, requests: dict[int, KeyRequest]) -> dict[int, FoundKeys]:
        """The keys by row; none for one session, and none where one fails: each finds its own failure alone."""
        if len(requests) < 2:
            return {}
        try:
            return dict(zip(requests, self._kv.keys.select(list(requests.values())), strict=True))
        except MoorageError:
            return {}

    def _request(self, layer: int, step: DecodeStep, query: torch.Tensor, near: Float32) -> KeyRequest:
        session = step.session
        queries, bounds = code_queries(step, layer, query)
        scale, count = attention_scale(session, layer), step.selection.topk_keys
        completes = step.selection.completion
        return KeyRequest(session.session_id, layer, queries, bounds, near, count, scale, completes=completes)

    def attend(self, query: TokenQuery, near: Partial, found: FoundKeys) -> WithKeys:
        """Adds the found keys, and the completion, to attention over sinks and window."""
        keys, values = self._rows.put(found.rows)
        with self._timer("attend"):
            seen = self._rotations.seen(query.rotary, query.query.plain, query.position, found.positions)
            logits = key_logits(
                seen.queries,
                keys,
                variant=seen.variant,
                turns=seen.turns,
                scale=query.scale,
                softcap=query.softcap,
            )
            attended = merged([near, Partial(*attend_keys(logits, seen.is_there, values))])
            rest = upload((found.rest_out, found.rest_lse), self._device)
            return WithKeys(attended, merged([attended, Partial(*rest)]))
