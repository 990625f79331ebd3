"""`runtime calibrate` writes a file of quantizers from a text, or from KVQuant's pickles; faults are one line."""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import pytest

from moorage.runtime.cli import main
from moorage.runtime.serving.sessions.fingerprint import model_fingerprint
from moorage.workers.kv.formats.quantizer_file import read_quantizer, read_quantizer_header

ROOT = Path(__file__).resolve().parents[3]
MODEL = ROOT / "deploy" / "models" / "moorage-ref"
TEXT = ROOT / "deploy" / "documents" / "python_reference.txt"
LAYERS, HEADS, DIM = SHAPE = (4, 2, 64)


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as left:
        main(("calibrate", *map(str, arguments)))
    out, err = capsys.readouterr()
    return int(left.value.code or 0), out, err


@pytest.fixture
def text(tmp_path: Path) -> Path:
    file = tmp_path / "text.txt"
    file.write_text(TEXT.read_text(encoding="utf-8")[:4000], encoding="utf-8")
    return file


def published(bits: int, layers: int = LAYERS) -> bytes:
    """A file as KVQuant's release writes it."""
    high, low = np.full((1, HEADS * DIM), 2.0), np.full((1, HEADS * DIM), -1.0)
    centroids = [np.linspace(-0.9, 0.9, 2**bits, dtype=np.float32)[:, None]]
    names = [f"model.layers.{layer}.self_attn.{part}_proj" for layer in range(layers) for part in "kv"]
    return pickle.dumps(dict.fromkeys(names, (high, low, centroids)), pickle.HIGHEST_PROTOCOL)


def test_a_text_becomes_quantizers(text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "q.safetensors"
    code, out, err = run(
        capsys,
        "--model",
        MODEL,
        "--text",
        text,
        "--output",
        file,
        "--bits",
        "3,2",
        "--windows",
        2,
        "--window",
        256,
        "--records",
        1,
    )
    assert code == 0, err
    assert out.startswith(f"{file}: NUQ3, NUQ2 of moorage-ref, ")
    for part in ("weights: 100 %", "gradients: window 3 of 3, loss ", "levels: layer 4 of 4"):
        assert part in err
    header = read_quantizer_header(file)
    assert header.model == model_fingerprint(MODEL)
    assert (header.bits, header.data["windows"], header.data["tokens"]) == ((3, 2), 2, 512)
    assert header.data["records"] == 1
    assert header.settings["fp16_sinks"] == 5
    for bits in (3, 2):
        layers = read_quantizer(file, bits, header.model, SHAPE).layers
        assert mean(layer.bits for layer in layers) == bits
        assert len({tuple(layer.key_levels) for layer in layers}) == LAYERS
        assert all(layer.key_feedback.any() for layer in layers)


def test_pickles_of_kvquant_become_quantizers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = []
    for bits in (4, 2):
        files.append(tmp_path / f"quantizers-{bits}.pickle")
        files[-1].write_bytes(published(bits))
    file = tmp_path / "q.safetensors"
    code, out, err = run(
        capsys, "--model", MODEL, "--import", files[0], "--import", files[1], "--output", file, "--json"
    )
    assert code == 0, err
    assert json.loads(out)["bits"] == [4, 2]
    read = read_quantizer(file, 2, model_fingerprint(MODEL), SHAPE)
    np.testing.assert_allclose(read.layers[3].value_levels, [-0.9, -0.3, 0.3, 0.9], rtol=1e-6)


class Touch:
    """Pickles to a call that makes a file."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, (f"open({str(self._file)!r}, 'w').close()",)


def test_a_hostile_pickle_is_one_line_and_does_not_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hostile, ran, output = tmp_path / "hostile.pickle", tmp_path / "ran", tmp_path / "q.safetensors"
    hostile.write_bytes(pickle.dumps({"model.layers.0.self_attn.k_proj": Touch(ran)}))
    code, _, err = run(capsys, "--model", MODEL, "--import", hostile, "--output", output)
    assert code == 1
    assert err.count("\n") == 1
    assert err.startswith(f"error: {hostile}: refused, since it names 'builtins.exec'")
    assert not ran.exists()
    assert not output.exists()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ((), "give a text or --import, and not both"),
        (("--text", "t", "--import", "i"), "give a text or --import, and not both"),
        (("--text", "t", "--bits", "5"), "'5' should be numbers of bits among 4, 3, 2"),
        (("--text", "t", "--bits", "3,3"), "'3,3' should be numbers of bits among 4, 3, 2"),
        (("--text", "t", "--window", "64"), "64 tokens are too few beyond 5 sinks; give at least 69"),
        (("--text", "t", "--window", "soon"), "--window"),
    ],
)
def test_a_wrong_command_line_is_refused(
    arguments: tuple[str, ...], line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run(capsys, "--model", MODEL, "--output", tmp_path / "q", *arguments)
    assert code == 2
    assert line in " ".join(err.split())


def test_what_cannot_be_read_is_one_line(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "q.safetensors"
    binary, twice = tmp_path / "binary.txt", tmp_path / "quantizers.pickle"
    binary.write_bytes(b"\xff\xfe\xfd")
    twice.write_bytes(published(3))
    for arguments, line in (
        (("--text", tmp_path / "none.txt"), "none.txt: can't be read (No such file or directory)"),
        (("--text", binary), "binary.txt: not UTF-8 text"),
        (("--text", text, "--window", "64K"), "tokens and a window 65536; give a longer text"),
        (("--import", twice, "--import", twice), "has 3 bits too; give one of them"),
        (("--import", text), "text.txt: refused, since"),
    ):
        code, _, err = run(capsys, "--model", MODEL, "--output", output, *arguments)
        assert code == 1
        assert err.count("\n") == 1
        assert line in err
    assert not output.exists()


def test_without_scikit_learn_it_says_what_to_install(
    text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.cluster", None)
    code, _, err = run(capsys, "--model", MODEL, "--output", tmp_path / "q", "--text", text)
    assert code == 1
    assert err.endswith("scikit-learn is not installed; install it with: pip install 'moorage[calibrate]'\n")
    assert err.count("\n") == 1
