"""The rotary embedding that a `config.json` names, in transformers 5's keys or the older ones."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from moorage.workers.errors import InvalidModel
from moorage.workers.hf_fields import Fields
from moorage.workers.hf_keys import check_rope_keys
from moorage.workers.spec import RopeSpec

MOST_THETA = 1e15
_OLD_NAMES = {"su": "longrope"}
FULL, SLIDING = "full_attention", "sliding_attention"
"""Types of layers: `layer_types` has them, and `rope_parameters` where these have rotary embeddings of their own."""
_LAYER_TYPES = (FULL, SLIDING)


def read_rope(config: Fields, head_dim: int, by_layer: bool = False) -> RopeSpec:
    """RopeSpec of a model whose heads have `head_dim` channels; of layers that attend everything where layers differ.

    `by_layer` allows those that slide to have another one. Reads `rope_parameters` (transformers 5) or `rope_theta`
    and `rope_scaling` (older); as in transformers, `rope_scaling` wins where both are given. Raises InvalidModel for
    an unknown type or a bad field.
    """
    rope = _rope_object(config)
    if rope is not None and any(name in rope.values for name in _LAYER_TYPES):
        if rope.get(SLIDING) is not None and not by_layer:
            raise InvalidModel(
                f"{rope.source}: differs by layer type; only models with one rotary embedding are supported"
            )
        rope = _of_layers(rope, FULL)
    return _read(config, rope, head_dim)


def read_sliding_rope(config: Fields, head_dim: int) -> RopeSpec:
    """RopeSpec of the layers that slide: of `rope_parameters`, or by Gemma 3's `rope_local_base_freq`.

    Raises InvalidModel as `read_rope` does.
    """
    rope, own = _rope_object(config), config.get("rope_local_base_freq")
    if rope is not None and rope.get(SLIDING) is not None:
        return _read(config, _of_layers(rope, SLIDING), head_dim)
    if own is None:
        return read_rope(config, head_dim, by_layer=True)
    theta = config.positive_float("rope_local_base_freq", most=MOST_THETA)
    return _read(config, Fields({"rope_theta": theta}, config.source), head_dim)


def _read(config: Fields, given: Fields | None, head_dim: int) -> RopeSpec:
    """The rotary embedding of the object `given`, which the top level of the configuration completes."""
    rope = _completed(config, given)
    theta = rope.positive_float("rope_theta", 10000.0, most=MOST_THETA)
    if theta <= 1:
        raise rope.wrong("rope_theta", "a number above 1")
    plain = RopeSpec(
        rope_type=_rope_type(rope),
        theta=theta,
        rotary_dim=_rotary_dim(rope, head_dim),
        max_position_embeddings=config.positive_int("max_position_embeddings"),
    )
    return _READERS[plain.rope_type](plain, rope)


def _rope_object(config: Fields) -> Fields | None:
    newer, older = config.child("rope_parameters"), config.child("rope_scaling")
    return older or newer


def _of_layers(rope: Fields, name: str) -> Fields:
    """What `rope` says of the layers of one type. Raises InvalidModel where it says something of all of them too."""
    check_rope_keys(rope, _LAYER_TYPES)
    flat = rope.child(name)
    if flat is None:
        raise rope.wrong(name, "an object")
    return flat


def _completed(config: Fields, rope: Fields | None) -> Fields:
    """One flat object: the model's rope object, completed from the top level of the configuration."""
    if rope is not None:
        check_rope_keys(rope)
    values = {} if rope is None else dict(rope.values)
    for name in ("rope_theta", "partial_rotary_factor"):
        given = config.get(name)
        if values.get(name) is None:
            values[name] = given
    if config.get("original_max_position_embeddings") is not None:
        values["original_max_position_embeddings"] = config.get("original_max_position_embeddings")
    return Fields(values, config.source if rope is None else rope.source)


def _rope_type(rope: Fields) -> str:
    name = rope.get("rope_type") or rope.get("type") or "default"
    name = _OLD_NAMES.get(name, name) if isinstance(name, str) else name
    if name not in ROPE_TYPES or rope.get("mrope_section") is not None:
        shown = f"{name} with mrope_section" if name in ROPE_TYPES else repr(name)
        raise InvalidModel(f"{rope.source}: rope_type {shown} is not supported; use {', '.join(ROPE_TYPES)}")
    return str(name)


def _rotary_dim(rope: Fields, head_dim: int) -> int:
    rotary_dim = int(head_dim * rope.positive_float("partial_rotary_factor", 1.0))
    if rotary_dim % 2 or not 4 <= rotary_dim <= head_dim:
        raise rope.wrong(
            "partial_rotary_factor", f"an even share of head_dim {head_dim}, at least 4 channels"
        )
    return rotary_dim


def _plain(spec: RopeSpec, rope: Fields) -> RopeSpec:
    del rope
    return spec


def _factor(spec: RopeSpec, rope: Fields) -> RopeSpec:
    """Reads the types linear and dynamic."""
    return replace(spec, factor=rope.positive_float("factor"))


def _from_original(spec: RopeSpec, rope: Fields) -> RopeSpec:
    """`spec` with the length before its scaling; the factor is the growth since then, where none is given."""
    longest = spec.max_position_embeddings
    original = rope.positive_int("original_max_position_embeddings", longest)
    return replace(
        spec,
        original_max_position_embeddings=original,
        factor=rope.positive_float("factor", longest / original),
        attention_factor=rope.optional_positive_float("attention_factor"),
    )


def _yarn(spec: RopeSpec, rope: Fields) -> RopeSpec:
    return replace(
        _from_original(spec, rope),
        beta_fast=_or_none(rope, "beta_fast") or 32.0,
        beta_slow=_or_none(rope, "beta_slow") or 1.0,
        mscale=_or_none(rope, "mscale"),
        mscale_all_dim=_or_none(rope, "mscale_all_dim"),
        truncate=rope.flag("truncate", True),
    )


def _or_none(rope: Fields, name: str) -> float | None:
    """A positive number; 0 counts as absent, as it does in transformers (`mscale_all_dim` is published so)."""
    value = rope.get(name)
    return None if value == 0 and not isinstance(value, bool) else rope.optional_positive_float(name)


def _longrope(spec: RopeSpec, rope: Fields) -> RopeSpec:
    return replace(
        _from_original(spec, rope),
        short_factor=rope.positive_floats("short_factor", spec.rotary_dim // 2),
        long_factor=rope.positive_floats("long_factor", spec.rotary_dim // 2),
    )


def _llama3(spec: RopeSpec, rope: Fields) -> RopeSpec:
    low, high = rope.positive_float("low_freq_factor"), rope.positive_float("high_freq_factor")
    if high <= low:
        raise rope.wrong("high_freq_factor", f"above low_freq_factor {low:g}")
    original = rope.positive_int("original_max_position_embeddings", spec.max_position_embeddings)
    return replace(
        _factor(spec, rope),
        original_max_position_embeddings=original,
        low_freq_factor=low,
        high_freq_factor=high,
    )


_READERS: Mapping[str, Callable[[RopeSpec, Fields], RopeSpec]] = {
    "default": _plain,
    "linear": _factor,
    "dynamic": _factor,
    "yarn": _yarn,
    "longrope": _longrope,
    "llama3": _llama3,
}
"""Reads what each type has beside its name, its base and its dimension."""
ROPE_TYPES = tuple(_READERS)
