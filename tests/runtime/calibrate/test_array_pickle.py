"""Pickles of arrays are read; whatever else a pickle asks for is refused in one line, and nothing of it runs."""

from __future__ import annotations

import collections
import io
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from moorage.runtime.calibrate.array_pickle import Array, read_arrays
from moorage.workers.errors import InvalidRequest

pytestmark = pytest.mark.filterwarnings("ignore:TypedStorage is deprecated")  # by torch's own pickling


def written(folder: Path, data: bytes) -> Path:
    file = folder / "q.pickle"
    file.write_bytes(data)
    return file


def plain(value: Any) -> Any:
    """The same with numpy's arrays in place of `Array`."""
    if isinstance(value, Array):
        return value.values
    if isinstance(value, list | tuple):
        return type(value)(plain(x) for x in value)
    return {name: plain(x) for name, x in value.items()} if isinstance(value, dict) else value


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_arrays_numbers_and_their_containers_are_read(protocol: int, tmp_path: Path) -> None:
    strided = np.arange(12.0).reshape(3, 4)
    held = {
        "arrays": [
            np.float32([[1, 2], [3, 4]]),
            strided.T,
            np.arange(3),
            np.float16(1).reshape(()),
            np.zeros((0, 2)),
        ],
        "numbers": (1, 2.5, np.float64(0.25), -1, 2**70, None, True),
        "tensors": (
            torch.arange(6.0, dtype=torch.float64).view(1, 6),
            torch.tensor(1.5),
            torch.ones(2).half(),
        ),
        "part": torch.arange(6.0)[2:5],
    }
    found = plain(read_arrays(written(tmp_path, pickle.dumps(held, protocol))))
    assert found.keys() == held.keys()
    for got, wanted in zip(found["arrays"], held["arrays"], strict=True):
        np.testing.assert_array_equal(got, wanted)
    assert found["numbers"] == held["numbers"]
    for got, tensor in zip([*found["tensors"], found["part"]], [*held["tensors"], held["part"]], strict=True):
        np.testing.assert_array_equal(got, tensor.numpy())


class Run:
    """Pickles to a call of `function`."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self._call = (function, arguments)

    def __reduce__(self) -> Any:
        return self._call


def nested(payload: bytes) -> bytes:
    """A tensor's storage whose own pickle is `payload`."""
    return pickle.dumps(Run(torch.storage._load_from_bytes, payload))


def legacy_storage(payload: object) -> bytes:
    """What `torch.save` writes, with `payload` as the object."""
    written = io.BytesIO()
    torch.save(payload, written, _use_new_zipfile_serialization=False)
    return written.getvalue()


def attacks(marker: Path) -> dict[str, bytes]:
    """Pickles that make the file `marker` when they are loaded by `pickle.load`."""
    touch = f"touch {marker}"
    python = f"open({str(marker)!r}, 'w').close()"
    call = pickle.dumps(Run(os.system, touch))
    return {
        "a shell": call,
        "a shell, as text": f"cos\nsystem\n(S'{touch}'\ntR.".encode(),
        "eval": pickle.dumps(Run(eval, python.replace("\\", ""))),
        "exec": pickle.dumps(Run(exec, python)),
        "an instance": f"(S'{touch}'\nios\nsystem\n.".encode(),
        "an object": f"(cos\nsystem\nS'{touch}'\no.".encode(),
        "an attribute of an allowed name": b"\x80\x04\x8c\x05numpy\x8c\x12ndarray.__reduce__\x93)R.",
        "a way through the builtins": pickle.dumps(Run(getattr, Run(__import__, "os"), "system")),
        "within a storage": nested(legacy_storage(Run(os.system, touch))),
        "within a storage, bare": nested(call),
        "deep within containers": pickle.dumps(
            {"model.layers.0.self_attn.k_proj": [([Run(os.system, touch)],)]}
        ),
        "numpy's loader": pickle.dumps(Run(np.load, str(marker))),
        "torch's loader": pickle.dumps(Run(torch.load, str(marker))),
        "an array of objects": pickle.dumps(np.array([Run(os.system, touch)], dtype=object)),
        "a default dictionary": pickle.dumps(collections.defaultdict(list)),
    }


@pytest.mark.parametrize("name", attacks(Path("none")))
def test_an_attack_is_refused_and_does_not_run(name: str, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    file = written(tmp_path, attacks(marker)[name])
    with pytest.raises(InvalidRequest, match=r"refused, since .*nothing of it was run") as caught:
        read_arrays(file)
    assert "\n" not in str(caught.value)
    assert not marker.exists()


def test_the_attacks_are_real(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    for name in (
        "a shell",
        "a shell, as text",
        "exec",
        "an instance",
        "within a storage",
        "deep within containers",
    ):
        pickle.loads(attacks(marker)[name])  # noqa: S301  # shows that the file would run
        assert marker.exists(), name
        marker.unlink()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "pickle exhausted"),
        (b"not a pickle", "opcode|instruction|it "),
        (pickle.dumps(np.arange(1000.0))[:-300], "expected .* bytes|exhausted|truncated"),
        (b"\x80\x04Pid\n.", "it has the instruction PERSID"),
        (b"\x80\x02\x82\x01.", "it has the instruction EXT1"),
        (b"\x80\x04K\x01r\xff\xff\xff\x7f.", "it numbers more objects than it has"),
        (b"\x80\x04\x8c\x05numpy\x8c\x05dtype\x93}\x8c\x04_run\x8c\x01xsb.", "it changes a function"),
        (b"\x80\x04]}\x8c\x01ax\x8c\x01bsb.", "it"),
        (pickle.dumps(np.zeros(2, ">f4")), "byte order '>'|elements of type"),
        (pickle.dumps(np.zeros(2, "S3")), "elements of type 'S3'"),
        (pickle.dumps(torch.zeros(2, 3).T), "elements do not follow one another"),
        (nested(legacy_storage({"a": torch.zeros(2)})), "it has a tensor without elements"),
    ],
)
def test_a_file_that_is_no_such_pickle_is_one_line(data: bytes, reason: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=f"q.pickle: refused, since .*({reason})") as caught:
        read_arrays(written(tmp_path, data))
    assert "\n" not in str(caught.value)


def test_a_tensor_cannot_reach_beyond_its_storage(tmp_path: Path) -> None:
    _, (typed, *_) = torch.zeros(3).__reduce_ex__(2)
    storage = Run(torch.storage._load_from_bytes, legacy_storage(typed))
    for offset, size in ((1, (3,)), (-1, (2,)), (0, (-1,)), (0, (2**40,))):
        data = pickle.dumps(Run(torch._utils._rebuild_tensor_v2, storage, offset, size, (1,), False, {}))
        with pytest.raises(InvalidRequest, match="a tensor larger than its storage"):
            read_arrays(written(tmp_path, data))


def test_a_file_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"none\.pickle: can't be read \(No such file or directory\)"):
        read_arrays(tmp_path / "none.pickle")
