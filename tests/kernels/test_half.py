from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numba import njit

from moorage.kernels.half import from_storage, narrow, to_storage, widen


@njit
def widened(stored, out):
    for i in range(len(stored)):
        out[i] = widen(stored[i])


@njit
def narrowed(values, out):
    for i in range(len(values)):
        out[i] = narrow(values[i], out[i])


def test_every_half_widens_exactly():
    bits = np.arange(2**16, dtype=np.uint16)
    out = np.zeros(len(bits), np.float32)
    widened(bits, out)
    np.testing.assert_array_equal(out, bits.view(np.float16).astype(np.float32))
    np.testing.assert_array_equal(out, from_storage(bits))


@given(st.lists(st.floats(width=32), min_size=1))
def test_narrow_rounds_as_numpy_does(values):
    array = np.array(values, np.float32)
    with np.errstate(over="ignore"):
        expected = array.astype(np.float16)
    out = np.zeros(len(array), np.uint16)
    narrowed(array, out)
    np.testing.assert_array_equal(out.view(np.float16), expected)
    np.testing.assert_array_equal(to_storage(array, True).view(np.float16), expected)


def test_float32_storage_passes_through(rng):
    array = rng.standard_normal(100).astype(np.float32)
    out = np.zeros_like(array)
    widened(array, out)
    np.testing.assert_array_equal(out, array)
    narrowed(array, out)
    np.testing.assert_array_equal(out, array)
    np.testing.assert_array_equal(from_storage(to_storage(array, False)), array)


@pytest.mark.parametrize("loop", [widened, narrowed])
def test_conversion_needs_a_storage_type(loop):
    with pytest.raises(Exception, match=r"(?i)invalid use|No implementation|resolution"):
        loop(np.zeros(3, np.int64), np.zeros(3, np.int64))


def test_conversion_is_one_instruction_per_vector():
    import llvmlite.binding as llvm

    if not llvm.get_host_cpu_features().get("f16c"):
        pytest.skip("this CPU has no fp16 conversion")
    widened(np.zeros(64, np.uint16), np.zeros(64, np.float32))
    assembly = "".join(widened.inspect_asm().values())
    assert "vcvtph2ps" in assembly
