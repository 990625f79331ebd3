"""One layer of decode for all sessions at once: new rows written, blocks selected, blocks attended."""

from moorage.kernels.decode_layer.cpu import decode_layer
from moorage.kernels.decode_layer.records import (
    FINE,
    MAX_PARTS,
    MISFIT,
    NOT_FINITE_ROW,
    Attended,
    LayerMemory,
    LayerShape,
    Selections,
    SessionBatch,
)

__all__ = [
    "FINE",
    "MAX_PARTS",
    "MISFIT",
    "NOT_FINITE_ROW",
    "Attended",
    "LayerMemory",
    "LayerShape",
    "Selections",
    "SessionBatch",
    "decode_layer",
]
