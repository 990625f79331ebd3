"""Every operation of the table has a method that answers it, and crosses the mailbox without a pickle."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from moorage.workers.kv.codec import codec_of
from moorage.workers.kv.mapped_shard import MappedShard
from moorage.workers.kv.operation import OPERATIONS, Operation, Selecting
from moorage.workers.kv.operations import Attach, Commit, Stats, Write
from moorage.workers.kv.store import KvStore
from moorage.workers.kv.window import Window
from moorage.workers.kv.wire import get_message, pack_posts, put_message, unpack_posts


class Color(StrEnum):
    RED = "red"
    BLUE = "blue"


class Inner(NamedTuple):
    counts: NDArray[np.int64]
    color: Color = Color.RED


@dataclass(slots=True)
class Outer:
    number: int
    share: float
    is_set: bool
    inner: Inner
    maybe: Inner | None
    missing: NDArray[np.float32] | None
    stored: NDArray[np.uint16] | NDArray[np.float32]
    colors: tuple[Color, ...] = ()


@pytest.mark.parametrize("kind", OPERATIONS.values(), ids=lambda kind: kind.__name__)
def test_an_operation_names_a_method_that_takes_its_fields(kind: type[Operation[Any]]) -> None:
    owner = MappedShard if issubclass(kind, Selecting) else KvStore
    for name, cls in ((kind.handler, owner), (kind.follower, MappedShard)):
        if name:
            taken = list(inspect.signature(getattr(cls, name)).parameters)[1:]
            assert len(taken) >= len(fields(kind))
    codec_of(kind)
    codec_of(kind.reply_type)


def test_numbers_are_those_of_the_table() -> None:
    assert [kind.number for kind in OPERATIONS.values()] == list(OPERATIONS) == list(range(len(OPERATIONS)))
    assert OPERATIONS[Stats.number] is Stats
    assert Attach(3).sessions == [3]
    assert Stats().sessions == []


@pytest.mark.parametrize("begin", [0, 128, 3 * 2**20])
def test_records_come_back_through_the_window(rng: np.random.Generator, begin: int) -> None:
    window, codec = Window.create(), codec_of(Outer)
    inner = Inner(rng.integers(-9, 9, (2, 3)), Color.BLUE)
    for maybe in (None, Inner(np.empty(0, np.int64))):
        stored = rng.integers(0, 9, (1, 2, 3)).astype(np.uint16)
        colors = () if maybe is None else (Color.BLUE, Color.RED, Color.BLUE)
        value = Outer(-(2**60), 0.1, True, inner, maybe, None, stored, colors)
        placed = put_message(window, begin, codec, value)
        back = get_message(window, begin, placed.body_bytes, codec, copy=True)
        assert (back.number, back.share, back.is_set, back.missing) == (-(2**60), 0.1, True, None)
        assert back.inner.color is Color.BLUE
        assert back.colors == colors
        np.testing.assert_array_equal(back.inner.counts, inner.counts)
        assert (back.maybe is None) == (maybe is None)
        np.testing.assert_array_equal(back.stored, stored)
        assert placed.end >= begin + placed.body_bytes + inner.counts.nbytes + stored.nbytes
    window.close()


@pytest.mark.parametrize("kind", [str, dict[str, int], int | str, list[str], tuple[str, ...]])
def test_other_types_are_refused(kind: Any) -> None:
    with pytest.raises(TypeError, match="can't cross"):
        codec_of(kind)


def test_posts_of_one_type_share_packets() -> None:
    commits = [Commit(session_id, 1, 0, 5) for session_id in range(300)]
    packets = list(pack_posts(commits))
    assert len(packets) < 5
    assert [commit for packet in packets for commit in unpack_posts(packet) or ()] == commits
    with pytest.raises(TypeError, match="call it"):
        list(pack_posts([Write(1, 0, 0, np.zeros((1, 1, 1), np.float32), np.zeros((1, 1, 1), np.float32))]))
