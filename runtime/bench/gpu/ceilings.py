"""What a machine can do at most, measured before anything is compared with it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch

from moorage.runtime.bench.report import Row
from moorage.runtime.bench.threads import Pieces, stream_read

ROUNDS = 5


@dataclass(frozen=True, slots=True)
class Ceilings:
    """Bytes and operations a second."""

    device_bytes_per_s: float
    """Read by the device from its own memory."""
    link_bytes_per_s: float
    """Speed of copies from pinned host memory to the device."""
    flops: float
    """Speed of a square matrix product in the model's type."""


def measure_ceilings(
    device: torch.device, dtype: torch.dtype, threads: int, num_bytes: int
) -> tuple[Ceilings, list[Row]]:
    """The ceilings and their rows; `num_bytes` is the size of each copied buffer."""
    here = torch.ones(num_bytes, dtype=torch.uint8, pin_memory=device.type == "cuda")
    source = torch.ones(num_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy_s = seconds(lambda: target.copy_(source), device)
    down_s = seconds(lambda: target.copy_(here, non_blocking=True), device)
    up_s = seconds(lambda: here.copy_(target, non_blocking=True), device)
    pieces, read = Pieces(threads), here.numpy()
    read_s = seconds(lambda: stream_read(pieces, [read]), torch.device("cpu"))
    side = 8192 if device.type == "cuda" else 256
    factor = torch.randn(side, side, device=device).to(dtype)
    product_s = seconds(lambda: factor @ factor, device)
    flops = 2 * side**3 / product_s
    ceilings = Ceilings(2 * num_bytes / copy_s, num_bytes / down_s, flops)
    rows = [
        Row("ceiling-device-copy", copy_s, bytes=2 * num_bytes),
        Row("ceiling-host-to-device", down_s, bytes=num_bytes),
        Row("ceiling-device-to-host", up_s, bytes=num_bytes),
        Row("ceiling-host-read", read_s, threads=threads, bytes=num_bytes),
        Row("ceiling-matrix-product", product_s, values={"tflops": flops / 1e12}),
    ]
    return ceilings, rows


def seconds(run: Callable[[], object], device: torch.device) -> float:
    """Median seconds of a run, the device's own time included; the first run is not counted."""
    found = []
    for _ in range(ROUNDS + 1):
        synchronize(device)
        start = time.perf_counter()
        run()
        synchronize(device)
        found.append(time.perf_counter() - start)
    return median(found[1:])


def synchronize(device: torch.device) -> None:
    """Waits until the device has done all that was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
