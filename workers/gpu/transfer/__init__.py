"""Blocks on their way between the stores and the device, and which of them stay there."""
