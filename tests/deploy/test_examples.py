"""Every configuration that is shipped can be loaded, and the embedded model is whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors import safe_open
from tokenizers import Tokenizer

from moorage.runtime.config.load import load_cluster_config
from moorage.workers.hf_config import read_model_spec

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
EXAMPLES = sorted(DEPLOY.glob("*.yaml"))
MODEL = DEPLOY / "models" / "moorage-pilot"


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: str(path.relative_to(DEPLOY)))
def test_example_loads(path: Path) -> None:
    config = load_cluster_config(path)
    assert config.long_context.max_seq_len >= config.long_context.chunk_size


def test_the_local_example_names_the_embedded_model_wherever_it_is_loaded_from(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    config = load_cluster_config(DEPLOY / "local.yaml")
    assert Path(config.model.path).resolve() == MODEL


@pytest.mark.parametrize("model", sorted((DEPLOY / "models").iterdir()), ids=lambda path: path.name)
def test_a_shipped_model_is_whole(model: Path) -> None:
    spec = read_model_spec(model)
    with safe_open(model / "model.safetensors", framework="numpy") as weights:
        shapes = {name: tuple(weights.get_slice(name).get_shape()) for name in weights.keys()}  # noqa: SIM118
    assert shapes["model.embed_tokens.weight"] == (spec.vocab_size, spec.hidden_size)
    layers = {int(name.split(".")[2]) for name in shapes if name.startswith("model.layers.")}
    assert layers == set(range(spec.num_layers))
    assert Tokenizer.from_file(str(model / "tokenizer.json")).get_vocab_size() == spec.vocab_size
    json.loads((model / "generation_config.json").read_text(encoding="utf-8"))
    assert (model / "README.md").is_file()


def test_the_long_document_is_long_enough_for_the_demo() -> None:
    text = (DEPLOY / "documents" / "python_reference.txt").read_text(encoding="utf-8")
    assert len(text) >= 600_000
    tokenizer = Tokenizer.from_file(str(MODEL / "tokenizer.json"))
    assert len(tokenizer.encode(text[:200_000]).ids) > 32_768
