"""Checks of the settings that select single keys in place of blocks."""

from __future__ import annotations

from collections.abc import Iterator

from moorage.runtime.config.names import keys_of_setting
from moorage.runtime.config.presets import Settings
from moorage.runtime.config.resolve import given
from moorage.runtime.config.schema import ClusterConfig
from moorage.runtime.config.single_keys import NEEDED, OF_BLOCKS, space_of_codes
from moorage.workers.spec import KEY_CODE_TOKENS, SelectionSpec

Complaint = tuple[str, str, str]
"""Section, key, and what is wrong with it beside which other key, with the fix."""


def about_keys(config: ClusterConfig, settings: Settings) -> Iterator[Complaint]:
    """All that is wrong with codes of keys, and with what selects by them."""
    yield from _about_codes(settings)
    selection, store = settings.memory.selection, settings.store
    keys = selection.topk_keys
    if not keys:
        if selection.prefill_blocks:
            text = f"{selection.prefill_blocks} is of single keys, and topk_keys is 0; remove it, and set memory.topk"
            yield "memory", "prefill_blocks", text
        return
    yield from _about_prefill(selection)
    if selection.topk is not None:
        text = f"{keys} selects single keys, but topk {selection.topk} selects blocks; remove one of the two"
        yield "memory", "topk_keys", text
    if not store.anchor_type.codes_keys:
        yield (
            "memory",
            "topk_keys",
            f"{keys} needs codes of single keys, but anchor_type is {store.anchor_type}; "
            "set long_context.anchor_type to KEY_CODES, or memory.topk_keys to 0",
        )
    values = settings.values()
    for name, needed in NEEDED.items():
        if values[name] != needed:
            yield _unlike(name, values[name], keys, f"set it to {needed}")
    own = given(config, SelectionSpec)
    for name, default in OF_BLOCKS.items():
        if own.get(name, default) != default:
            yield _unlike(name, own[name], keys, "remove it")
    if config.gpu_workers.score_on == "device":
        yield "gpu_workers", "score_on", _text("device", keys, "use auto or cpu")
    yield from _about_positions(settings, keys)


def _about_prefill(selection: SelectionSpec) -> Iterator[Complaint]:
    shared, blocks = selection.execution_block, selection.prefill_blocks
    if shared and not blocks:
        text = (
            f"{shared} lets prompts select blocks, and memory.prefill_blocks is 0; set how many, or remove it"
        )
        yield "memory", "exc_block_size", text
    if blocks and not shared:
        text = f"{blocks} needs a selection in prefill, but exc_block_size is 0; set memory.exc_block_size"
        yield "memory", "prefill_blocks", text


def _about_positions(settings: Settings, keys: int) -> Iterator[Complaint]:
    scheme, space = settings.memory.positions.scheme, settings.store.anchor_space
    if space is not space_of_codes(scheme):
        text = f"topk_keys {keys} needs codes of the keys as positions {scheme} see them, and anchor_space is {space}"
        yield "memory", "anchor_space", f"{text}; use {space_of_codes(scheme)}, or set memory.topk_keys to 0"


def _about_codes(settings: Settings) -> Iterator[Complaint]:
    store = settings.store
    if not store.anchor_type.codes_keys:
        return
    if store.block_size % KEY_CODE_TOKENS:
        yield (
            "long_context",
            "block_size",
            f"{store.block_size} is not a multiple of {KEY_CODE_TOKENS}, as {store.anchor_type} anchors need it; "
            f"use {-(-store.block_size // KEY_CODE_TOKENS) * KEY_CODE_TOKENS} or another multiple",
        )
    if store.anchor_num != 1:
        yield (
            "long_context",
            "anchor_num",
            f"{store.anchor_num} is more than the one mean of a block that {store.anchor_type} anchors have; use 1",
        )


def _unlike(name: str, value: object, keys: int, fix: str) -> Complaint:
    section, _, key = keys_of_setting(name)[0].partition(".")
    return section, key, _text(value, keys, fix)


def _text(value: object, keys: int, fix: str) -> str:
    belongs = f"{value} belongs to selections of blocks, but topk_keys {keys} selects single keys"
    return f"{belongs}; {fix}, or set memory.topk_keys to 0"
