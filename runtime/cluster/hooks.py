"""Who is told of a start and of what the cluster does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from moorage.runtime.serving.protocol import ClusterStatus
from moorage.workers.stages import StartStage

OnLoading = Callable[[int, int], None]
"""Hears the bytes of the weights that are read, and all, while the model loads."""
OnStage = Callable[[StartStage], None]
"""Hears each stage of a start as it begins."""


@dataclass(frozen=True, slots=True)
class Hooks:
    """Who is told: once, when ready, what the ready file holds; and the cluster's state as it loads and serves."""

    on_ready: Callable[[dict[str, Any]], None]
    on_status: Callable[[str, ClusterStatus], None] = lambda _address, _status: None
    on_loading: OnLoading = lambda _read, _total: None
    on_stage: OnStage = lambda _stage: None
