"""Single precision."""

from __future__ import annotations

from moorage.workers.kv.formats.native import NativeFormat


class Single(NativeFormat):
    """float32 as it is."""

    element = "float32"
    limit = (
        "the model computes a key or value that is not a finite number; set model.dtype to float32, or check the "
        "weights"
    )


FORMAT = Single()
