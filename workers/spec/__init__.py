"""Values that cross between packages and processes. Frozen, typed, and free of torch, ray and numba.

The lower package owns the contract: `runtime` builds these from configuration and requests, `workers` obey them.
"""

from moorage.workers.spec.kinds import (
    AnchorPool,
    AnchorSpace,
    AnchorType,
    HeadPool,
    HeadSelectMode,
    KvType,
    Positions,
    Preselect,
    Scorer,
)
from moorage.workers.spec.memory import MemorySpec
from moorage.workers.spec.model import DualChunkSpec, ModelSpec, RopeSpec
from moorage.workers.spec.positions import PositionSpec, RotarySettings
from moorage.workers.spec.selection import RetentionSpec, SelectionSpec
from moorage.workers.spec.steps import (
    ContinueSession,
    OpenSession,
    SamplingSpec,
    Segment,
    SegmentResult,
    StepPlan,
    StepResult,
)
from moorage.workers.spec.store import CODE_ELEMENTS, BlockShape, KvLayout, KvShape, StoreSpec

__all__ = [
    "CODE_ELEMENTS",
    "AnchorPool",
    "AnchorSpace",
    "AnchorType",
    "BlockShape",
    "ContinueSession",
    "DualChunkSpec",
    "HeadPool",
    "HeadSelectMode",
    "KvLayout",
    "KvShape",
    "KvType",
    "MemorySpec",
    "ModelSpec",
    "OpenSession",
    "PositionSpec",
    "Positions",
    "Preselect",
    "RetentionSpec",
    "RopeSpec",
    "RotarySettings",
    "SamplingSpec",
    "Scorer",
    "Segment",
    "SegmentResult",
    "SelectionSpec",
    "StepPlan",
    "StepResult",
    "StoreSpec",
]
