"""Attention of one layer: prefill, decode, by the device or by the host."""
