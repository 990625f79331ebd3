"""Single keys that a layer of decode selects from packed blocks, against the definition over what these hold."""

from __future__ import annotations

import numpy as np
import pytest

from moorage.kernels.decode_layer import reference
from moorage.kernels.numba_flags import always_parallel
from tests.kernels.decode_layer_case import CLAMPED, DCA, Setting
from tests.kernels.decode_packed_case import PackedCase
from tests.kernels.packed_blocks_case import EXAMPLES
from tests.kernels.test_decode_keys import check, coded, run

SETTINGS = {
    "half-blocks": Setting((470, 133, 39, 5), 3, group=3, dim=64, rotated=64, k=24, window=48),
    "clamped": Setting((470, 260), 1, group=4, dim=128, rotated=128, block=64, k=70, window=192, scheme=CLAMPED),
    "dual-chunks": Setting((470, 133), 2, group=1, dim=80, rotated=32, block=32, scheme=DCA, k=24, window=96),
    "odd-angles": Setting((300, 41), 2, group=6, dim=48, rotated=24, k=200),
    "capped": Setting((700,), 2, group=5, dim=256, rotated=128, block=128, k=300, window=130, softcap=0.5),
    "no-sinks": Setting((200, 31), 1, group=2, dim=32, rotated=32, k=150, window=17, sinks=0),
}  # fmt: skip


CASES = [("half-blocks", *each) for each in EXAMPLES] + [
    (name, *each) for name in SETTINGS if name != "half-blocks" for each in (("INT8", False), ("NUQ3", True))
]


def packed_case(rng, name, family, calibrated):
    """(case, keys) of `coded`: the case's memory is packed, and its keys and values are what is read of them."""
    packed = PackedCase(rng, SETTINGS[name], family, 5, calibrated)
    case = packed.case
    case.kv, case.holder = packed.seen, packed  # which has the tables that the memory reads
    case, keys = coded(case)
    for i in range(len(case.query)):
        reference._write(i, case.memory, case.batch, case.key[i], case.value[i])
    case.memory = packed.memory_of(case.memory.shape, packed.stored, case.codes)
    case.batch = packed.batch
    return case, keys


@pytest.mark.parametrize(("name", "family", "calibrated"), CASES)
def test_attends_keys_as_packed_blocks_and_pages_of_rows_hold_them(rng, name, family, calibrated):
    check(*packed_case(rng, name, family, calibrated), 8e-3)


def test_is_the_same_to_the_bit_by_any_number_of_threads(rng):
    case, keys = packed_case(rng, "dual-chunks", "NUQ3", True)
    alone = run(case, keys)
    with always_parallel():
        together = run(case, keys)
    for left, right in zip(alone, together, strict=True):
        np.testing.assert_array_equal(left.lse, right.lse)
    np.testing.assert_array_equal(alone[0].positions, together[0].positions)
    np.testing.assert_array_equal(alone[1].out, together[1].out)
