"""Calibration of quantizers for the NUQ formats: gradients, levels, and files of other makers."""
