from __future__ import annotations

import numpy as np
import pytest

from moorage.workers.kv.stripes import Stripes

SHAPES = [(1, 8), (2, 1), (2, 4), (3, 1), (3, 5), (5, 2)]


@pytest.mark.parametrize(("num_shards", "length"), SHAPES)
def test_each_unit_lies_in_one_shard_and_comes_back(num_shards: int, length: int) -> None:
    stripes = Stripes(num_shards, length)
    units = np.arange(200, dtype=np.int32)
    shards, local = stripes.split(units)
    for shard in range(num_shards):
        here = shards == shard
        # In order and without holes: local units count up from 0.
        np.testing.assert_array_equal(local[here], np.arange(np.count_nonzero(here)))
        np.testing.assert_array_equal(stripes.joined(shard, local[here]), units[here])


@pytest.mark.parametrize(("num_shards", "length"), SHAPES)
def test_counts_agree_with_the_split(num_shards: int, length: int) -> None:
    stripes = Stripes(num_shards, length)
    totals = np.arange(100, dtype=np.int32)
    for shard in range(num_shards):
        expected = [np.count_nonzero(stripes.split(np.arange(total))[0] == shard) for total in totals]
        np.testing.assert_array_equal(stripes.counts(totals, shard), expected)
        assert [stripes.count(int(total), shard) for total in totals] == expected


@pytest.mark.parametrize(("num_shards", "length"), SHAPES)
@pytest.mark.parametrize(("start", "end"), [(0, 0), (0, 1), (7, 7), (3, 41), (11, 12), (0, 60)])
def test_runs_cover_a_range_in_order(num_shards: int, length: int, start: int, end: int) -> None:
    stripes = Stripes(num_shards, length)
    covered = []
    for shard, local, begin, stop in stripes.runs(start, end):
        shards, places = stripes.split(np.arange(begin, stop))
        assert set(shards) == {shard}
        np.testing.assert_array_equal(places, np.arange(local, local + stop - begin))
        covered += range(begin, stop)
    assert covered == list(range(start, end))


@pytest.mark.parametrize(("num_shards", "length"), SHAPES)
def test_held_is_the_longest_prefix_without_a_hole(num_shards: int, length: int) -> None:
    stripes, rng = Stripes(num_shards, length), np.random.default_rng(num_shards)
    for total in (0, 1, length, 37):
        counts = [stripes.count(total, shard) for shard in range(num_shards)]
        assert stripes.held(counts) == total
        for _ in range(5):
            ahead = [count + int(rng.integers(0, 9)) for count in counts]
            held = stripes.held(ahead)
            assert held >= total
            shard, local = (int(part[0]) for part in stripes.split(np.array([held], np.int32)))
            assert ahead[shard] == local
            assert all(stripes.count(held, s) <= ahead[s] for s in range(num_shards))
