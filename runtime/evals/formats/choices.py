"""The formats that are laid side by side, as choices of one configuration."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from moorage.runtime.evals.local_targets import LocalConfig
from moorage.runtime.evals.variants import Variant, check_names
from moorage.runtime.planning.host import deployment_of
from moorage.workers.errors import InvalidRequest
from moorage.workers.hf_config import read_model_spec
from moorage.workers.kv.formats import format_of
from moorage.workers.kv.formats.base import PackedFormat
from moorage.workers.spec import KvType

EXACT = KvType.FP16
"""What other formats are measured against."""
FORMATS = tuple(kind.value for kind in KvType if kind is not KvType.FP32)


@dataclass(frozen=True, slots=True)
class Stored:
    """What a choice stores of each token."""

    kv_bytes: float
    """Keys and values of all layers, with what the format stores beside them."""
    index_bytes: float
    """Anchors and codes of all layers."""


def format_variants(
    formats: Sequence[str], presets: Sequence[str], quantizer: Path | None, more: Iterable[Variant] = ()
) -> list[Variant]:
    """Each format under each preset, and `more`. Formats that can use a quantizer get that file, if there is one.

    Raises InvalidRequest for an unknown format, and for a name that stands for two choices.
    """
    found = []
    for preset in presets:
        for name in formats:
            kind = _kind(name)
            overrides = [f"long_context.kv_type={kind.value}", f"memory.preset={preset}"]
            stored = format_of(kind)
            if quantizer is not None and isinstance(stored, PackedFormat) and stored.takes_quantizer:
                overrides.append(f"kv_store.quantizer={quantizer.resolve()}")
            label = kind.value if len(presets) == 1 else f"{kind.value}, {preset}"
            found.append(Variant(label, None, tuple(overrides)))
    found += more
    check_names(found)
    return found


def stored(source: LocalConfig, variant: Variant) -> Stored:
    """The bytes of a variant's store. Raises InvalidConfig or InvalidModel as a launch does."""
    config = source.load(variant.overrides)
    layout = deployment_of(config, read_model_spec(config.model.path)).layout
    size = layout.block_size
    return Stored(layout.page_kv_bytes / size, layout.page_anchor_bytes / size)


def _kind(name: str) -> KvType:
    try:
        return KvType(name.upper())
    except ValueError:
        known = ", ".join(kind.value for kind in KvType)
        raise InvalidRequest(f"formats: {name!r} should be one of {known}") from None
