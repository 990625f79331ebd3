"""The command: from a corpus to a model directory, in one piece and in two."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import pytest
import torch
import yaml
from safetensors.torch import load_file

from deploy.training import train
from deploy.training.corpus import CORPUS_FILE
from deploy.training.recipe import RECIPE
from moorage.workers.hf_config import read_model_spec


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """The shipped recipe made tiny: two stages of three steps."""
    fields = yaml.safe_load(RECIPE.read_text(encoding="utf-8"))
    fields["model"] |= {"vocab_size": 420, "hidden_size": 32, "num_layers": 1, "head_dim": 16}
    del fields["optimiser"]["cycles"]
    fields["model"] |= {"intermediate_size": 48, "max_tokens": 128}
    fields |= {"batch_tokens": 128, "stages": [{"tokens": 64, "steps": 3, "mix": "final"}] * 2, "start": None}
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(fields), encoding="utf-8")
    return path


def work_folder(path: Path) -> Path:
    rng = Random(0)
    path.mkdir()
    with (path / CORPUS_FILE).open("w", encoding="utf-8") as lines:
        for number in range(10):
            words = ("".join(rng.choices(("ka", "lo", "mi", "te"), k=2)) for _ in range(400))
            fields = {"package": "p", "name": str(number), "text": " ".join(words), "held_out": number == 0}
            lines.write(json.dumps(fields) + "\n")
    return path


def command(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    threads = torch.get_num_threads()
    words = [str(argument) for argument in arguments]
    monkeypatch.setattr("sys.argv", ["train", *words, "--threads", str(threads), "--device", "cpu"])
    train.main()


def test_a_run_in_pieces_writes_the_same_model(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, pieces = work_folder(tmp_path / "whole"), work_folder(tmp_path / "pieces")
    out, other = tmp_path / "a", tmp_path / "b"
    command(monkeypatch, "--work", whole, "--recipe", recipe, "--output", out)
    command(monkeypatch, "--work", pieces, "--recipe", recipe, "--minutes", 0)
    capsys.readouterr()
    command(monkeypatch, "--work", pieces, "--recipe", recipe, "--output", other)
    said = capsys.readouterr().out
    assert "Going on at step 0 of 6" in said
    assert "after step 6 of 6" in said
    first, second = (load_file(folder / "model.safetensors") for folder in (out, other))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert (out / "loss.png").is_file()
    assert read_model_spec(out).max_position_embeddings == 128
