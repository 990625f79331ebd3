"""One bit for each channel of a sealed block's keys, and a scale for each key: what selection of single keys reads.

The mean of the block's values stands for the values of keys that are not attended.
"""

from moorage.kernels.key_codes.cpu import encode_keys
from moorage.kernels.key_codes.sizes import TOKENS, centre_bytes, code_bytes, num_planes

__all__ = ["TOKENS", "centre_bytes", "code_bytes", "encode_keys", "num_planes"]
