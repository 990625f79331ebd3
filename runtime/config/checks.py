"""Checks that need more than one key of the configuration."""

from __future__ import annotations

from collections.abc import Iterator

from moorage.runtime.config.key_checks import Complaint, about_keys
from moorage.runtime.config.names import SETTINGS, keys_of_setting
from moorage.runtime.config.presets import Settings
from moorage.runtime.config.resolve import resolve_settings
from moorage.runtime.config.schema import ClusterConfig
from moorage.workers.counting import counted
from moorage.workers.kv.formats import format_of, takes_quantizer
from moorage.workers.sizes import LEAST_CHUNK
from moorage.workers.spec import (
    PACKED_TOKENS,
    AnchorPool,
    AnchorType,
    HeadPool,
    HeadSelectMode,
    KvType,
    Positions,
    Scorer,
)


def complaints(config: ClusterConfig) -> Iterator[Complaint]:
    """All that is wrong between keys; each complaint names the key to change first."""
    yield from _about_names(config)
    settings = resolve_settings(config)
    yield from _about_anchors(config, settings)
    yield from about_keys(config, settings)
    yield from _about_positions(config, settings)
    yield from _about_steps(config, settings)
    yield from _about_verification(settings)
    yield from _about_server(config)
    yield from _about_sessions(config)
    yield from _about_packing(config, settings)


def _about_packing(config: ClusterConfig, settings: Settings) -> Iterator[Complaint]:
    store, size = settings.store, settings.store.block_size
    takes = [each.value for each in KvType if takes_quantizer(each)]
    if config.kv_store.quantizer is not None and not takes_quantizer(store.kv_type):
        fix = f"remove it, or set long_context.kv_type to {' or '.join(takes)}"
        yield "kv_store", "quantizer", f"is of no use to kv_type {store.kv_type}; {fix}"
    if format_of(store.kv_type).is_native:
        return
    if store.n_fp16_sinks > size:
        text = f"{store.n_fp16_sinks} is more than a block of {size} tokens; use {size} or less"
        yield "memory", "n_fp16_sinks", text
    if size % PACKED_TOKENS:
        near = -(-size // PACKED_TOKENS) * PACKED_TOKENS
        fix = f"which kv_type {store.kv_type} packs; use {near} or another multiple"
        yield "long_context", "block_size", f"{size} is not a multiple of {PACKED_TOKENS} tokens, {fix}"


def _about_sessions(config: ClusterConfig) -> Iterator[Complaint]:
    for key in ("save_after", "max_bytes"):
        if getattr(config.sessions, key) is not None and config.sessions.path is None:
            yield "sessions", key, "says how sessions are saved, and sessions.path names no folder; name one"


def _about_names(config: ClusterConfig) -> Iterator[Complaint]:
    """A setting that is given under two of its names with different values."""
    for name in dict.fromkeys(each.name for each in SETTINGS.values()):
        first, *others = keys_of_setting(name)
        section, _, key = first.partition(".")
        value = getattr(getattr(config, section), key)
        for place in others:
            other = getattr(getattr(config, place.partition(".")[0]), place.partition(".")[2])
            if None not in (value, other) and value != other:
                yield (
                    section,
                    key,
                    f"is {value} and {place} is {other}, but both name one setting; remove one of the two",
                )


def _about_anchors(config: ClusterConfig, settings: Settings) -> Iterator[Complaint]:
    store, selection = settings.store, settings.memory.selection
    if store.block_size % store.anchor_num:
        yield (
            "long_context",
            "anchor_num",
            f"{store.anchor_num} does not divide block_size {store.block_size}; use a divisor of it",
        )
    bad_count = store.repr_topk % store.anchor_num or store.repr_topk > store.block_size
    if store.anchor_type is AnchorType.REPR_TOPK and bad_count:
        yield (
            "memory",
            "repr_topk",
            f"{store.repr_topk} is not a multiple of anchor_num {store.anchor_num} up to block_size "
            f"{store.block_size}; use {store.anchor_num} or another such multiple",
        )
    if store.scorer is not Scorer.NUMBA and not _is_linear(settings):
        yield (
            "memory",
            "scorer",
            f"{store.scorer} scores sums over all heads and anchors only; use head_select_mode SHARED, "
            "head_pool sum and anchor_pool sum (or anchor_num 1), or scorer numba",
        )
    cached, topk = config.memory.max_cached_block, selection.topk or 0
    if cached is not None and cached < topk:
        yield (
            "memory",
            "max_cached_block",
            f"{cached} is less than the {counted(topk, 'block')} that a step attends; use {topk} or more",
        )


def _is_linear(settings: Settings) -> bool:
    store, selection = settings.store, settings.memory.selection
    adds_up = store.anchor_num == 1 or selection.anchor_pool is AnchorPool.SUM
    shared = selection.head_select_mode is HeadSelectMode.SHARED and selection.head_pool is HeadPool.SUM
    return adds_up and shared


def _about_positions(config: ClusterConfig, settings: Settings) -> Iterator[Complaint]:
    memory, topk, block_size = config.memory, settings.memory.selection.topk, settings.store.block_size
    scheme, dca_chunk = settings.memory.positions.scheme, settings.memory.positions.dca_chunk
    if scheme is Positions.ROLLING and topk != 0:
        yield (
            "memory",
            "positions",
            "rolling gives only sinks and window a position; set memory.topk to 0, or use rope or clamped",
        )
    if scheme is Positions.DCA and topk == 0:
        yield (
            "memory",
            "positions",
            "dca needs keys beyond the window and topk is 0; raise memory.topk, or use rope or rolling",
        )
    for key in ("dca_chunk", "mscale"):
        if getattr(memory, key) is not None and scheme is not Positions.DCA:
            yield (
                "memory",
                key,
                f"belongs to dca and positions are {scheme.value}; remove it or set memory.positions to dca",
            )
    if dca_chunk is not None and dca_chunk % block_size:
        yield (
            "memory",
            "dca_chunk",
            f"{dca_chunk} is not a multiple of block_size {block_size}; "
            f"use {max(1, dca_chunk // block_size) * block_size} or another multiple",
        )
    if memory.rope_scaling is not None and memory.rope_scaling_factor is not None:
        yield (
            "memory",
            "rope_scaling_factor",
            "is short for a rope_scaling of type dynamic, and rope_scaling is given too; remove one of the two",
        )


def _about_verification(settings: Settings) -> Iterator[Complaint]:
    memory = settings.memory
    if not memory.verify:
        return
    if memory.selection.execution_block:
        yield (
            "memory",
            "verify",
            f"{memory.verify} gives the answer of full attention, but prompts are prefilled with a selection; set "
            "memory.exc_block_size to 0, or memory.verify to 0",
        )
    if memory.selection.topk == 0:
        yield (
            "memory",
            "verify",
            f"{memory.verify} attends all keys, but memory.topk 0 attends sinks and window alone; raise memory.topk, "
            "or set memory.verify to 0",
        )


def _about_steps(config: ClusterConfig, settings: Settings) -> Iterator[Complaint]:
    given, step = config.long_context.chunk_size, config.max_step_tokens
    # An automatic one is a multiple of the least, and no longer than a step.
    chunk = given if isinstance(given, int) else LEAST_CHUNK
    shared = settings.memory.selection.execution_block
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


def _about_server(config: ClusterConfig) -> Iterator[Complaint]:
    server = config.server
    needs = {"tls_cert": ("tls_key",), "tls_key": ("tls_cert",), "tls_client_ca": ("tls_cert", "tls_key")}
    for key, others in needs.items():
        missing = [other for other in others if getattr(server, other) is None]
        if getattr(server, key) is not None and missing:
            yield "server", key, f"needs server.{missing[0]} beside it; give both, or none"
