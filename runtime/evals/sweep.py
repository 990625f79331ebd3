"""Recall and pass-key accuracy over the axes of selection, on one model, in this process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from moorage.runtime.config.load import load_cluster_config
from moorage.runtime.config.names import keys_of_setting
from moorage.runtime.config.presets import PRESETS, check_preset_name
from moorage.runtime.config.resolve import resolve_settings
from moorage.runtime.config.single_keys import space_of_codes
from moorage.runtime.evals.haystack import Haystack, Material
from moorage.runtime.evals.passkey import ANSWER_TOKENS, PasskeySample, is_correct, make_samples
from moorage.runtime.evals.recall import table_of
from moorage.workers.spec import KEY_CODE_TOKENS, AnchorSpace, AnchorType, Positions, StoreSpec

if TYPE_CHECKING:
    from moorage.runtime.evals.local_engine import LocalEngine


@dataclass(frozen=True, slots=True)
class SweepPoint:
    """One choice on the axes that are swept."""

    anchor_type: str
    anchor_space: str
    anchor_num: int
    block_size: int
    budget_tokens: int
    """Selected tokens per layer and step, beside sinks and window."""
    preselect_block: str = "off"
    preset: str | None = None
    """The preset whose anchors and blocks these are."""
    prefill: str = "configured"
    """Or `exact`, over all past keys."""

    def __str__(self) -> str:
        who = f"{self.preset}, {self.prefill} prefill: " if self.preset else ""
        preselected = "" if self.preselect_block == "off" else f", preselect {self.preselect_block}"
        return (
            f"{who}{self.anchor_num} {self.anchor_type} {self.anchor_space} a block of {self.block_size}, "
            f"{self.budget_tokens} tokens{preselected}"
        )

    def overrides(self) -> list[str]:
        """The keys of the configuration that make it so."""
        exact = self.prefill == "exact" or self.anchor_type == AnchorType.KEY_CODES
        return [
            *(["memory.exc_block_size=0"] if exact else []),
            f"long_context.anchor_type={self.anchor_type}",
            f"memory.anchor_space={self.anchor_space}",
            f"long_context.anchor_num={self.anchor_num}",
            f"long_context.block_size={self.block_size}",
            *self._budget(),
            f"long_context.preselect_block={self.preselect_block}",
            "memory.dense_until=0",
        ]

    def _budget(self) -> list[str]:
        if self.anchor_type == AnchorType.KEY_CODES:
            blocks = [f"{key}=null" for key in keys_of_setting("topk")]
            return [*blocks, f"memory.topk_keys={self.budget_tokens}"]
        blocks_kept = self.budget_tokens // self.block_size
        return [
            f"long_context.second_select_num={blocks_kept}",
            f"long_context.preselect_block_count={3 * blocks_kept}",
        ]


@dataclass(frozen=True, slots=True)
class SweepRow:
    """What one point came to."""

    point: SweepPoint
    recall: float
    oracle: float
    passkey: float
    samples: int
    attended_tokens: int
    """Mean keys that a head attended: sinks, selected blocks and window, all rounded to whole blocks."""

    def as_json(self) -> dict[str, Any]:
        """All fields by name, those of the point first."""
        return {**asdict(self.point), **{k: v for k, v in asdict(self).items() if k != "point"}}


def points(
    anchors: Sequence[tuple[str, str]],
    anchor_nums: Sequence[int],
    block_sizes: Sequence[int],
    budgets: Sequence[int],
    preselects: Sequence[str] = ("off",),
) -> list[SweepPoint]:
    """Every combination that makes sense; `anchors` are (type, space)."""
    return [
        SweepPoint(kind, space, num, size, budget, preselect)
        for (kind, space), num, size, budget, preselect in product(
            anchors, anchor_nums, block_sizes, budgets, preselects
        )
        if size % num == 0 and not (kind == "REPR_TOPK" and 4 % num)
        if kind != AnchorType.KEY_CODES or (num == 1 and size % KEY_CODE_TOKENS == 0 and preselect == "off")
    ]


def points_of_presets(
    names: Sequence[str], budgets: Sequence[int], config_file: Path, overrides: Sequence[str] = ()
) -> list[SweepPoint]:
    """Presets with their own anchors and block sizes but the same budgets, after exact and configured prefill.

    Positions are the configuration's, so that only the selection differs. Single keys are selected after exact
    prefill alone. Raises ValueError for a name that there is not.
    """
    scheme = resolve_settings(load_cluster_config(config_file, overrides)).memory.positions.scheme
    presets = [PRESETS[check_preset_name(name)].settings() for name in names]
    return [
        SweepPoint(
            preset.store.anchor_type.value,
            _space(preset.store, scheme).value,
            preset.store.anchor_num,
            preset.store.block_size,
            budget,
            preset.memory.selection.preselect.value,
            preset.memory.preset,
            prefill,
        )
        for preset, budget, prefill in product(presets, budgets, ("exact", "configured"))
        if prefill == "exact" or not preset.store.anchor_type.codes_keys
    ]


def _space(store: StoreSpec, scheme: Positions) -> AnchorSpace:
    """Which keys a preset's anchors and codes are made of under these positions."""
    if store.anchor_type.codes_keys:
        return space_of_codes(scheme)
    return AnchorSpace.PLAIN if scheme is Positions.CLAMPED else store.anchor_space


@dataclass(frozen=True, slots=True)
class SweepPrompts:
    """The pass-key prompts that every point is measured on."""

    haystack: Haystack
    num_tokens: int
    """Tokens of each prompt and its answer."""
    num_samples: int
    seed: int = 0


def sweep(
    config_file: Path,
    sweep_points: Sequence[SweepPoint],
    prompts: SweepPrompts,
    overrides: Sequence[str] = (),
) -> Iterator[SweepRow]:
    """One row for each point, on the same prompts; recall is that of the answers' steps."""
    from moorage.runtime.evals.local_coder import LocalCoder
    from moorage.runtime.evals.local_engine import LocalEngine
    from moorage.runtime.text.tokenizer import TextTokenizer

    tokenizer = TextTokenizer.load(load_cluster_config(config_file, overrides).model.path)
    material = Material(prompts.haystack, LocalCoder(tokenizer))
    prompt_tokens = prompts.num_tokens - ANSWER_TOKENS
    samples = make_samples(material, prompt_tokens, prompts.num_samples, prompts.seed)
    for point in sweep_points:
        config = load_cluster_config(config_file, [*overrides, *point.overrides()])
        yield _row(LocalEngine(config, prompts.num_tokens), point, samples)


def _row(engine: LocalEngine, point: SweepPoint, samples: Sequence[PasskeySample]) -> SweepRow:
    recalls, oracles, attended, correct = [], [], [], 0
    for sample in samples:
        probe = engine.probe()
        tokens = list(engine.generate(sample.prompt_ids, ANSWER_TOKENS))
        correct += is_correct(engine.tokenizer.decode(tokens), sample.answer)
        table = table_of(probe.samples)
        recalls.append(table.recall.mean())
        oracles.append(table.oracle.mean())
        attended.append(np.mean([found.num_keys for found in probe.samples]))
    engine.close()
    return SweepRow(
        point,
        float(np.mean(recalls)),
        float(np.mean(oracles)),
        correct / len(samples),
        len(samples),
        round(float(np.mean(attended))),
    )
