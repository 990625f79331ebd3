"""Checks of the settings that select single keys in place of blocks."""

from __future__ import annotations

from collections.abc import Iterator

from moorage.runtime.config.names import keys_of_setting
from moorage.runtime.config.presets import Settings
from moorage.runtime.config.resolve import given
from moorage.runtime.config.schema import ClusterConfig
from moorage.workers.spec import KEY_CODE_TOKENS, Preselect, Scorer, SelectionSpec
from moorage.workers.spec.setting import settings_of, values_of

Complaint = tuple[str, str, str]
"""Section, key, and what is wrong with it beside which other key, with the fix."""
_NEEDED = {
    "layer_step": 1,
    "token_step": 1,
    "preselect": Preselect.OFF,
    "asynchronous": 0,
    "execution_block": 0,
}
"""Setting -> its one value beside single keys, which each step selects by itself after an exact prefill."""
_OF_BLOCKS = ("head_select_mode", "head_pool", "anchor_pool")
"""Settings of selections of blocks, which say nothing of single keys."""


def about_keys(config: ClusterConfig, settings: Settings) -> Iterator[Complaint]:
    """All that is wrong with codes of keys, and with what selects by them."""
    yield from _about_codes(settings)
    selection, store = settings.memory.selection, settings.store
    keys = selection.topk_keys
    if not keys:
        return
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
    values = values_of(selection)
    for name, needed in _NEEDED.items():
        if values[name] != needed:
            yield _unlike(name, values[name], keys, f"set it to {needed}")
    defaults = {each.name: each.default for each in settings_of(SelectionSpec)}
    own = given(config, SelectionSpec)
    for name in _OF_BLOCKS:
        if own.get(name, defaults[name]) != defaults[name]:
            yield _unlike(name, own[name], keys, "remove it")
    if store.scorer is not Scorer.NUMBA:
        yield _unlike("scorer", store.scorer, keys, "use numba")
    if config.gpu_workers.score_on == "device":
        yield "gpu_workers", "score_on", _text("device", keys, "use auto or cpu")


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
