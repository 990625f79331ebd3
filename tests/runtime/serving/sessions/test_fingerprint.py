"""Another model, or the same one computed otherwise, has another fingerprint."""

from __future__ import annotations

from pathlib import Path

from moorage.runtime.serving.sessions.fingerprint import model_fingerprint
from moorage.workers.kv.formats.quantizer_file import QuantizerHeader, write_quantizers


def model(folder: Path, config: str = "{}", weights: bytes = b"weights") -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(config)
    (folder / "model.safetensors").write_bytes(weights)
    (folder / "README.md").write_text(folder.name)
    return folder


def test_it_follows_from_configuration_weights_and_types(tmp_path: Path) -> None:
    first = model_fingerprint(model(tmp_path / "first"), "bfloat16", "int4")
    assert first == model_fingerprint(model(tmp_path / "copy"), "bfloat16", "int4")
    others = [
        model_fingerprint(model(tmp_path / "config", config='{"a": 1}'), "bfloat16", "int4"),
        model_fingerprint(model(tmp_path / "other", weights=b"weightz"), "bfloat16", "int4"),
        model_fingerprint(model(tmp_path / "longer", weights=b"weights" * 2), "bfloat16", "int4"),
        model_fingerprint(tmp_path / "first", "bfloat16", "int8"),
        model_fingerprint(tmp_path / "first", "bfloat16int4"),
    ]
    assert len({first, *others}) == 6


def test_a_quantizer_beside_the_weights_does_not_count(tmp_path: Path) -> None:
    folder = model(tmp_path / "model")
    before = model_fingerprint(folder)
    (folder / "more.safetensors").write_bytes(b"weights")
    assert model_fingerprint(folder) != before
    write_quantizers(folder / "more.safetensors", QuantizerHeader("", "", (), 0, 0, 0, {}, {}), [])
    assert model_fingerprint(folder) == before


def test_a_gguf_file_is_a_model(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(b"GGUF one")
    (tmp_path / "b.gguf").write_bytes(b"GGUF two")
    assert model_fingerprint(tmp_path / "a.gguf") != model_fingerprint(tmp_path / "b.gguf")
