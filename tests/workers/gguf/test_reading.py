"""A GGUF header is read whole or refused in one line, whatever its bytes are."""

from __future__ import annotations

import io
import json
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest

from moorage.workers.errors import InvalidModel
from moorage.workers.gguf.header import GgufHeader, parse_files, read_headers, read_whole_header
from moorage.workers.gguf.limits import MOST_ELEMENTS
from moorage.workers.gguf.reading import Damaged, parse_header
from moorage.workers.gguf.types import TYPES
from tests.gguf_files import write_gguf

KEYS = {
    "llama.block_count": 2,
    "llama.rope.freq_base": 5e5,
    "tokenizer.ggml.add_bos_token": True,
    "general.name": "naïve 🙂",
    "tokenizer.ggml.tokens": [f"token {i}" for i in range(40)],
    "tokenizer.ggml.scores": [0.5, -1.25],
}
NUM_DAMAGED = 200


@pytest.fixture
def file(tmp_path: Path) -> Path:
    tensors = {
        "token_embd.weight": np.arange(64 * 32, dtype=np.float32).reshape(64, 32),
        "output_norm.weight": np.ones(32, np.float16),
    }
    return write_gguf(tmp_path / "model.gguf", "llama", KEYS, tensors)


def test_a_header_as_gguf_reads_it(file: Path) -> None:
    header = read_whole_header(file)
    theirs = gguf.GGUFReader(file)
    assert {key: header.values[key] for key in KEYS} == KEYS
    assert len(header.tensors) == len(theirs.tensors) == 2
    for mine, other in zip(header.tensors, theirs.tensors, strict=True):
        assert mine.name == other.name
        assert mine.shape == tuple(int(size) for size in other.shape[::-1])
        assert (mine.dtype, mine.begin, mine.num_bytes) == (
            other.tensor_type.name,
            other.data_offset,
            other.n_bytes,
        )


def test_types_have_the_sizes_of_ggml() -> None:
    for number, block in TYPES.items():
        kind = gguf.GGMLQuantizationType(number)
        assert (kind.name, gguf.GGML_QUANT_SIZES[kind]) == (block.name, (block.elements, block.num_bytes))


def test_long_arrays_are_counted_alone(tmp_path: Path) -> None:
    keys = {"tokenizer.ggml.tokens": [str(i) for i in range(5000)], "llama.block_count": 1}
    file = write_gguf(tmp_path / "model.gguf", "llama", keys, {})
    (header,) = read_headers([file])
    assert header.values == {"general.architecture": "llama", "llama.block_count": 1}
    assert header.lengths == {"tokenizer.ggml.tokens": 5000}


def header_of(*parts: bytes, tensors: int = 0, keys: int = 0, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, keys) + b"".join(parts)


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def key(name: bytes, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


def tensor(name: bytes, shape: tuple[int, ...], kind: int, offset: int) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


NESTED = struct.pack("<IQ", 9, 1) * 8
ONE_ROW = tensor(b"a", (32,), 0, 0)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the magic number ends beyond the file"),
        (b"GGML" + bytes(100), "it does not begin with GGUF"),
        (b"version https://git-lfs.github.com/spec/v1", "it is a pointer of Git LFS"),
        (header_of(version=1), "its version 1 is not supported; versions 2 and 3 are"),
        (header_of(version=0x03000000), "its numbers are big-endian"),
        (header_of(tensors=2**40), "the number of tensors is 1099511627776, more than 65536"),
        (header_of(keys=2**63), "the number of keys is 9223372036854775808, more than 4096"),
        (header_of(keys=1), "the length of key 1 ends beyond the file"),
        (header_of(struct.pack("<Q", 2**62), keys=1), "the length of key 1 is .*, more than 1024"),
        (header_of(key(b"a", 99, b""), keys=1), "the value of 'a' has the unknown type 99"),
        (header_of(key(b"a", 8, struct.pack("<Q", 2**40)), keys=1), "the length of the value of 'a' is"),
        (header_of(key(b"a", 8, struct.pack("<Q", 99)), keys=1), "the value of 'a' ends beyond the file"),
        (header_of(key(b"a", 7, b"\1"), key(b"a", 7, b"\1"), keys=2), "key 'a' stands in it twice"),
        (
            header_of(key(b"a", 9, struct.pack("<IQ", 4, MOST_ELEMENTS + 1)), keys=1),
            f"the length of the value of 'a' is {MOST_ELEMENTS + 1}, more than {MOST_ELEMENTS}",
        ),
        (header_of(key(b"a", 9, struct.pack("<IQ", 4, 1000)), keys=1), "the value of 'a' ends beyond"),
        (header_of(key(b"a", 9, NESTED), keys=1), "the value of 'a' has arrays in arrays, more than 3 deep"),
        (
            header_of(key(b"general.alignment", 4, bytes(4)), keys=1),
            "general.alignment is 0, not a power of two",
        ),
        (header_of(key(b"general.alignment", 4, b"\x21\0\0\0"), keys=1), "general.alignment is 33"),
        (
            header_of(tensor(b"a", (1, 1, 1, 1, 1), 0, 0), tensors=1),
            "the number of dimensions of tensor 'a' is 5",
        ),
        (header_of(tensor(b"a", (), 0, 0), tensors=1), r"tensor 'a' has the shape \[\]"),
        (header_of(tensor(b"a", (0,), 0, 0), tensors=1), r"tensor 'a' has the shape \[0\]"),
        (header_of(tensor(b"a", (2**40, 2**40), 0, 0), tensors=1), "tensor 'a' has the shape"),
        (
            header_of(tensor(b"a", (33,), 2, 0), tensors=1),
            "of type Q4_0 has rows of 33, not of whole blocks of 32",
        ),
        (header_of(tensor(b"a", (32,), 77, 0), tensors=1), "tensor 'a' has the unknown type 77"),
        (header_of(tensor(b"a", (32,), 0, 33), tensors=1), "the offset of tensor 'a' is no multiple of 32"),
        (header_of(tensor(b"a", (32,), 0, 2**63), tensors=1), "tensor 'a' ends at byte .* of"),
        (header_of(ONE_ROW, ONE_ROW, tensors=2), "two of its tensors have the same name"),
        (
            header_of(ONE_ROW, tensor(b"b", (32,), 0, 64), bytes(512), tensors=2),
            "tensors 'a' and 'b' overlap",
        ),
    ],
)
def test_what_is_wrong_is_said(data: bytes, message: str) -> None:
    with pytest.raises(Damaged, match=message):
        parse_header(io.BytesIO(data), len(data))


def test_the_line_names_file_reason_and_remedy(tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(header_of(keys=1))
    with pytest.raises(InvalidModel) as caught:
        read_headers([file])
    assert str(caught.value) == (
        f"{file}: not a complete GGUF file (the length of key 1 ends beyond the file); download it again"
    )


def flipped(data: bytearray, rng: np.random.Generator) -> bytearray:
    for _ in range(int(rng.integers(1, 8))):
        data[rng.integers(len(data))] ^= 1 << rng.integers(8)
    return data


def overwritten(data: bytearray, rng: np.random.Generator) -> bytearray:
    """A number becomes one that a careless reader would allocate, multiply or seek by."""
    number = (2**63, 2**64 - 1, 2**40, 2**32, 2**31 - 1, 65537)[rng.integers(6)]
    at = int(rng.integers(4, len(data) - 8))
    data[at : at + 8] = struct.pack("<Q", number)
    return data


def cut(data: bytearray, rng: np.random.Generator) -> bytearray:
    return data[: rng.integers(len(data))]


def grown(data: bytearray, rng: np.random.Generator) -> bytearray:
    at = int(rng.integers(len(data)))
    return data[:at] + bytes(rng.integers(0, 256, int(rng.integers(1, 64)), dtype=np.uint8)) + data[at:]


DAMAGES: tuple[Callable[[bytearray, np.random.Generator], bytearray], ...] = (
    flipped,
    overwritten,
    cut,
    grown,
)
MEASURED = """
import json, resource, sys
from pathlib import Path
from moorage.workers.gguf.header import GgufHeader, parse_files
files = [Path(name) for name in sys.argv[1:]]
found = [None if isinstance(each, GgufHeader) else str(each) for each in parse_files(files)]
print(json.dumps([found, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss]))
"""


def test_damaged_headers_give_one_line_each(file: Path, rng: np.random.Generator, tmp_path: Path) -> None:
    whole = file.read_bytes()
    end = read_headers([file])[0].tensors[0].begin
    files = []
    for index in range(NUM_DAMAGED):
        header = DAMAGES[index % len(DAMAGES)](bytearray(whole[:end]), rng)
        files.append(tmp_path / f"{index}.gguf")
        files[-1].write_bytes(header + whole[end:])
    command = [sys.executable, "-c", MEASURED, *map(str, files)]
    found, max_kib = json.loads(subprocess.run(command, check=True, capture_output=True, timeout=60).stdout)
    assert len(found) == NUM_DAMAGED
    refused = {path: line for path, line in zip(files, found, strict=True) if line is not None}
    assert len(refused) > NUM_DAMAGED // 2
    for path, line in refused.items():
        assert line.startswith(f"{path}: not a complete GGUF file (")
        assert line.endswith("; download it again")
        assert "\n" not in line
    assert max_kib < 200 << 10


def test_a_header_that_would_take_all_memory_is_refused(tmp_path: Path) -> None:
    """Twenty million values, in a file of 20 MiB."""
    array = struct.pack("<IQ", 7, MOST_ELEMENTS) + bytes(MOST_ELEMENTS)
    file = tmp_path / "model.gguf"
    file.write_bytes(header_of(*(key(b"%d" % i, 9, array) for i in range(5)), keys=5))
    (shown,) = parse_files([file], most_shown=MOST_ELEMENTS)
    assert isinstance(shown, InvalidModel)
    assert "reading its header takes more than" in str(shown)
    (counted,) = parse_files([file])
    assert isinstance(counted, GgufHeader)


def test_files_after_one_that_ends_the_process_are_refused_too(file: Path, tmp_path: Path) -> None:
    missing = tmp_path / "missing.gguf"
    first, second = parse_files([missing, file])
    assert str(first) == f"{missing}: can't be read (No such file or directory); check model.path"
    assert isinstance(second, GgufHeader)
