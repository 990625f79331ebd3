"""Token ids in four bytes each that behave as a tuple of integers."""

from __future__ import annotations

import pickle
from array import array

import numpy as np
import pytest

from moorage.workers.token_ids import TokenIds

IDS = (0, 7, 131_071, 2**32 - 1, 7)


@pytest.mark.parametrize("given", [IDS, list(IDS), array("I", IDS), array("I", IDS).tobytes(), TokenIds(IDS)])
def test_equal_a_tuple_of_the_same_integers_whatever_they_were_made_of(given: tuple[int, ...]) -> None:
    ids = TokenIds(given)
    assert ids == IDS
    assert ids == IDS
    assert ids == list(IDS)
    assert hash(ids) == hash(IDS)
    assert ids != IDS[:4]
    assert ids != (*IDS[:4], 8)
    assert tuple(ids) == IDS
    assert all(type(token) is int for token in (*ids, ids[1]))


def test_slices_equal_slices_of_the_tuple_and_share_its_memory() -> None:
    ids = TokenIds(IDS)
    assert ids[1:4] == IDS[1:4]
    assert ids[-2:] == IDS[-2:]
    assert ids[:0] == ()
    big = TokenIds(range(100_000))
    assert len(pickle.dumps(big)) < 401_000
    assert len(pickle.dumps(big[:10])) < 1_000, "a slice must not carry the whole"


def test_never_change_with_what_they_were_made_of() -> None:
    for made_of in ([1, 2, 3], array("I", [1, 2, 3]), np.array([1, 2, 3], np.uint32)):
        ids = TokenIds(made_of)
        made_of[0] = 9
        assert ids == (1, 2, 3)


def test_survive_the_way_to_another_process() -> None:
    assert pickle.loads(pickle.dumps(TokenIds(IDS)[1:])) == IDS[1:]  # noqa: S301


@pytest.mark.parametrize("token", [-1, 2**32])
def test_integers_that_are_no_token_ids_are_refused(token: int) -> None:
    with pytest.raises(OverflowError):
        TokenIds([token])


def test_plus_appends() -> None:
    assert TokenIds(IDS).plus([3, 4]) == (*IDS, 3, 4)
    assert TokenIds(IDS).plus(()) == IDS


def test_shared_is_the_length_of_the_common_beginning(rng: np.random.Generator) -> None:
    for _ in range(200):
        one, other = (rng.integers(0, 2, rng.integers(0, 6)).tolist() for _ in range(2))
        most = int(rng.integers(-1, 7))
        plain = 0
        while plain < min(len(one), len(other), most) and one[plain] == other[plain]:
            plain += 1
        assert TokenIds(one).shared(other, most) == plain
