"""What a starting cluster does, in the words that its user reads."""

from __future__ import annotations

from enum import StrEnum


class StartStage(StrEnum):
    """The stages of a start, in their order."""

    RAY = "starting Ray"
    KERNELS = "compiling kernels"
    KV_ACTORS = "waiting for the KV actors"
    WEIGHTS = "reading the weights"
    ENGINE = "preparing the engine"
