"""What the host needs of new tokens in each layer: a query to choose by, then K and V to store."""

from __future__ import annotations

import torch


class HandOver:
    """Copies of tensors of one device that begin at once and are waited for when first looked at."""

    def __init__(self, *tensors: torch.Tensor) -> None:
        self._tensors = tensors
        self._event: torch.cuda.Event | None = None
        if tensors[0].device.type == "cuda":
            self._tensors = tuple(_to_pinned(tensor) for tensor in tensors)
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record()

    def __call__(self) -> tuple[torch.Tensor, ...]:
        """The tensors on the host."""
        if self._event is not None:
            self._event.synchronize()
            self._event = None
        return self._tensors


def _to_pinned(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)
