"""Checks that need more than one key of the configuration."""

from __future__ import annotations

from collections.abc import Iterator

from moorage.runtime.config.position_checks import position_complaints
from moorage.runtime.config.presets import Preset
from moorage.runtime.config.resolve import resolve_preset
from moorage.runtime.config.schema import ClusterConfig
from moorage.workers.counting import counted
from moorage.workers.sizes import LEAST_CHUNK
from moorage.workers.spec import (
    AnchorPool,
    AnchorSpace,
    AnchorType,
    HeadPool,
    HeadSelectMode,
    Preselect,
    Scorer,
)

Complaint = tuple[str, str, str]
"""Section, key, and what is wrong with it beside which other key, with the fix."""


def complaints(config: ClusterConfig) -> Iterator[Complaint]:
    """All that is wrong between keys; each complaint names the key to change first."""
    yield from _about_selection(config)
    yield from _about_lag(config)
    yield from position_complaints(config)
    yield from _about_steps(config)


def _about_selection(config: ClusterConfig) -> Iterator[Complaint]:
    memory, second = config.memory, config.long_context.second_select_num
    preset = resolve_preset(config)
    if memory.topk is not None and second is not None and memory.topk != second:
        yield (
            "memory",
            "topk",
            f"is {memory.topk} and long_context.second_select_num is {second}, but both name one budget; "
            "remove one of the two",
        )
    if preset.block_size % preset.anchor_num:
        yield (
            "long_context",
            "anchor_num",
            f"{preset.anchor_num} does not divide block_size {preset.block_size}; use a divisor of it",
        )
    yield from _about_anchors(config, preset)
    if memory.max_cached_block is not None and memory.max_cached_block < (preset.topk or 0):
        yield (
            "memory",
            "max_cached_block",
            f"{memory.max_cached_block} is less than the {counted(preset.topk or 0, 'block')} that a step attends; "
            f"use {preset.topk} or more",
        )


def _about_anchors(config: ClusterConfig, preset: Preset) -> Iterator[Complaint]:
    bad_count = preset.repr_topk % preset.anchor_num or preset.repr_topk > preset.block_size
    if preset.anchor_type is AnchorType.REPR_TOPK and bad_count:
        yield (
            "memory",
            "repr_topk",
            f"{preset.repr_topk} is not a multiple of anchor_num {preset.anchor_num} up to block_size "
            f"{preset.block_size}; use {preset.anchor_num} or another such multiple",
        )
    if config.memory.scorer is not Scorer.NUMBA and not _is_linear(preset):
        yield (
            "memory",
            "scorer",
            f"{config.memory.scorer} scores sums over all heads and anchors only; use head_select_mode SHARED, "
            "head_pool sum, anchor_pool sum (or anchor_num 1) and preselect_block off or prompt, or scorer numba",
        )
    if preset.preselect_block is Preselect.STEP and preset.anchor_space is AnchorSpace.ROTATED:
        yield (
            "long_context",
            "preselect_block",
            "step compares single keys, which are stored un-rotated, but anchor_space is rotated; "
            "use anchor_space plain or preselect_block prompt",
        )


def _about_lag(config: ClusterConfig) -> Iterator[Complaint]:
    preset = resolve_preset(config)
    if not preset.lag:
        return
    for key in ("layer_step", "token_step"):
        if getattr(preset, key) > 1:
            yield (
                "memory",
                "lag",
                f"1 takes each layer's choice from the step before, but {key} is {getattr(preset, key)}; "
                f"set long_context.{key} to 1 or memory.lag to 0",
            )
    if preset.preselect_block is Preselect.STEP:
        yield (
            "memory",
            "lag",
            "1 makes each choice in one pass, but preselect_block is step; use off or prompt, or memory.lag 0",
        )
    if not preset.topk:
        attended = "no block" if preset.topk == 0 else "every block"
        yield (
            "memory",
            "lag",
            f"1 needs a choice, but {attended} beyond the window is attended; set memory.topk, or memory.lag 0",
        )
    if config.gpu_workers.score_on == "device":
        yield (
            "memory",
            "lag",
            "1 has the KV actors choose while the device computes, but gpu_workers.score_on is device; "
            "use auto or cpu, or memory.lag 0",
        )


def _is_linear(preset: Preset) -> bool:
    adds_up = preset.anchor_num == 1 or preset.anchor_pool is AnchorPool.SUM
    shared = preset.head_select_mode is HeadSelectMode.SHARED and preset.head_pool is HeadPool.SUM
    return adds_up and shared and preset.preselect_block is not Preselect.STEP


def _about_steps(config: ClusterConfig) -> Iterator[Complaint]:
    given, step = config.long_context.chunk_size, config.max_step_tokens
    # An automatic one is a multiple of the least, and no longer than a step.
    chunk = given if isinstance(given, int) else LEAST_CHUNK
    shared = resolve_preset(config).exc_block_size
    if shared and chunk % shared:
        near = max(shared, chunk // shared * shared)
        yield (
            "long_context",
            "chunk_size",
            f"{chunk} is not a multiple of exc_block_size {shared}; use {near} or another multiple",
        )
    if given != "auto" and step > chunk:
        yield (
            "scheduler",
            "max_step_tokens",
            f"{step} is more than long_context.chunk_size {chunk}; lower it or raise chunk_size",
        )
    step = min(step, chunk)
    if config.server.max_running > step:
        yield (
            "server",
            "max_running",
            f"{counted(config.server.max_running, 'session')} at once can't each have a token of a step of {step}; "
            "lower it or raise scheduler.max_step_tokens",
        )
