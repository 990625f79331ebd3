from __future__ import annotations

import pytest
import torch

from moorage.workers.gpu.engine.compute_type import WORTH, attention_dtype, bfloat16_speed

CPU = torch.device("cpu")


@pytest.mark.parametrize("weights", [torch.float32, torch.float16])
def test_a_cpu_attends_in_float32(weights):
    assert attention_dtype(weights, CPU) == torch.float32


def test_a_gpu_attends_in_the_type_of_the_weights():
    assert attention_dtype(torch.float16, torch.device("cuda")) == torch.float16


def test_a_cpu_attends_in_bfloat16_where_that_is_faster():
    is_faster = bfloat16_speed(torch.get_num_threads()) >= WORTH
    assert attention_dtype(torch.bfloat16, CPU) == (torch.bfloat16 if is_faster else torch.float32)
