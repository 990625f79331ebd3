from __future__ import annotations

import pytest
import torch

from moorage.workers.gpu.model.quantized import dequantize, quantize


@pytest.mark.parametrize(("bits", "steps"), [(4, 15), (8, 254)])
@pytest.mark.parametrize("group_size", [16, 32])
def test_weights_are_within_half_a_step(bits, steps, group_size):
    weight = torch.randn(40, 96)
    groups = weight.view(40, -1, group_size)
    span = groups.amax(-1) - groups.amin(-1) if bits == 4 else 2 * groups.abs().amax(-1)
    off = (dequantize(quantize(weight, bits, group_size)) - weight).view_as(groups).abs().amax(-1)
    assert (off <= span / steps * 0.55).all()


@pytest.mark.parametrize("bits", [4, 8])
def test_groups_of_one_value_are_exact(bits):
    weight = torch.cat([torch.zeros(16, 32), torch.full((16, 32), 0.5)])
    found = dequantize(quantize(weight, bits, 32))
    torch.testing.assert_close(found, weight, rtol=1e-3, atol=0)
