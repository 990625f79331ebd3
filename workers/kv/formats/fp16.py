"""Half precision."""

from __future__ import annotations

from moorage.workers.kv.formats.native import NativeFormat


class Half(NativeFormat):
    """The bits of float16."""

    element = "float16"
    limit = "a key or value is larger than 65504, the most that FP16 storage holds; set long_context.kv_type to FP32"


FORMAT = Half()
