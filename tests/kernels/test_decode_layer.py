from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from moorage.kernels.decode_layer import MISFIT, NOT_FINITE_ROW, LayerMemory, decode_layer, reference
from moorage.kernels.numba_flags import always_parallel
from tests.kernels.decode_layer_case import CLAMPED, DCA, Case, Setting

SETTINGS = {
    "no-session": Setting(positions=()),
    "first-token": Setting(positions=(0,)),
    "second-token": Setting(positions=(1,), scheme=CLAMPED),
    "block-ends": Setting(positions=(15, 16, 17, 239, 240, 241), num_memories=2),
    "blocks-of-one": Setting(positions=(90, 3), block=1, k=9, window=7, num_memories=3),
    "blocks-of-33": Setting(positions=(900,), block=33, dim=64, rotated=24, group=3, window=100),
    "no-rotation": Setting(positions=(300,), rotated=0, group=1),
    "clamped": Setting(
        positions=(700, 20, 41), scheme=CLAMPED, rotates_scoring=True, num_memories=3, stripe=1
    ),
    "dual-chunks": Setting(positions=(500, 47, 48, 95, 96), scheme=DCA, num_memories=2),
    "each-kv-head": Setting(positions=(800, 333), num_selections=2, bounds=True, scheme=CLAMPED),
    "bounds": Setting(positions=(900, 15), bounds=True, dim=96, rotated=48, num_memories=2),
    "long": Setting(positions=(1500, 700), bounds=True, dim=64, rotated=64, num_selections=2),
    "long-shared": Setting(positions=(1500, 700, 9), dim=128, num_memories=3),
    "more-than-there-are": Setting(positions=(130, 60), k=40, num_memories=2),
    "none-selected": Setting(positions=(400, 20), k=0),
    "given": Setting(positions=(600, 77), selects=False, num_memories=2),
    "given-kv-heads": Setting(positions=(600, 77), selects=False, num_selections=2, scheme=DCA),
    "given-query-heads": Setting(
        positions=(600, 77), selects=False, num_selections=6, group=3, scheme=CLAMPED
    ),
    "everything": Setting(positions=(9000, 4100), selects=False, k=0, window=9000, block=8, dim=32),
    "capped": Setting(positions=(300, 41), softcap=0.5, num_memories=2),
    "a-wide-group": Setting(positions=(300,), heads=1, group=7, block=32, dim=64, rotated=64),
}


def equal(found, expected):
    for left, right in zip(found, expected, strict=True):
        np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize("name", SETTINGS)
def test_matches_reference(rng, storage, name):
    case = Case(rng, storage, SETTINGS[name])
    selections, attended, kv = case.run(decode_layer)
    expected, wanted, rows = case.run(reference.decode_layer)
    equal(kv, rows)
    np.testing.assert_array_equal(attended.failed, 0)
    np.testing.assert_array_equal(selections.ids, expected.ids)
    np.testing.assert_array_equal(selections.window_first, expected.window_first)
    np.testing.assert_allclose(selections.scores, expected.scores, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(attended.out, wanted.out, rtol=2e-4, atol=3e-5)
    np.testing.assert_allclose(attended.lse, wanted.lse, rtol=1e-5, atol=3e-5)


@pytest.mark.parametrize("name", SETTINGS)
def test_bits_depend_on_nothing_else(rng, storage, name):
    """The same alone, with others, and by several threads."""
    case = Case(rng, storage, SETTINGS[name])
    selections, attended, kv = case.run(decode_layer)
    with always_parallel():
        dealt_selections, dealt, dealt_kv = case.run(decode_layer)
    equal(attended, dealt)
    equal(selections, dealt_selections)
    equal(kv, dealt_kv)
    for i in range(len(case.query)):
        for parallel in (False, True):
            if parallel:
                with always_parallel():
                    own_selections, own, _ = case.only(i).run(decode_layer)
            else:
                own_selections, own, _ = case.only(i).run(decode_layer)
            equal(own, [array[i : i + 1] for array in attended])
            equal(own_selections, [array[i : i + 1] for array in selections])


FOUR = Setting(positions=(300, 200, 500, 64), num_memories=2)


def changed(case, record, name, value, *place):
    """`case` with one element of one array changed."""
    records = {"batch": case.batch, "selections": case.selections}
    array = getattr(records[record], name).copy()
    array[place] = value
    setattr(case, record, records[record]._replace(**{name: array}))


@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize("which", ["key", "value"])
@pytest.mark.parametrize("value", [np.nan, np.inf, 1e5])
def test_a_row_that_is_not_finite_fails_its_session_alone(rng, storage, which, value, parallel):
    case = Case(rng, storage, FOUR)
    _, expected, _ = case.run(decode_layer)
    getattr(case, which)[2, 1, 5] = value
    if parallel:
        with always_parallel():
            _, attended, _ = case.run(decode_layer)
    else:
        _, attended, _ = case.run(decode_layer)
    fails = not (value == 1e5 and storage == np.float32)
    assert attended.failed.tolist() == [0, 0, NOT_FINITE_ROW if fails else 0, 0]
    others = [0, 1, 3]
    equal([array[others] for array in attended], [array[others] for array in expected])
    if fails:
        assert not attended.out[2].any()
        assert (attended.lse[2] == -np.inf).all()


@pytest.mark.parametrize(
    ("record", "name", "value", "place"),
    [
        ("batch", "position", -1, ()),
        ("batch", "position", 5000, ()),
        ("batch", "first_memory", 2, ()),
        ("batch", "first_memory", -1, ()),
        ("batch", "num_sinks", -1, ()),
        ("batch", "num_sinks", 900, ()),
        ("batch", "near_block", 900, ()),
        ("batch", "num_parts", 4, ()),
        ("batch", "page_start", -1, (0,)),
        ("batch", "page_start", 10_000, (2,)),
        ("batch", "page_start", 0, (1,)),
        ("batch", "pages", 10_000, None),
        ("batch", "pages", -1, None),
        ("selections", "ids", 900, (0, 1)),
        ("selections", "ids", -2, (0, 1)),
        ("selections", "ids", -1, (0, 0)),
        ("selections", "window_first", 900, ()),
        ("selections", "window_first", -1, ()),
    ],
)
def test_what_lies_nowhere_fails_its_session_alone(rng, storage, record, name, value, place):
    case = Case(rng, storage, replace(FOUR, selects=name not in ("ids", "window_first")))
    case.selections.ids[2, 0, :2] = (2, 3)
    _, expected, _ = case.run(decode_layer)
    assert not expected.failed.any()
    if place is None:  # a page of session 2
        changed(case, record, name, value, case.batch.page_start[2, 0] + 3)
    else:
        changed(case, record, name, value, 2, *place)
    _, attended, _ = case.run(decode_layer)
    assert attended.failed.tolist() == [0, 0, MISFIT, 0]
    assert not attended.out[2].any()
    others = [0, 1, 3]
    equal([array[others] for array in attended], [array[others] for array in expected])


def test_too_few_positions_fail_the_sessions_that_need_them(rng, storage):
    case = Case(rng, storage, FOUR)
    case.batch = case.batch._replace(bases=case.batch.bases[:20])
    _, attended, _ = case.run(decode_layer)
    assert attended.failed.tolist() == [0, 0, MISFIT, 0]


@pytest.mark.parametrize(
    ("record", "name", "change"),
    [
        ("batch", "position", lambda a: a.astype(np.int32)),
        ("batch", "scale", lambda a: a[:-1]),
        ("batch", "page_start", lambda a: a[:, :-1].copy()),
        ("batch", "query_turn", lambda a: a.transpose(1, 0, 2)),
        ("selections", "scores", lambda a: a[..., :-1].copy()),
        ("attended", "out", lambda a: a[:, :, ::2]),
    ],
)
def test_arrays_that_do_not_fit_are_named(rng, storage, record, name, change):
    case = Case(rng, storage, FOUR)
    records = {"batch": case.batch, "selections": case.selections, "attended": case.attended}
    records[record] = records[record]._replace(**{name: change(getattr(records[record], name))})
    with pytest.raises(ValueError, match=name):
        decode_layer(
            case.memory,
            records["batch"],
            case.query,
            case.key,
            case.value,
            records["selections"],
            records["attended"],
        )


def test_sizes_that_do_not_fit_are_told(rng, storage):
    case = Case(rng, storage, replace(FOUR, heads=4, group=3, num_selections=2))
    with pytest.raises(ValueError, match="2 selections of 4 sessions"):
        case.run(decode_layer)
    case = Case(rng, storage, FOUR)
    for period in (-16, 24):
        case.batch = case.batch._replace(period=period)
        with pytest.raises(ValueError, match="period"):
            case.run(decode_layer)
    with pytest.raises(ValueError, match="query heads"):
        decode_layer(
            case.memory, case.batch, case.query[:, :3].copy(), case.key, case.value, case.selections,
            case.attended._replace(out=case.attended.out[:, :3].copy(), lse=case.attended.lse[:, :3].copy()),
        )  # fmt: skip


def test_memories_that_do_not_fit_are_refused(rng, storage):
    case = Case(rng, storage, replace(FOUR, dim=64, rotated=64))
    shape, kv, anchors, coded = case.memory.shape, case.kv, case.anchors, case.codes
    with pytest.raises(ValueError, match="memories"):
        LayerMemory.of(shape, kv, anchors[:1], coded)
    with pytest.raises(ValueError, match="kv"):
        LayerMemory.of(shape._replace(block_size=8), kv, anchors, coded)
    with pytest.raises(ValueError, match="anchors"):
        LayerMemory.of(shape, kv, [anchors[0], anchors[1][:-1]], coded)
    with pytest.raises(ValueError, match="codes"):
        LayerMemory.of(shape, kv, anchors, [coded[0], np.zeros((len(coded[1]), 7), np.uint8)])
    with pytest.raises(ValueError, match="head size"):
        LayerMemory.of(shape._replace(head_dim=24), kv, anchors, coded)


def test_failed_sessions_are_counted_and_later_calls_look_at_the_rows_alone(rng, storage):
    case = Case(rng, storage, FOUR)
    memory = LayerMemory.of(case.memory.shape, [kv.copy() for kv in case.kv], case.anchors, case.codes)
    given, results = (case.query, case.key, case.value), (case.selections, case.attended)
    for is_checked in (False, True):
        assert decode_layer(memory, case.batch, *given, *results, is_checked=is_checked) == 0
    for name, rows in (("query", 0), ("key", 1), ("value", 2)):
        wrong = list(given)
        wrong[rows] = given[rows][:, :, ::2]
        with pytest.raises(ValueError, match=name):
            decode_layer(memory, case.batch, *wrong, *results, is_checked=True)
    case.key[1:3, 0, 0] = np.nan
    for parallel in (False, True):
        if parallel:
            with always_parallel():
                assert decode_layer(memory, case.batch, *given, *results) == 2
        else:
            assert decode_layer(memory, case.batch, *given, *results) == 2
