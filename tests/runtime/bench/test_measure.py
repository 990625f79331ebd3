"""Interleaving: everybody runs as often as everybody else, in turning order."""

from __future__ import annotations

from moorage.runtime.bench.measure import WARM_ROUNDS, describe_machine, installed, interleave, percentile


def test_subjects_take_turns() -> None:
    calls: list[str] = []
    taken = interleave({name: lambda name=name: calls.append(name) for name in "abc"}, rounds=4, repeats=2)  # type: ignore[misc]
    assert set(taken) == set("abc")
    assert all(seconds >= 0 for seconds in taken.values())
    rounds = WARM_ROUNDS + 4
    assert [calls.count(name) for name in "abc"] == [2 * rounds] * 3
    assert {"".join(calls[6 * i : 6 * i + 6]) for i in range(rounds)} == {"aabbcc", "bbccaa", "ccaabb"}


def test_percentiles() -> None:
    values = [float(value) for value in range(100)]
    assert (percentile(values, 0.5), percentile(values, 0.99), percentile([3.0], 0.99)) == (50.0, 99.0, 3.0)


def test_machine_is_described_without_loading_anything() -> None:
    machine = describe_machine()
    assert machine["cores"] >= 1
    assert machine["numpy"] != "absent"
    assert not installed("no-such-package-at-all")
