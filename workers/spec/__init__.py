"""Values that cross between packages and processes. Frozen, typed, and free of torch, ray and numba.

The lower package owns the contract: `runtime` builds these from configuration and requests, `workers` obey them.
"""

from moorage.workers.spec.idle_sessions import ForkSession, RestoreSession
from moorage.workers.spec.kinds import (
    Activation,
    AnchorPool,
    AnchorSpace,
    AnchorType,
    ExpertScores,
    ExpertsPlace,
    HeadPool,
    HeadSelectMode,
    KvType,
    NormKind,
    Positions,
    Preselect,
    QkNorm,
    Residual,
    Scorer,
    WeightKind,
)
from moorage.workers.spec.memory import MemorySpec
from moorage.workers.spec.model import (
    DualChunkSpec,
    ExpertsSpec,
    LayerSpec,
    ModelSpec,
    RopeSpec,
    StoredMatrix,
)
from moorage.workers.spec.positions import PositionSpec, RotarySettings
from moorage.workers.spec.sampling import SamplingSpec
from moorage.workers.spec.selection import RetentionSpec, SelectionSpec
from moorage.workers.spec.steps import (
    ContinueSession,
    OpenSession,
    SampledToken,
    Segment,
    SegmentResult,
    StepPlan,
    StepResult,
)
from moorage.workers.spec.store import (
    FIRST_LEVEL_BLOCKS,
    KEY_CODE_TOKENS,
    PACKED_TOKENS,
    BlockShape,
    KvLayout,
    KvShape,
    StoreSpec,
)
from moorage.workers.spec.window import RING_BLOCK, RING_MARGIN, WindowLayout

__all__ = [
    "FIRST_LEVEL_BLOCKS",
    "KEY_CODE_TOKENS",
    "PACKED_TOKENS",
    "RING_BLOCK",
    "RING_MARGIN",
    "Activation",
    "AnchorPool",
    "AnchorSpace",
    "AnchorType",
    "BlockShape",
    "ContinueSession",
    "DualChunkSpec",
    "ExpertScores",
    "ExpertsPlace",
    "ExpertsSpec",
    "ForkSession",
    "HeadPool",
    "HeadSelectMode",
    "KvLayout",
    "KvShape",
    "KvType",
    "LayerSpec",
    "MemorySpec",
    "ModelSpec",
    "NormKind",
    "OpenSession",
    "PositionSpec",
    "Positions",
    "Preselect",
    "QkNorm",
    "Residual",
    "RestoreSession",
    "RetentionSpec",
    "RopeSpec",
    "RotarySettings",
    "SampledToken",
    "SamplingSpec",
    "Scorer",
    "Segment",
    "SegmentResult",
    "SelectionSpec",
    "StepPlan",
    "StepResult",
    "StoreSpec",
    "StoredMatrix",
    "WeightKind",
    "WindowLayout",
]
