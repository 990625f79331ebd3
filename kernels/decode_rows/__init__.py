"""One layer of decode for successive positions of one session: rows written, then every key read once for all."""

from moorage.kernels.decode_rows.cpu import decode_rows

__all__ = ["decode_rows"]
