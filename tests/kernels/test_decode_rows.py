from __future__ import annotations

import numpy as np
import pytest

from moorage.kernels.decode_layer import MISFIT, NOT_FINITE_ROW, LayerMemory, decode_layer, reference
from moorage.kernels.decode_rows import decode_rows
from moorage.kernels.numba_flags import always_parallel
from tests.kernels.decode_layer_case import CLAMPED, DCA, Case, Setting

SETTINGS = {
    "first-tokens": (Setting(positions=(3,)), 4),
    "one-row": (Setting(positions=(200,)), 1),
    "begins-a-block": (Setting(positions=(244,), num_memories=2), 5),
    "wide": (Setting(positions=(700,), block=32, dim=64, rotated=64, group=3, heads=3), 5),
    "wide-unrotated-rest": (Setting(positions=(300,), block=16, dim=64, rotated=32, group=4), 3),
    "blocks-of-33": (Setting(positions=(900,), block=33, dim=64, rotated=24, group=3, window=100), 6),
    "no-rotation": (Setting(positions=(300,), rotated=0, group=1), 4),
    "clamped": (Setting(positions=(720,), scheme=CLAMPED, num_memories=3, stripe=1), 16),
    "dual-chunks": (Setting(positions=(99,), scheme=DCA, num_memories=2), 8),
    "several-pieces": (Setting(positions=(8193,), window=9000, block=8, dim=32), 4),
    "capped": (Setting(positions=(301,), softcap=0.5, num_memories=2), 3),
    "lanes-clamped": (
        Setting(positions=(700,), scheme=CLAMPED, block=32, dim=64, rotated=64, group=3, window=333),
        5,
    ),
    "lanes-dual-chunks": (
        Setting(positions=(99,), scheme=DCA, dim=64, rotated=64, group=2, num_memories=2),
        8,
    ),
    "lanes-begin-a-block": (Setting(positions=(647,), dim=64, rotated=64, group=1, window=600), 16),
    "two-vectors-of-lanes": (Setting(positions=(300,), dim=128, rotated=128, group=4, heads=1), 5),
    "blocks-of-one": (Setting(positions=(90,), block=1, window=7, num_memories=3), 5),
}


def one_by_one(memory, batch, query, key, value, selections, attended):
    """Each position in a call of its own, as a session generates its tokens."""
    whole = {"pages", "period", "bases", "offset_cos", "offset_sin", "rotates_scoring"}
    for r in range(len(query)):
        one = slice(r, r + 1)
        own = type(batch)(*(v if name in whole else v[one] for name, v in batch._asdict().items()))
        decode_layer(
            memory, own, query[one], key[one], value[one],
            type(selections)(*(array[one] for array in selections)),
            type(attended)(*(array[one] for array in attended)),
        )  # fmt: skip


@pytest.mark.parametrize("name", SETTINGS)
def test_gives_the_bits_of_one_position_after_the_other(rng, storage, name):
    setting, count = SETTINGS[name]
    case = Case(rng, storage, setting).rows(rng, count)
    _, expected, rows = case.run(one_by_one)
    _, attended, kv = case.run(decode_rows)
    with always_parallel():
        _, dealt, _ = case.run(decode_rows)
    np.testing.assert_array_equal(attended.failed, 0)
    # Half the rotated channels are whole vectors in all models that are known; the compiler may fuse others.
    rounding = 0 if setting.rotated % 32 == 0 else 1e-6
    for found in (attended, dealt):
        np.testing.assert_allclose(found.out, expected.out, rtol=0, atol=rounding)
        np.testing.assert_allclose(found.lse, expected.lse, rtol=0, atol=rounding)
    for left, right in zip(kv, rows, strict=True):
        np.testing.assert_array_equal(left, right)
    _, wanted, _ = case.run(reference.decode_layer)
    np.testing.assert_allclose(attended.out, wanted.out, rtol=2e-4, atol=3e-5)


def test_what_was_stored_at_later_positions_is_not_attended(rng, storage):
    """Rows that a rejected draft left behind the new ones."""
    case = Case(rng, storage, Setting(positions=(300,))).rows(rng, 3)
    _, expected, _ = case.run(decode_rows)
    page = case.batch.pages[case.batch.page_start[0, 0] + 300 // 16]
    case.kv[0][page, :, :, 300 % 16 + 1 :] = 0
    _, attended, _ = case.run(decode_rows)
    np.testing.assert_array_equal(attended.out, expected.out)


@pytest.mark.parametrize("which", ["key", "value"])
def test_a_row_that_is_not_finite_fails_all(rng, storage, which):
    case = Case(rng, storage, Setting(positions=(300,))).rows(rng, 4)
    getattr(case, which)[2, 1, 5] = np.nan
    _, attended, _ = case.run(decode_rows)
    assert attended.failed.tolist() == [NOT_FINITE_ROW] * 4
    assert not attended.out.any()
    assert (attended.lse == -np.inf).all()


@pytest.mark.parametrize(
    ("record", "name", "value"),
    [
        ("batch", "position", 5000),
        ("batch", "position", 200),
        ("batch", "first_memory", 2),
        ("batch", "num_parts", 4),
        ("selections", "selects", 1),
        ("selections", "window_first", 900),
    ],
)
def test_rows_that_lie_nowhere_or_apart_fail_all_and_write_nothing(rng, storage, record, name, value):
    case = Case(rng, storage, Setting(positions=(300,))).rows(rng, 4)
    array = getattr(getattr(case, record), name).copy()
    array[2] = value
    setattr(case, record, getattr(case, record)._replace(**{name: array}))
    _, attended, kv = case.run(decode_rows)
    assert attended.failed.tolist() == [MISFIT] * 4
    np.testing.assert_array_equal(kv[0], case.kv[0])


def test_arrays_that_do_not_fit_are_named(rng, storage):
    case = Case(rng, storage, Setting(positions=(300,))).rows(rng, 4)
    memory = LayerMemory.of(case.memory.shape, case.kv, case.anchors, case.codes)
    with pytest.raises(ValueError, match="out"):
        decode_rows(
            memory, case.batch, case.query, case.key, case.value, case.selections,
            case.attended._replace(out=case.attended.out[:, :, ::2]),
        )  # fmt: skip
