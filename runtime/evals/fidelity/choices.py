"""The settings of memory that are laid side by side: presets and variants at one budget of attended tokens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from moorage.runtime.config.names import SETTINGS, keys_of_setting
from moorage.runtime.config.presets import check_preset_name
from moorage.runtime.config.resolve import kv_layout, resolve_settings
from moorage.runtime.config.schema import ClusterConfig
from moorage.runtime.config.session_settings import resolve_memory
from moorage.runtime.evals.local_targets import LocalConfig
from moorage.runtime.evals.variants import Variant
from moorage.workers.errors import InvalidRequest
from moorage.workers.spec import (
    KvLayout,
    MemorySpec,
    ModelSpec,
    SelectionSpec,
    StoreSpec,
)
from moorage.workers.spec.setting import settings_of

FULL = "full"
PER_KV_HEAD = Variant(
    "QUEST 32 per KV head",
    None,
    (
        "memory.preset=ktransformers",
        "long_context.anchor_type=QUEST",
        "memory.anchor_space=plain",
        "long_context.block_size=32",
        "long_context.head_select_mode=SEPARATE",
    ),
)
"""Bounds of blocks with one selection for each KV head, which no preset is."""


@dataclass(frozen=True, slots=True)
class Choice:
    """One column of the comparison: settings of memory, and the store that they need."""

    name: str
    """The preset or variant."""
    budget: int | None
    """Tokens selected beside sinks and window; None where the variant says it itself, or attends all."""
    config: ClusterConfig
    memory: MemorySpec
    layout: KvLayout

    @property
    def index_bytes(self) -> float:
        """Bytes of anchors and codes, for each key and KV head of a layer."""
        layout = self.layout
        return layout.page_anchor_bytes / (layout.block_size * layout.num_layers * layout.num_kv_heads)

    @property
    def attends_all(self) -> bool:
        """Whether nothing is selected."""
        return self.memory.selection.topk is None and not self.memory.selection.topk_keys


@dataclass(frozen=True, slots=True)
class Frame:
    """What all choices share, so that only their selection differs."""

    sinks: int = 64
    window: int = 512
    prefill: bool = False
    """Whether a choice prefills as it is configured; otherwise every prompt is prefilled exactly."""

    def settings(self) -> dict[str, Any]:
        """The settings, by name."""
        exact = {} if self.prefill else {"execution_block": 0}
        return {"sinks": self.sinks, "window": self.window, "dense_until": 0, "recall_every": 0} | exact


def choices(
    source: LocalConfig,
    model: ModelSpec,
    presets: Sequence[str],
    variants: Sequence[Variant],
    budgets: Sequence[int],
    frame: Frame,
) -> list[Choice]:
    """Every preset and variant at every budget; a variant that names its own budget once.

    `full` is always the first. A preset brings its selection and its store; positions stay those of the
    configuration. A variant's own keys go before what all choices share. Raises InvalidConfig or InvalidRequest for
    what can't be.
    """
    base = source.load()
    asked = [Variant(name, None, _of_preset(name, base)) for name in presets if name != FULL]
    asked += variants
    found: list[Choice] = []
    for variant in asked:
        named = {SETTINGS[key].name for key in _keys(variant.overrides) if key in SETTINGS}
        own = variant.name in presets or not named & {"topk", "topk_keys"}
        shared = {name: value for name, value in frame.settings().items() if name not in named}
        config = source.load([*variant.overrides, *_overrides(shared)])
        settings = resolve_settings(config)
        # A store of codes is there to be selected from; its least variant names the store alone.
        selects = settings.memory.selection.selects or settings.store.anchor_type.codes_keys
        for budget in budgets if selects and own else (None,):
            overrides = [*variant.overrides, *_overrides(shared | _budget(settings.values(), budget))]
            at_budget = source.load(overrides)
            memory = resolve_memory(at_budget, None, model)
            found.append(Choice(variant.name, budget, at_budget, memory, kv_layout(at_budget, model)))
    first = (
        found[0]
        if found
        else Choice(FULL, None, base, resolve_memory(base, FULL, model), kv_layout(base, model))
    )
    # On the store of another, so that it needs no prefill of its own.
    return [replace(first, name=FULL, budget=None, memory=full_attention(first.memory)), *found]


def full_attention(memory: MemorySpec) -> MemorySpec:
    """The same positions over every key."""
    return replace(memory, preset=FULL, selection=SelectionSpec())


def _of_preset(name: str, base: ClusterConfig) -> tuple[str, ...]:
    """Overrides after which a configuration selects and stores as a preset does, under its own positions."""
    try:
        check_preset_name(name)
    except ValueError as error:
        raise InvalidRequest(f"--preset {name}: {error}") from None
    freed = [
        f"{key}=null"
        for kind in (SelectionSpec, StoreSpec)
        for each in settings_of(kind)
        if each.declared.of_preset and each.name not in ("execution_block", "dense_until")
        for key in keys_of_setting(each.name)
    ]
    scheme = resolve_settings(base).memory.positions.scheme
    return (*freed, *_overrides({"scheme": scheme}), f"memory.preset={name}")


def _budget(values: dict[str, Any], budget: int | None) -> dict[str, Any]:
    """The settings under which `values` select so many tokens; none for a budget of None."""
    if budget is None:
        return {}
    if values["topk_keys"] or (values["anchor_type"].codes_keys and not values["topk"]):
        return {"topk_keys": budget}
    return {"topk": max(1, budget // values["block_size"])}


def _overrides(values: dict[str, Any]) -> list[str]:
    """Overrides that set each setting by its first key and free its other keys."""
    found = []
    for name, value in values.items():
        first, *others = keys_of_setting(name)
        found += [f"{first}={getattr(value, 'value', value)}", *(f"{key}=null" for key in others)]
    return found


def _keys(overrides: Iterable[str]) -> list[str]:
    return [override.partition("=")[0].strip() for override in overrides]
