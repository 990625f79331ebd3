"""The recipe of a model: its shape, the stages of its training, and how fast it learns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from deploy.training.model import Shape

RECIPE = Path(__file__).with_name("moorage-ref.yaml")
"""The recipe of the model that the project ships."""


@dataclass(frozen=True, slots=True)
class Stage:
    """A part of the training: rows of `tokens` tokens, drawn by the shares in `mix`.

    `asking`: how many times as many questions a context gets as in a short row. `forward`: keys stand before values.
    """

    tokens: int
    steps: int
    mix: Mapping[str, float]
    asking: int = 1
    forward: bool = False


@dataclass(frozen=True, slots=True)
class Cycle:
    """Steps in which the rates rise to `share` of the highest, stay, and fall."""

    steps: int
    share: float


@dataclass(frozen=True, slots=True)
class Rates:
    """Learning rates and their course, once or in each cycle: a linear rise, a plain, a linear fall to nothing."""

    muon_rate: float
    adamw_rate: float
    weight_decay: float
    warmup_steps: int
    decay_share: float
    clip: float
    cycles: tuple[Cycle, ...] = ()

    def factor(self, step: int, num_steps: int) -> float:
        """What the rates are multiplied by at `step` of `num_steps`."""
        cycle = Cycle(num_steps, 1.0)
        for cycle in self.cycles:
            if step < cycle.steps:
                break
            step -= cycle.steps
        left = (cycle.steps - step) / max(1.0, self.decay_share * cycle.steps)
        return cycle.share * min(1.0, (step + 1) / max(1, self.warmup_steps), left)


@dataclass(frozen=True, slots=True)
class Recipe:
    """All that decides the weights, next to the corpus."""

    seed: int
    shape: Shape
    batch_tokens: int
    rates: Rates
    stages: tuple[Stage, ...]
    start: Path | None = None
    """Model directory whose weights and tokenizer the training starts from, of the same shape; None: from nothing."""

    @property
    def num_steps(self) -> int:
        """Steps of all stages."""
        return sum(stage.steps for stage in self.stages)

    def stage_at(self, step: int) -> Stage:
        """The stage that `step`, from 0 on, belongs to."""
        for stage in self.stages:
            if step < stage.steps:
                return stage
            step -= stage.steps
        raise IndexError(f"step {step} after the last stage")


def read_recipe(path: Path) -> Recipe:
    """A recipe from a YAML file. Raises ValueError naming the field that is wrong."""
    fields: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    mixes = fields["mixes"]
    try:
        stages = tuple(Stage(**part | {"mix": mixes[part["mix"]]}) for part in fields["stages"])
        cycles = tuple(Cycle(**part) for part in fields["optimiser"].pop("cycles", ()))
        recipe = Recipe(
            fields["seed"],
            Shape(**fields["model"]),
            fields["batch_tokens"],
            Rates(**fields["optimiser"], cycles=cycles),
            stages,
            path.parent / fields["start"] if fields.get("start") else None,
        )
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from error
    for stage in stages:
        if recipe.batch_tokens % stage.tokens or stage.tokens > recipe.shape.max_tokens:
            raise ValueError(
                f"{path}: stages: {stage.tokens} tokens must divide batch_tokens and fit max_tokens"
            )
    in_cycles = sum(cycle.steps for cycle in cycles)
    if cycles and in_cycles != recipe.num_steps:
        raise ValueError(
            f"{path}: optimiser.cycles: {in_cycles} steps, {recipe.num_steps} in stages; make them equal"
        )
    return recipe
