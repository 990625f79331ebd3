"""What the host needs of new tokens in each layer: a query to choose by, K and V to store."""

from __future__ import annotations

import torch


class HandOver:
    """The one planned hand-over of a layer: copies that begin at once and are waited for when first looked at."""

    def __init__(self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> None:
        """query [Hq, D]; keys, values [T, Hkv, D] in storage type; all on one device."""
        self._tensors = (query, keys, values)
        self._event: torch.cuda.Event | None = None
        if query.device.type == "cuda":
            self._tensors = tuple(_to_pinned(tensor) for tensor in self._tensors)  # type: ignore[assignment]
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record()

    def query(self) -> torch.Tensor:
        """[Hq, D] on the host."""
        self._wait()
        return self._tensors[0]

    def rows(self) -> tuple[torch.Tensor, torch.Tensor]:
        """K, V [T, Hkv, D] on the host."""
        self._wait()
        return self._tensors[1], self._tensors[2]

    def _wait(self) -> None:
        if self._event is not None:
            self._event.synchronize()
            self._event = None


def _to_pinned(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)
