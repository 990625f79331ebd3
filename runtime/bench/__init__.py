"""Benchmarks: each compares side by side, in one process, by medians over interleaved runs."""
