"""Where single keys can be selected in place of blocks, and how the codes of keys must be made for it."""

from __future__ import annotations

from moorage.runtime.config.presets import Settings
from moorage.workers.spec import (
    KEY_CODE_TOKENS,
    AnchorPool,
    AnchorSpace,
    HeadPool,
    HeadSelectMode,
    Positions,
    Preselect,
    Scorer,
)

NEEDED = {
    "layer_step": 1,
    "token_step": 1,
    "preselect": Preselect.OFF,
    "scorer": Scorer.NUMBA,
}
"""Setting -> its one value beside single keys, which each step selects by itself."""
OF_BLOCKS = {
    "head_select_mode": HeadSelectMode.SHARED,
    "head_pool": HeadPool.SUM,
    "anchor_pool": AnchorPool.MAX,
}
"""Setting of selections of blocks, which says nothing of single keys -> its default."""


def space_of_codes(scheme: Positions) -> AnchorSpace:
    """Which keys are coded, so that codes estimate the logits of attention.

    Clamped positions see distant keys un-rotated. Dual chunks see them rotated within their chunk, which equals keys
    rotated at their own positions and a query that is rotated further by whole chunks.
    """
    return AnchorSpace.PLAIN if scheme is Positions.CLAMPED else AnchorSpace.ROTATED


def can_select_keys(settings: Settings) -> bool:
    """Whether single keys can be selected under all the other settings."""
    store, scheme = settings.store, settings.memory.positions.scheme
    has_codes = store.anchor_type.codes_keys and store.anchor_num == 1
    if not has_codes or store.block_size % KEY_CODE_TOKENS:
        return False
    values = settings.values()
    if bool(values["execution_block"]) != bool(values["prefill_blocks"]):
        return False
    unlike = [name for name, value in (NEEDED | OF_BLOCKS).items() if values[name] != value]
    return not unlike and store.anchor_space is space_of_codes(scheme)
