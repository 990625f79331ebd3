"""How much of the error in one channel of a key the channels that follow make up for.

A key's error changes the loss by its product with the gradient. Over many tokens the mean of that product's square is
a quadratic form, the Fisher information of the head. Given the errors in the first channels, the form is least for
certain errors in the others: coding aims at these, as GPTQ (ICLR 2023) does with weights.
"""

from __future__ import annotations

import torch
from torch import Tensor

DAMPING = 0.05
"""Share of each channel's own information that is added to it, since the text is only a sample."""
_LEAST = 1e-6
"""What is added to channels without information, as a share of the mean."""
_MOST = 65504.0
"""The largest fp16, which files hold."""


def feedback_shares(gradients: Tensor) -> Tensor:
    """Shares [Hkv, D, D] from the gradients of the loss by keys [W, T, Hkv, D]; see `LayerQuantizer.key_feedback`."""
    rows = gradients.flatten(0, 1).transpose(0, 1).float()
    products = (rows.mT @ rows).double()
    own = products.diagonal(dim1=1, dim2=2)
    added = DAMPING * own + _LEAST * own.mean(1, keepdim=True)
    if not (own.mean(1) > 0).all():
        return torch.zeros_like(products, dtype=torch.float32)
    inverse = torch.linalg.inv(products + torch.diag_embed(added))
    factor = torch.linalg.cholesky(inverse, upper=True)
    shares: Tensor = factor / factor.diagonal(dim1=1, dim2=2).unsqueeze(2)
    return shares.triu(1).clamp_(-_MOST, _MOST).float()
