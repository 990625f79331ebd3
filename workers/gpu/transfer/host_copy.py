"""What passes between host and device in a step: queries to select by, K and V to store, sampled tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch


class HostCopy:
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


def on_device(values: Sequence[float], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Numbers of the host on `device`, by a copy that does not wait for what the device was asked before."""
    here = torch.tensor(values, dtype=dtype, pin_memory=device.type == "cuda")
    return here.to(device, non_blocking=True)


def _to_pinned(tensor: torch.Tensor) -> torch.Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)
