"""Memory of the device for the rows of single keys."""

from __future__ import annotations

import numpy as np
import torch

from moorage.workers.gpu.transfer.block_loader import storage_dtype
from moorage.workers.kv.messages import Storage
from moorage.workers.spec import KvLayout


class KeyRowBuffer:
    """Rows of one session and layer at a time. On a CPU they stay where the stores have put them."""

    def __init__(self, layout: KvLayout, num_rows: int, device: torch.device) -> None:
        """Reserves room for keys and values of `num_rows` keys of each KV head; more rows take more memory."""
        self._dtype, self._device = storage_dtype(layout.kv_type), device
        self._row_elements = 2 * layout.num_kv_heads * layout.head_dim
        self._buffer = torch.empty(0, dtype=self._dtype, device=device)
        if device.type != "cpu":
            self._reserve(num_rows * self._row_elements)

    @property
    def num_bytes(self) -> int:
        """What is reserved now."""
        return self._buffer.nbytes

    def put(self, rows: Storage) -> torch.Tensor:
        """Rows [parts, Hkv, n, D] on the device; valid until the next are put, where the device is no CPU."""
        rows = np.require(rows, requirements=("C", "W"))  # Ray's replies can't be written
        there = torch.from_numpy(rows.view(np.float16) if rows.dtype == np.uint16 else rows)
        if self._device.type == "cpu":
            return there
        self._reserve(there.numel())
        into = self._buffer[: there.numel()].view(there.shape)
        into.copy_(there.pin_memory(), non_blocking=True)
        return into

    def _reserve(self, count: int) -> None:
        if len(self._buffer) < count:
            self._buffer = self._buffer[:0].clone()
            with torch.inference_mode(False):
                self._buffer = torch.empty(count, dtype=self._dtype, device=self._device)
