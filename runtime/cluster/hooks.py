"""Callbacks for the start of a cluster and for its state while it serves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from moorage.runtime.serving.protocol import ClusterStatus
from moorage.workers.stages import StartStage

OnLoading = Callable[[int, int], None]
"""Called while the model loads, with the bytes of the weights that are read, and of all weights."""
OnStage = Callable[[StartStage], None]
"""Called with each stage of a start when it begins."""


@dataclass(frozen=True, slots=True)
class Hooks:
    """The callbacks of one launch; those that are not given do nothing."""

    on_ready: Callable[[dict[str, Any]], None]
    """Called once, when the cluster is ready, with the contents of the ready file."""
    on_status: Callable[[str, ClusterStatus], None] = lambda _address, _status: None
    """Called again and again with the server's address and the cluster's status."""
    on_loading: OnLoading = lambda _read, _total: None
    on_stage: OnStage = lambda _stage: None
