"""Exact logits of single keys, their order, and attention over the best: for keys that were brought to the device."""

from moorage.kernels.key_attention.gpu import attend_keys, key_logits, rank_keys

__all__ = ["attend_keys", "key_logits", "rank_keys"]
