"""One bit for each channel of a sealed block's keys, and a scale for each key: what choosing single keys reads."""

from moorage.kernels.key_codes.cpu import encode_keys
from moorage.kernels.key_codes.sizes import TOKENS, WORD_BITS, code_bytes, code_words

__all__ = ["TOKENS", "WORD_BITS", "code_bytes", "code_words", "encode_keys"]
