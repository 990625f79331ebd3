"""The interface of attention: a batch is prepared once a step, and attends once a layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch

from moorage.workers.gpu.attention.device_keys import DeviceKeys
from moorage.workers.gpu.attention.row_writer import RowWriter
from moorage.workers.gpu.attention.sinks import AttentionSinks
from moorage.workers.gpu.engine.batch import DecodeBatch
from moorage.workers.gpu.engine.timing import PartTimer
from moorage.workers.gpu.selection.selector import BlockSelector
from moorage.workers.gpu.transfer.block_loader import BlockLoader
from moorage.workers.spec import KvLayout

BatchT = TypeVar("BatchT", contravariant=True)
MetadataT = TypeVar("MetadataT")


class AttentionBackend(Protocol[BatchT, MetadataT]):
    """Attention of some sessions, and the storage of their new keys and values.

    A failure of one session is recorded in the batch's guard; the others go on.
    """

    def prepare(self, batch: BatchT) -> MetadataT:
        """What all layers of one step share."""

    def forward(
        self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, metadata: MetadataT
    ) -> torch.Tensor:
        """Output [T, Hq, D] for q [T, Hq, D] and k, v [T, Hkv, D], all un-rotated, of all sessions of the batch.

        Rows of a session that has failed are 0.
        """

    def finish(self, metadata: MetadataT) -> None:
        """Ends the step: its work that the layers left open, and its counts."""


@dataclass(frozen=True, slots=True)
class DecodeParts:
    """What every backend of decode works with."""

    loader: BlockLoader
    selector: BlockSelector
    scores_in_stores: bool
    """Whether anchors are scored where the blocks are stored, and not on the device."""
    keys: DeviceKeys
    """Selects and attends single keys."""
    writer: RowWriter
    sinks: AttentionSinks
    layout: KvLayout
    timer: PartTimer


DecodeBackend = AttentionBackend[DecodeBatch, Any]
"""A backend of generated tokens; its metadata is a DecodeMetadata of its own kind."""
