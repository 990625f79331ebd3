"""Whole blocks of keys and values in few bits. Sizes need no Numba, so nothing is imported here."""
