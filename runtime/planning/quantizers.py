"""The quantizer that a configuration names, read and checked against the model before anything starts."""

from __future__ import annotations

from dataclasses import replace

from moorage.runtime.config.schema import ClusterConfig
from moorage.workers.kv.formats import format_of
from moorage.workers.kv.formats.base import PackedFormat
from moorage.workers.kv.formats.quantizer import Quantizer
from moorage.workers.spec import KvLayout, KvType


def with_quantizer(config: ClusterConfig, layout: KvLayout) -> tuple[KvLayout, Quantizer | None]:
    """The layout with the digest of `kv_store.quantizer`, and the quantizer itself.

    Raises InvalidConfig for a file of another model, of other bits, or that is damaged.
    """
    file, format = config.kv_store.quantizer, format_of(layout.kv_type)
    if file is None or not isinstance(format, PackedFormat) or not format.takes_quantizer:
        return layout, None
    from moorage.runtime.serving.sessions.fingerprint import model_fingerprint
    from moorage.workers.kv.formats.quantizer_array import digest_of
    from moorage.workers.kv.formats.quantizer_file import read_quantizer

    shape = layout.num_layers, layout.num_kv_heads, layout.head_dim
    found = read_quantizer(file, format.bits, model_fingerprint(config.model.path), shape)
    types: tuple[KvType, ...] = ()
    if set(found.layer_bits) != {format.bits}:
        types = tuple(KvType(f"NUQ{bits}") for bits in found.layer_bits)
    return replace(layout, quantizer=digest_of(found), layer_kv_types=types), found
