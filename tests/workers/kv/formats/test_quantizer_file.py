"""A file of quantizers gives back what was written; each way it can be wrong is one line that names the file."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save, save_file

from moorage.workers.errors import InvalidConfig
from moorage.workers.kv.formats.quantizer import LayerQuantizer, Quantizer, normal_levels
from moorage.workers.kv.formats.quantizer_file import (
    QuantizerHeader,
    read_quantizer,
    read_quantizer_header,
    write_quantizers,
)

LAYERS, HEADS, DIM = SHAPE = (3, 2, 4)
MODEL = "0123456789abcdef"
HEADER = QuantizerHeader(
    model=MODEL,
    model_name="tiny",
    bits=(4, 2),
    num_layers=LAYERS,
    num_kv_heads=HEADS,
    head_dim=DIM,
    data={"text": "book.txt", "tokens": 4096},
    settings={"windows": 16, "fp16_sinks": 5},
)


def quantizer(bits: int, rng: np.random.Generator) -> Quantizer:
    def layer() -> LayerQuantizer:
        scale, zero = rng.random((HEADS, DIM)), rng.normal(size=(HEADS, DIM))
        levels = normal_levels(bits)
        return LayerQuantizer(levels, levels**3, scale, zero, zero - scale, zero + scale)

    return Quantizer(bits, tuple(layer() for _ in range(LAYERS)))


@pytest.fixture
def file(tmp_path: Path, rng: np.random.Generator) -> Path:
    found = tmp_path / "q.safetensors"
    write_quantizers(found, HEADER, [quantizer(4, rng), quantizer(2, rng)])
    return found


def changed(file: Path, **header: object) -> None:
    """Writes the same tensors with another header."""
    tensors = load_file(file)
    about = json.dumps({**json.loads(_header(file)), **header})
    save_file(tensors, file, {"quantizer": about})


def _header(file: Path) -> str:
    from safetensors import safe_open

    with safe_open(file, "numpy") as opened:
        text = opened.metadata()["quantizer"]
    assert isinstance(text, str)
    return text


@pytest.mark.parametrize("bits", [4, 2])
def test_what_was_written_is_read(file: Path, bits: int, rng: np.random.Generator) -> None:
    written = {each: quantizer(each, rng) for each in (4, 2)}
    write_quantizers(file, HEADER, list(written.values()))
    read = read_quantizer(file, bits, MODEL, SHAPE)
    assert read.bits == bits
    assert len(read.layers) == LAYERS
    for before, after in zip(written[bits].layers, read.layers, strict=True):
        for (name, wanted), (_, found) in zip(before.arrays(), after.arrays(), strict=True):
            np.testing.assert_array_equal(wanted, found, err_msg=name)


def test_feedback_is_written_once_for_all_bits(file: Path, rng: np.random.Generator) -> None:
    feedback = rng.standard_normal((LAYERS, HEADS, DIM, DIM)).astype(np.float16).astype(np.float32)
    made = [
        Quantizer(
            bits, tuple(map(lambda x, y: replace(x, key_feedback=y), quantizer(bits, rng).layers, feedback))
        )
        for bits in (4, 2)
    ]
    write_quantizers(file, HEADER, made)
    assert load_file(file)["key_feedback"].shape == feedback.shape
    for bits in (4, 2):
        read = read_quantizer(file, bits, MODEL, SHAPE)
        np.testing.assert_array_equal([layer.key_feedback for layer in read.layers], feedback)


def test_layers_can_have_different_bits(tmp_path: Path, rng: np.random.Generator) -> None:
    made = {bits: quantizer(bits, rng) for bits in (2, 3, 4)}
    file, own = tmp_path / "q.safetensors", (4, 3, 2)
    write_quantizers(file, replace(HEADER, bits=(3,), layer_bits={"3": own}), list(made.values()))
    read = read_quantizer(file, 3, MODEL, SHAPE)
    assert (read.bits, read.layer_bits) == (3, own)
    for layer, bits in enumerate(own):
        np.testing.assert_array_equal(read.layers[layer].key_scale, made[bits].layers[layer].key_scale)
    with pytest.raises(InvalidConfig, match=r"no quantizer for NUQ2, only for NUQ3; .*--bits 2"):
        read_quantizer(file, 2, MODEL, SHAPE)


@pytest.mark.parametrize("own", [{"3": [3, 3]}, {"3": [3, 3, 5]}, {"3": "333"}, [3, 3, 3]])
def test_wrong_bits_of_layers_are_one_line(file: Path, own: object) -> None:
    changed(file, layer_bits=own)
    with pytest.raises(InvalidConfig, match="layer_bits are not 2, 3 or 4 for each layer"):
        read_quantizer_header(file)


def test_the_header_says_what_it_was_made_from(file: Path) -> None:
    assert read_quantizer_header(file) == HEADER


def test_a_quantizer_of_another_model_is_refused(file: Path) -> None:
    with pytest.raises(InvalidConfig, match=r"q\.safetensors: quantizer of another model, tiny \(01234567\)"):
        read_quantizer(file, 4, "fedcba9876543210", SHAPE)


def test_other_bits_are_refused_with_those_it_has(file: Path) -> None:
    with pytest.raises(InvalidConfig, match=r"no quantizer for NUQ3, only for NUQ4, NUQ2; .*--bits 3"):
        read_quantizer(file, 3, MODEL, SHAPE)


def test_other_sizes_are_refused(file: Path) -> None:
    with pytest.raises(
        InvalidConfig, match="3 layers, 2 KV heads of 4, the model has 3 layers, 1 KV heads of 4"
    ):
        read_quantizer(file, 4, MODEL, (3, 1, 4))


def _nothing(file: Path) -> None:
    file.unlink()


def _folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def _pickle(file: Path) -> None:
    file.write_bytes(b"\x80\x04cos\nsystem\n(S'touch /tmp/ran'\ntR.")


def _other_weights(file: Path) -> None:
    file.write_bytes(save({"a": np.zeros(3, np.float32)}))


def _without_a_tensor(file: Path) -> None:
    tensors = {name: array for name, array in load_file(file).items() if name != "4.key_zero"}
    save_file(tensors, file, {"quantizer": _header(file)})


def _with(name: str, array: np.ndarray) -> Callable[[Path], None]:
    def change(file: Path) -> None:
        save_file({**load_file(file), name: array}, file, {"quantizer": _header(file)})

    return change


def _header_of(**values: object) -> Callable[[Path], None]:
    return lambda file: changed(file, **values)


@pytest.mark.parametrize(
    ("damage", "line"),
    [
        (_nothing, r"can't be read \(.*No such file"),
        (_folder, "can't be read"),
        (_pickle, "not a whole safetensors file"),
        (lambda file: file.write_bytes(b""), "not a whole safetensors file"),
        (lambda file: file.write_bytes(file.read_bytes()[:-9]), "not a whole safetensors file"),
        (_other_weights, "a safetensors file, but not one of quantizers"),
        (_without_a_tensor, r"tensor 4\.key_zero is not float32 \[3, \.\.\.\]"),
        (_with("4.key_zero", np.zeros((3, 2, 4), np.float16)), r"tensor 4\.key_zero is not float32"),
        (_with("4.key_zero", np.full((3, 2, 4), np.nan, np.float32)), "layer 0 at 4 bits: key_zero"),
        (_with("4.key_levels", np.zeros((3, 16), np.float32)), "layer 0 at 4 bits: key_levels"),
        (
            _with("key_feedback", np.zeros((3, 2, 4, 3), np.float16)),
            r"key_feedback is not float16 \[3, 2, 4, 4\]",
        ),
        (_with("key_feedback", np.full((3, 2, 4, 4), np.inf, np.float16)), "layer 0 at 4 bits: key_feedback"),
        (_header_of(kind="moorage-quantizer-9"), "its kind is 'moorage-quantizer-9'"),
        (_header_of(kind=None), "its kind is None"),
        (_header_of(bits=["4"]), "its header is not that of quantizers"),
        (_header_of(bits=4), "its header is not that of quantizers"),
        (_header_of(unknown=1), "its header is not that of quantizers"),
        (_header_of(model=7), "its header is not that of quantizers"),
    ],
)
def test_a_file_that_cannot_be_used_is_one_line(
    file: Path, damage: Callable[[Path], None], line: str
) -> None:
    damage(file)
    with pytest.raises(InvalidConfig, match=line) as caught:
        read_quantizer(file, 4, MODEL, SHAPE)
    assert str(caught.value).startswith(str(file))
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_written_is_one_line(tmp_path: Path, rng: np.random.Generator) -> None:
    with pytest.raises(InvalidConfig, match=r"q\.safetensors: can't be written"):
        write_quantizers(tmp_path / "none" / "q.safetensors", replace(HEADER, bits=(4,)), [quantizer(4, rng)])
