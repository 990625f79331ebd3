"""Every key of a cluster file with values that can't work: one line that names key and fix, or a value that works."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from moorage.runtime.config.errors import keys_of
from moorage.runtime.config.load import build_config
from moorage.runtime.config.schema import ClusterConfig
from moorage.runtime.config.source import Source
from moorage.workers.errors import InvalidConfig

KEYS = [(section, key) for section, key, _ in keys_of(ClusterConfig)]
NASTY: list[Any] = [
    math.inf, -math.inf, math.nan, -1, 0, 0.5, 10**9, 10**30, 10**400, -(10**30), 1e300, 1e-300, True, False, None,
    "", " ", "\0", "x" * 5000, "x" * 300_000, "\ud800", "nan", "inf", "1e999", "-1GiB", "99999999TiB", "9" * 5000,
    "0-999999999999", b"", b"x", [], [[]], ["x"], [0, 1], {}, {"a": 1}, {1: 2}, {"rope_type": "yarn"}, "~nobody/x",
    "http://127.0.0.1:1", "ray://head:10001", "host:0", object,
]  # fmt: skip


def built(section: str, key: str, value: Any) -> ClusterConfig:
    values = {"model": {"path": "m"}}
    values.setdefault(section, {})[key] = value
    return build_config(Source(Path("cluster.yaml"), values))


@pytest.mark.parametrize(("section", "key"), KEYS)
def test_no_value_gives_more_than_one_line(section: str, key: str) -> None:
    for value in NASTY:
        try:
            config = built(section, key, value)
        except InvalidConfig as error:
            message = str(error)
            assert message.isprintable(), message
            assert len(message) < 500, message
            assert f"{section}:" in message or key in message, message
            continue
        taken = getattr(getattr(config, section), key)
        assert not isinstance(taken, float) or math.isfinite(taken), (value, taken)


@pytest.mark.parametrize(
    ("section", "key", "value", "says"),
    [
        ("memory", "base", math.inf, "memory.base: got inf: should be a finite number"),
        ("memory", "base", True, "memory.base: got True: should be a finite number"),
        ("memory", "base", 1e300, "memory.base: got 1e+300: should be at most 1e+15"),
        ("memory", "mscale", math.nan, "memory.mscale: got nan: should be a finite number"),
        ("memory", "distance_scale", 1e-300, "should be at least 1e-06"),
        (
            "server",
            "max_message_bytes",
            1,
            "max_message_bytes: got 1: should be at least 2MiB; the default is 4MiB",
        ),
        ("server", "max_message_bytes", 2**31, "should be at most 2"),
        (
            "server",
            "grpc",
            "http://127.0.0.1:50051",
            "without http://, since the server speaks gRPC; write 127",
        ),
        ("model", "path", "", "model.path: got '': is empty; give the directory of a model"),
        ("model", "path", "a\0b", "has a NUL character, which no path can have; remove it"),
        (
            "model",
            "path",
            "x" * 256,
            "is longer than a path can be (4095 bytes, 255 for each name); shorten it",
        ),
        ("model", "path", "x/" * 2100, "is longer than a path can be"),
        ("model", "path", "~nobody-here/m", "is no user of this host; write the path out"),
        ("long_context", "threads_num", 100_000, "threads_num: got 100000: should be at most 1024 (1K)"),
        ("long_context", "max_seq_len", 10**30, "should be at most 1099511627776 (1048576M)"),
        ("long_context", "block_size", 10**6, "should be at most 65536 (64K)"),
        ("gpu_workers", "num_threads", 2**40, "num_threads: got 1099511627776: should be at most 1024"),
        ("kv_store", "actors", 10**6, "kv_store.actors: got 1000000: should be at most 1024"),
        ("kv_store", "cpus", ["0-999999999999", "1"], "should be CPU numbers below 8192 and ranges"),
        ("kv_store", "dram", 2**70, "should be at most"),
        ("ray", "namespace", "a\nb", "has a character that can't be printed"),
        ("ray", "address", "ray://head:10001", "should be local, auto or HOST:PORT of a running Ray cluster"),
    ],
)
def test_values_that_cannot_work_are_refused_with_the_fix(
    section: str, key: str, value: Any, says: str
) -> None:
    with pytest.raises(InvalidConfig) as caught:
        built(section, key, value)
    assert says in str(caught.value)


def test_numbers_as_people_write_them() -> None:
    """YAML 1.1 reads 1e6 as text."""
    assert built("memory", "base", "1e6").memory.base == 1e6
    assert built("memory", "score_decay", 1).memory.score_decay == 1
