"""Whether this host has a GPU that torch can use, found in a millisecond without loading torch."""

from __future__ import annotations

import os
from importlib import metadata
from pathlib import Path

_DEVICES = Path("/dev")


def why_no_gpu() -> str | None:
    """Why `device: cuda` can't work on this host, as a phrase; None when no reason is known."""
    if not any(_DEVICES.glob("nvidia[0-9]*")) and not (_DEVICES / "dxg").exists():
        return "this host has no NVIDIA GPU"
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return "CUDA_VISIBLE_DEVICES hides every GPU"
    if _torch_version().endswith("+cpu"):
        return f"the installed torch {_torch_version()} is built without CUDA"
    return None


def _torch_version() -> str:
    try:
        return metadata.version("torch")
    except metadata.PackageNotFoundError:
        return ""
