"""Interleaving: everybody runs as often as everybody else, in turning order."""

from __future__ import annotations

from moorage.runtime.bench.measure import (
    WARM_ROUNDS,
    Sample,
    describe_machine,
    installed,
    interleave,
    median_s,
    percentile,
)


def test_subjects_take_turns() -> None:
    calls: list[str] = []
    taken = interleave({name: lambda name=name: calls.append(name) for name in "abc"}, rounds=4)  # type: ignore[misc]
    assert set(taken) == set("abc")
    assert all(seconds >= 0 for seconds in taken.values())
    rounds = WARM_ROUNDS + 4
    assert [calls.count(name) for name in "abc"] == [rounds] * 3
    assert {"".join(calls[3 * i : 3 * i + 3]) for i in range(rounds)} == {"abc", "bca", "cab"}


def test_percentiles() -> None:
    values = [float(value) for value in range(100)]
    assert (percentile(values, 0.5), percentile(values, 0.99), percentile([3.0], 0.99)) == (50.0, 99.0, 3.0)


def test_machine_is_described_without_loading_anything() -> None:
    machine = describe_machine()
    assert machine["cores"] >= 1
    assert machine["numpy"] != "absent"
    assert not installed("no-such-package-at-all")


def test_disturbed_runs_do_not_count_unless_there_are_too_few_others() -> None:
    calm = [Sample(None, 1.0, False)] * 5
    assert median_s([*calm, *[Sample(None, 9.0, True)] * 20]) == 1.0
    assert median_s([*calm[:4], *[Sample(None, 9.0, True)] * 20]) == 9.0
    assert median_s([Sample(None, 1.0, False)]) == 1.0
