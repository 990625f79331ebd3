"""Training steps, checkpoints, and the recipe's schedule."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
import torch

from deploy.training.export import export
from deploy.training.model import Shape
from deploy.training.prepare import Prepared
from deploy.training.recipe import RECIPE, Cycle, Rates, Recipe, Stage, read_recipe
from deploy.training.tasks import Maker
from deploy.training.train import run
from deploy.training.trainer import Trainer, batch

CPU = torch.device("cpu")
MIX = {"text": 1.0, "repeat": 1.0, "keyed": 1.0}
TINY = Recipe(
    seed=3,
    shape=Shape(420, 32, 2, 2, 1, 16, 48, 128),
    batch_tokens=256,
    rates=Rates(3e-3, 3e-3, 0.05, 2, 0.5, 1.0),
    stages=(Stage(64, 3, MIX), Stage(128, 3, MIX)),
)


def weights(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: weight.clone() for name, weight in trainer.model.state_dict().items()}


@pytest.mark.parametrize("stop", [1, 3, 5])
def test_a_resumed_run_ends_with_the_same_weights(prepared: Prepared, tmp_path: Path, stop: int) -> None:
    whole = Trainer(TINY, prepared, CPU)
    for _ in range(TINY.num_steps):
        whole.train_step()
    first = Trainer(TINY, prepared, CPU)
    for _ in range(stop):
        first.train_step()
    first.save(tmp_path)
    second = Trainer(replace(TINY), prepared, CPU)
    assert second.resume(tmp_path)
    assert second.step == stop
    run(second, tmp_path, minutes=5.0, checkpoint_minutes=5.0)
    assert second.losses == whole.losses
    for name, weight in weights(whole).items():
        assert torch.equal(weight, weights(second)[name]), name


def test_a_start_gives_the_first_weights(prepared: Prepared, tmp_path: Path) -> None:
    trained = Trainer(TINY, prepared, CPU)
    trained.train_step()
    export(trained.model, prepared.tokenizer, tmp_path)
    begun = weights(Trainer(replace(TINY, start=tmp_path), prepared, CPU))
    fresh = weights(Trainer(TINY, prepared, CPU))
    for name, weight in weights(trained).items():
        assert torch.equal(begun[name], weight.half().float()), name
    assert not torch.equal(begun["embed_tokens.weight"], fresh["embed_tokens.weight"])


def test_there_is_nothing_to_resume_in_an_empty_folder(prepared: Prepared, tmp_path: Path) -> None:
    trainer = Trainer(TINY, prepared, CPU)
    assert not trainer.resume(tmp_path)
    assert trainer.step == 0


def test_no_minutes_train_nothing_but_leave_a_checkpoint(prepared: Prepared, tmp_path: Path) -> None:
    trainer = Trainer(TINY, prepared, CPU)
    run(trainer, tmp_path, minutes=0.0, checkpoint_minutes=1.0)
    assert trainer.step == 0
    assert Trainer(TINY, prepared, CPU).resume(tmp_path)


def test_training_learns_to_repeat(prepared: Prepared) -> None:
    recipe = replace(TINY, stages=(Stage(64, 40, {"text": 1.0}),))
    trainer = Trainer(recipe, prepared, CPU)
    losses = [trainer.train_step() for _ in range(40)]
    assert losses[0] == pytest.approx(torch.tensor(420.0).log().item(), abs=0.2)
    assert sum(losses[-5:]) / 5 < losses[0] - 1.0


def test_the_loss_is_the_weighted_mean(prepared: Prepared) -> None:
    """By the plain formula in fp32, within what bf16 loses."""
    trainer = Trainer(TINY, prepared, CPU)
    ids, weight = batch(TINY, prepared, 0)
    with torch.inference_mode():
        logits = trainer.model.logits(trainer.model(ids[:, :-1]))
        picked = logits.log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
        expected = -(picked * weight[:, 1:]).sum() / weight[:, 1:].sum()
    assert trainer.train_step() == pytest.approx(expected.item(), rel=2e-3)


def test_batches_depend_on_seed_and_step_alone(prepared: Prepared) -> None:
    ids, weight = batch(TINY, prepared, 4)
    assert ids.shape == weight.shape == (2, 129)
    assert torch.equal(ids, batch(TINY, prepared, 4)[0])
    assert not torch.equal(ids, batch(TINY, prepared, 5)[0])
    assert not torch.equal(ids, batch(replace(TINY, seed=4), prepared, 4)[0])


def test_stages_follow_one_another() -> None:
    assert [TINY.stage_at(step).tokens for step in range(6)] == [64, 64, 64, 128, 128, 128]
    with pytest.raises(IndexError):
        TINY.stage_at(6)


def test_rates_rise_stay_and_fall() -> None:
    rates = Rates(1.0, 1.0, 0.0, warmup_steps=4, decay_share=0.5, clip=1.0)
    factors = [rates.factor(step, 20) for step in (0, 1, 3, 9, 10, 15, 19)]
    assert factors == pytest.approx([0.25, 0.5, 1.0, 1.0, 1.0, 0.5, 0.1])


def test_rates_rise_stay_and_fall_in_each_cycle() -> None:
    cycles = Cycle(20, 1.0), Cycle(10, 0.4)
    rates = Rates(1.0, 1.0, 0.0, warmup_steps=2, decay_share=0.5, clip=1.0, cycles=cycles)
    once = Rates(1.0, 1.0, 0.0, warmup_steps=2, decay_share=0.5, clip=1.0)
    assert [rates.factor(step, 30) for step in range(20)] == [once.factor(step, 20) for step in range(20)]
    second = [rates.factor(step, 30) for step in (20, 21, 25, 28, 29)]
    assert second == pytest.approx([0.2, 0.4, 0.4, 0.16, 0.08])


def test_the_shipped_recipe_is_sound(prepared: Prepared) -> None:
    recipe = read_recipe(RECIPE)
    assert recipe.stages[-1].tokens == recipe.shape.max_tokens == 2048
    for stage in recipe.stages:
        assert sum(stage.mix.values()) == pytest.approx(1.0)
        assert (
            len(Maker(prepared, Random(0), stage.asking).row(stage.tokens + 1, stage.mix).ids)
            == stage.tokens + 1
        )


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("tokens: 2048, steps", "tokens: 4096, steps", "4096 tokens must divide"),
        ("mix: dense,", "mix: other,", "other"),
        ("asking: 4", "questions: 4", "questions"),
        ("steps: 720, share", "steps: 721, share", "cycles: 4021 steps, 4020 in stages"),
        ("hidden_size: 256", "hidden: 256", "hidden"),
    ],
)
def test_a_wrong_recipe_names_its_field(tmp_path: Path, old: str, new: str, message: str) -> None:
    text = RECIPE.read_text(encoding="utf-8")
    assert old in text
    path = tmp_path / "recipe.yaml"
    path.write_text(text.replace(old, new), encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        read_recipe(path)
