"""Train the reference model, from the packages of its text to a directory that can be served.

    python -m deploy.training.train --work WORK --output deploy/models/moorage-ref

A run that was stopped goes on where its last checkpoint was; with `--minutes` it stops by itself.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from tokenizers import Tokenizer

from deploy.training.corpus import CORPUS_FILE, collect, read_corpus
from deploy.training.export import draw_losses, export
from deploy.training.prepare import Prepared, load_prepared, prepare, save_prepared
from deploy.training.recipe import RECIPE, Recipe, read_recipe
from deploy.training.trainer import Trainer

LOSS_STEPS = 10
"""Steps that a printed loss is the mean of."""


def main() -> None:
    """Train, or go on training."""
    arguments = _arguments()
    work: Path = arguments.work
    recipe = read_recipe(arguments.recipe)
    torch.set_num_threads(arguments.threads)
    prepared = prepared_in(work, recipe)
    trainer = Trainer(recipe, prepared, torch.device(arguments.device))
    if trainer.resume(work):
        print(f"Going on at step {trainer.step} of {recipe.num_steps}")
    run(trainer, work, arguments.minutes, arguments.checkpoint_minutes)
    output: Path | None = arguments.output
    if output is not None:
        export(trainer.model, prepared.tokenizer, output)
        draw_losses(trainer.losses, recipe, output / "loss.png")
        print(f"Wrote {output} after step {trainer.step} of {recipe.num_steps}")


def run(trainer: Trainer, work: Path, minutes: float, checkpoint_minutes: float) -> None:
    """Train for `minutes` or to the end, with a checkpoint every `checkpoint_minutes` and at the end."""
    began = saved = time.monotonic()
    num_steps = trainer.recipe.num_steps
    with _progress() as progress:
        bar = progress.add_task("", total=num_steps, completed=trainer.step, loss=0.0, tokens=0)
        while trainer.step < num_steps and time.monotonic() - began < 60 * minutes:
            tokens = trainer.recipe.stage_at(trainer.step).tokens
            trainer.train_step()
            recent = trainer.losses[-LOSS_STEPS:]
            loss = sum(recent) / len(recent)
            progress.update(bar, completed=trainer.step, loss=loss, tokens=tokens)
            if trainer.step % LOSS_STEPS == 0 and not progress.console.is_terminal:
                elapsed = time.monotonic() - began
                print(
                    f"step {trainer.step}/{num_steps}  {tokens} tokens  loss {loss:.3f}  {elapsed:.0f} s",
                    flush=True,
                )
            if time.monotonic() - saved > 60 * checkpoint_minutes:
                trainer.save(work)
                saved = time.monotonic()
    trainer.save(work)


def prepared_in(work: Path, recipe: Recipe) -> Prepared:
    """The tokenised corpus in `work`; what is not there yet is downloaded and made."""
    if not (work / CORPUS_FILE).is_file():
        collect(work)
    if not (work / "words.json").is_file():
        print("Encoding the corpus")
        given = Tokenizer.from_file(str(recipe.start / "tokenizer.json")) if recipe.start else None
        save_prepared(prepare(read_corpus(work), recipe.shape.vocab_size, given), work)
    return load_prepared(work)


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.completed}/{task.total} steps"),
        BarColumn(),
        TextColumn("{task.fields[tokens]} tokens, loss {task.fields[loss]:.3f}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train the reference model.")
    parser.add_argument("--work", type=Path, required=True, help="folder of the corpus and the checkpoints")
    parser.add_argument("--output", type=Path, help="folder to write the model into when the run stops")
    parser.add_argument("--recipe", type=Path, default=RECIPE, help="YAML file (default: moorage-ref.yaml)")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after so many minutes")
    parser.add_argument("--checkpoint-minutes", type=float, default=3.0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    return parser.parse_args()


if __name__ == "__main__":
    main()
