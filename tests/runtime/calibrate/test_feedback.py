"""Feedback makes errors of channels cancel where the loss sees them together."""

from __future__ import annotations

import torch

from moorage.runtime.calibrate.feedback import feedback_shares

WINDOWS, TOKENS, HEADS, DIM = 2, 400, 3, 12


def rounded(keys: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
    """Whole numbers for keys [N, Hkv, D], channel by channel, as blocks are coded."""
    wanted = keys.clone()
    for d in range(DIM):
        error = wanted[..., d] - wanted[..., d].round()
        wanted[..., d + 1 :] -= error[..., None] * shares[:, d, d + 1 :]
    return wanted.round()


def cost(keys: torch.Tensor, shares: torch.Tensor, gradients: torch.Tensor) -> torch.Tensor:
    """Of each head: the squared products of the keys' errors with each of the gradients [N, Hkv, D]."""
    errors = rounded(keys, shares) - keys
    return torch.einsum("nhd,mhd->nmh", errors, gradients).square().mean((0, 1))


def test_errors_cost_less_under_gradients_that_were_not_seen() -> None:
    directions = torch.randn(HEADS, 3, DIM)

    def drawn() -> torch.Tensor:
        few = torch.einsum("wthk,hkd->wthd", torch.randn(WINDOWS, TOKENS, HEADS, 3), directions)
        return few + 0.1 * torch.randn(few.shape)

    shares, keys = feedback_shares(drawn()), 3 * torch.randn(200, HEADS, DIM)
    assert shares.shape == (HEADS, DIM, DIM)
    assert not shares.tril().any()
    unseen = drawn().flatten(0, 1)
    assert (cost(keys, shares, unseen) < 0.5 * cost(keys, torch.zeros_like(shares), unseen)).all()


def test_channels_that_the_loss_sees_apart_do_not_make_up_for_each_other() -> None:
    signs = torch.eye(DIM).repeat(TOKENS, 1)[:, None].expand(-1, HEADS, -1)
    shares = feedback_shares(signs[None] * torch.linspace(0.1, 3, DIM))
    torch.testing.assert_close(shares, torch.zeros(HEADS, DIM, DIM), atol=1e-5, rtol=0)


def test_without_gradients_there_is_none() -> None:
    assert not feedback_shares(torch.zeros(WINDOWS, TOKENS, HEADS, DIM)).any()
