"""Exact logits of single keys and attention over them, for keys that were brought to the device."""

from moorage.kernels.key_attention.gpu import attend_keys, key_logits

__all__ = ["attend_keys", "key_logits"]
