"""Single keys selected by their codes and attended, for all sessions of a layer of decode at once."""

from moorage.kernels.decode_keys.cpu import KeyLists, decode_keys
from moorage.kernels.decode_keys.records import KeySelections

__all__ = ["KeyLists", "KeySelections", "decode_keys"]
