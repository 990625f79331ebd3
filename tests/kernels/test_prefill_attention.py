from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from moorage.kernels.prefill_attention import attend_dense, carries, cpu, flash, gpu, reference

FOREVER = 1 << 62
SHAPES = [  # KV heads, group, queries, keys, head size
    (1, 1, 1, 1, 16),
    (1, 1, 0, 5, 16),
    (2, 3, 5, 0, 16),
    (2, 2, 7, 9, 32),
    (1, 8, 33, 31, 64),
    (3, 5, 16, 40, 96),
    (2, 4, 1, 65, 128),
    (1, 7, 20, 64, 256),
]
BANDS = [  # band, distance of the first query from the first key
    (None, 0),
    ((0, FOREVER), 0),
    ((0, FOREVER), 13),
    ((0, FOREVER), -5),
    ((0, FOREVER), 1000),
    ((0, 4), 10),
    ((6, FOREVER), 10),
    ((-3, 3), 4),
    ((5, 5), 4),
]
FORMS = [cpu.attend_dense, flash.attend_dense, gpu.attend_dense]


def make_case(shape, dtype=torch.float32):
    num_kv_heads, group, num_rows, num_keys, dim = shape
    q = 3 * torch.randn(num_kv_heads * group, num_rows, dim)
    k, v = torch.randn(2, num_kv_heads, num_keys, dim)
    return q.to(dtype), k.to(dtype), v.to(dtype), dim**-0.5


def check(attend, case, band, start, tolerance, softcap=0.0):
    place = band, 1_000_000 + start, 1_000_000, softcap
    out, lse = attend(*case, *place)
    expected_out, expected_lse = reference.attend_dense(*case, *place)
    assert out.dtype == lse.dtype == torch.float32
    torch.testing.assert_close(out.double(), expected_out, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(lse.double(), expected_lse, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("attend", FORMS, ids=["cpu", "flash", "torch"])
@pytest.mark.parametrize(("band", "start"), BANDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_matches_reference(attend, shape, band, start):
    check(attend, make_case(shape), band, start, 2e-5)


@pytest.mark.parametrize("attend", FORMS, ids=["cpu", "flash", "torch"])
@pytest.mark.parametrize(("band", "start"), BANDS)
@pytest.mark.parametrize("softcap", [0.5, 30.0])
def test_logits_are_capped(attend, band, start, softcap):
    q, k, v, scale = make_case((2, 3, 17, 40, 32))
    check(attend, (20 * q, k, v, scale), band, start, 5e-5, softcap)


@pytest.mark.parametrize("attend", FORMS, ids=["cpu", "flash", "torch"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("band", "start"), BANDS[:3])
def test_low_precision_inputs(attend, dtype, band, start):
    check(attend, make_case((2, 2, 33, 40, 64), dtype), band, start, 2e-2)


@pytest.mark.parametrize(("band", "start"), [*BANDS[1:4], ((0, 20), 10), ((25, FOREVER), 30)])
def test_tiles_of_rows_join(monkeypatch, band, start):
    case = make_case((2, 2, 50, 64, 32))
    monkeypatch.setattr(flash, "TILE_ROWS", 16)
    check(flash.attend_dense, case, band, start, 2e-5)
    monkeypatch.setattr(flash, "MASK_BYTES", 64 * 4 * 7)
    check(flash.attend_dense, case, band, start, 2e-5)
    monkeypatch.setattr(gpu, "LOGIT_BYTES", 64 * 4 * 4 * 7)
    check(gpu.attend_dense, case, band, start, 2e-5)


def test_views_are_as_good_as_copies():
    q, k = torch.randn(9, 4, 32).transpose(0, 1), torch.randn(12, 2, 32).transpose(0, 1)
    v = torch.randn(2, 20, 32)[:, 5:17]
    for band in (None, (0, FOREVER)):
        views = attend_dense(q, k, v, 0.2, band, 3)
        copies = attend_dense(q.contiguous(), k.contiguous(), v.contiguous(), 0.2, band, 3)
        for view, copy in zip(views, copies, strict=True):
            torch.testing.assert_close(view, copy, rtol=1e-5, atol=1e-6)


def test_hidden_keys_may_be_nan():
    q, k, v, scale = make_case((2, 2, 6, 30, 32))
    out, lse = attend_dense(q, k[:, :10], v[:, :10], scale, (0, FOREVER), 4)
    k[:, 10:], v[:, 10:] = torch.nan, torch.nan
    longer = attend_dense(q, k, v, scale, (0, FOREVER), 4)
    torch.testing.assert_close(longer, (out, lse))


def test_refuses_what_does_not_fit():
    q, k, v, scale = make_case((2, 2, 3, 4, 16))
    for wrong in ((q[:3], k, v), (q, k, v[:, 1:]), (q[..., 8:], k, v), (q, k.double(), v), (q, k, v.half())):
        with pytest.raises(ValueError, match="q, k, v"):
            attend_dense(*wrong, scale)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("cuts", [(0, 40), (0, 7, 40), (0, 16, 17, 40)])
def test_what_is_held_of_other_keys_is_carried_on(dtype, cuts):
    q, k, v, scale = make_case((2, 3, 50, 40, 32), dtype)
    if not carries(q, scale):
        pytest.skip("this CPU attends this type by torch")
    held = None
    for first, end in pairwise(cuts):
        part = k[:, first:end], v[:, first:end], scale, (0, FOREVER), 0, first
        held = attend_dense(q, *part, held=held)
    whole = reference.attend_dense(q, k, v, scale, (0, FOREVER), 0, 0)
    for found, expected in zip(held, whole, strict=True):
        torch.testing.assert_close(found.double(), expected, rtol=2e-2, atol=2e-2)
        if dtype == torch.float32:
            torch.testing.assert_close(found.double(), expected, rtol=2e-5, atol=2e-5)
