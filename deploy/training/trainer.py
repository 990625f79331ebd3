"""One training run: batches that only the seed and the step decide, steps, and checkpoints to go on from."""

from __future__ import annotations

import os
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from deploy.training.export import read_weights
from deploy.training.model import Llama
from deploy.training.prepare import Prepared
from deploy.training.recipe import Recipe
from deploy.training.tasks import Maker

CHECKPOINT = "checkpoint.pt"


class Trainer:
    """A model in training. A run that is resumed from a checkpoint goes on as if it had never stopped."""

    def __init__(self, recipe: Recipe, prepared: Prepared, device: torch.device) -> None:
        self.recipe, self._prepared, self._device = recipe, prepared, device
        self.step = 0
        self.losses: list[float] = []
        """Loss of every step so far."""
        self.model = Llama(recipe.shape)
        if recipe.start is None:
            self.model.draw(recipe.seed)
        else:
            self.model.load_state_dict(read_weights(recipe.start))
        self.model.to(device)
        self._optimisers = _optimisers(self.model, recipe)

    def train_step(self) -> float:
        """One batch forward and back. The weighted mean loss in nats a token."""
        recipe = self.recipe
        stage = recipe.stage_at(self.step)
        ids, weights = batch(recipe, self._prepared, self.step)
        factor = recipe.rates.factor(self.step, recipe.num_steps)
        for optimiser, rate in self._optimisers:
            for group in optimiser.param_groups:
                group["lr"] = rate * factor
        loss = self._loss(ids.to(self._device), weights.to(self._device))
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), recipe.rates.clip)
        for optimiser, _ in self._optimisers:
            optimiser.step()
            optimiser.zero_grad()
        assert ids.shape[1] == stage.tokens + 1
        self.step += 1
        self.losses.append(loss.item())
        return self.losses[-1]

    def save(self, folder: Path) -> None:
        """Write a checkpoint; the last one stays whole until the new one is."""
        state: dict[str, Any] = {
            "step": self.step,
            "losses": self.losses,
            "model": self.model.state_dict(),
            "optimisers": [optimiser.state_dict() for optimiser, _ in self._optimisers],
        }
        unfinished = folder / f"{CHECKPOINT}.new"
        torch.save(state, unfinished)
        os.replace(unfinished, folder / CHECKPOINT)

    def resume(self, folder: Path) -> bool:
        """Go on from the checkpoint in `folder`, if there is one."""
        if not (folder / CHECKPOINT).is_file():
            return False
        state = torch.load(folder / CHECKPOINT, map_location=self._device, weights_only=True)
        self.step, self.losses = state["step"], state["losses"]
        self.model.load_state_dict(state["model"])
        for (optimiser, _), saved in zip(self._optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        return True

    def _loss(self, ids: Tensor, weights: Tensor) -> Tensor:
        with torch.autocast(self._device.type, torch.bfloat16):
            logits = self.model.logits(self.model(ids[:, :-1]))
        each = functional.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
        weight = weights[:, 1:].flatten()
        return (each * weight).sum() / weight.sum()


def batch(recipe: Recipe, prepared: Prepared, step: int) -> tuple[Tensor, Tensor]:
    """Token ids int64 [B, T + 1] and loss weights f32 [B, T + 1] of one step."""
    stage = recipe.stage_at(step)
    maker = Maker(prepared, Random(f"{recipe.seed}/{step}"), stage.asking, stage.forward)
    rows = [maker.row(stage.tokens + 1, stage.mix) for _ in range(recipe.batch_tokens // stage.tokens)]
    return torch.tensor([row.ids for row in rows]), torch.tensor([row.weights for row in rows])


def _optimisers(model: Llama, recipe: Recipe) -> list[tuple[torch.optim.Optimizer, float]]:
    """Muon (Jordan, 2024) for the layers' matrices, AdamW for all else, each with its highest rate."""
    rates = recipe.rates
    named = dict(model.named_parameters())
    matrices = [weight for name, weight in named.items() if weight.ndim == 2 and "embed" not in name]
    others = [weight for name, weight in named.items() if weight.ndim < 2 or "embed" in name]
    muon = torch.optim.Muon(matrices, weight_decay=rates.weight_decay, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW(others, betas=(0.9, 0.95), weight_decay=0.0)
    return [(muon, rates.muon_rate), (adamw, rates.adamw_rate)]
