"""Prompts of sessions that select single keys: their execution blocks select blocks by the means of keys."""

from __future__ import annotations

import pytest
import torch

from moorage.workers.spec import AnchorSpace, AnchorType, MemorySpec, Positions
from tests.engine_driver import Driver, memory
from tests.tiny_models import TinyModel, build_tiny_checkpoint
from tests.workers.gpu.engine.test_engine import prompt_of

BLOCKS = memory(topk=3, execution_block=32, sinks=16, window=24)
KEYS = BLOCKS.replace(topk=None, topk_keys=12, prefill_blocks=3)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    return build_tiny_checkpoint("llama3", tmp_path_factory.mktemp("llama3"))


def logprobs(
    model: TinyModel, anchor_type: AnchorType, axes: MemorySpec, chunks: tuple[int, ...]
) -> torch.Tensor:
    clamped = axes.positions.scheme is Positions.CLAMPED
    driver = Driver(
        model.directory,
        model.spec,
        block_size=16,
        anchor_type=anchor_type,
        anchor_space=AnchorSpace.PLAIN if clamped else AnchorSpace.ROTATED,
    )
    return driver.prompt_logprobs(prompt_of(model, 300), axes, chunks)


@pytest.mark.parametrize("positions", [Positions.ROPE, Positions.CLAMPED])
def test_a_prompt_selects_the_blocks_that_means_select(llama: TinyModel, positions: Positions) -> None:
    """The codes of keys come with the mean of each block, which is what BLOCK_MEAN anchors are."""
    axes = [each.replace(scheme=positions) for each in (BLOCKS, KEYS)]
    want = logprobs(llama, AnchorType.BLOCK_MEAN, axes[0], (96,))
    got = logprobs(llama, AnchorType.KEY_CODES, axes[1], (96,))
    torch.testing.assert_close(got, want, atol=1e-3, rtol=1e-3)
    exact = logprobs(llama, AnchorType.KEY_CODES, axes[1].replace(prefill_blocks=0, execution_block=0), (96,))
    assert not torch.allclose(got, exact, atol=1e-2)


def test_where_chunks_end_does_not_matter(llama: TinyModel) -> None:
    want = logprobs(llama, AnchorType.KEY_CODES, KEYS, (300,))
    torch.testing.assert_close(
        logprobs(llama, AnchorType.KEY_CODES, KEYS, (64, 96, 32)), want, atol=1e-4, rtol=1e-4
    )
