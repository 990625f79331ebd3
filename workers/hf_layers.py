"""Reads from a config.json which layers attend a sliding window, and which rotate queries and keys."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from moorage.workers.hf_fields import Fields
from moorage.workers.hf_rope import FULL, SLIDING
from moorage.workers.spec import LayerSpec, ModelSpec, RopeSpec


def read_layer_types(config: Fields) -> tuple[bool, ...] | None:
    """Whether each layer slides by the key `layer_types`; None without the key. Raises InvalidModel."""
    names, num_layers = config.get("layer_types"), config.positive_int("num_hidden_layers")
    if names is None:
        return None
    if (
        not isinstance(names, list)
        or len(names) != num_layers
        or any(n not in (FULL, SLIDING) for n in names)
    ):
        raise config.wrong("layer_types", f"{num_layers} names, each {FULL} or {SLIDING}")
    return tuple(name == SLIDING for name in names)


def read_pattern(config: Fields, default: int) -> tuple[bool, ...]:
    """Whether each layer slides by `layer_types`, or else by `sliding_window_pattern`: all but every n-th one.

    `default` stands for a pattern that is not there. Raises InvalidModel.
    """
    every = config.positive_int("sliding_window_pattern", default)
    num_layers = config.positive_int("num_hidden_layers")
    return read_layer_types(config) or tuple((layer + 1) % every != 0 for layer in range(num_layers))


def read_window(config: Fields, default: int | None) -> int | None:
    """`sliding_window`, which null takes away; `default` stands for a key that is not there."""
    if config.values.get("sliding_window", default) is None:
        return None
    return config.positive_int("sliding_window", default)


def with_windows(spec: ModelSpec, config: Fields, slides: Sequence[bool], window: int | None) -> ModelSpec:
    """`spec` with a window in the layers that slide.

    A window that is longer than the trained length leaves those layers as they are: no query sees the window.
    """
    if window is None or not any(slides):
        return spec
    if window > spec.max_position_embeddings:
        note = (
            f"{config.source}: sliding_window {window:,} is above max_position_embeddings "
            f"{spec.max_position_embeddings:,}; longer sessions attend all their tokens"
        )
        return replace(spec, notes=(*spec.notes, note))
    layers = spec.layers or tuple(LayerSpec() for _ in slides)
    return replace(
        spec,
        layers=tuple(
            replace(layer, window=window) if slid else layer
            for layer, slid in zip(layers, slides, strict=True)
        ),
    )


def with_sliding_rope(spec: ModelSpec, slides: Sequence[bool], rope: RopeSpec) -> ModelSpec:
    """`spec` with the rotary embedding `rope` in the layers that slide."""
    if rope == spec.rope:
        return spec
    layers = (replace(spec.layer(i), rope=rope) if slid else spec.layer(i) for i, slid in enumerate(slides))
    return replace(spec, layers=tuple(layers))


def with_rotation(spec: ModelSpec, rotates: Sequence[bool]) -> ModelSpec:
    """`spec` with rotary embeddings only in the layers that rotate."""
    if all(rotates):
        return spec
    layers = (replace(spec.layer(i), rotates=rotated) for i, rotated in enumerate(rotates))
    return replace(spec, layers=tuple(layers))
