"""The `runtime` command. Importing it loads no torch, ray or numba; a command is read when asked for."""

from moorage.runtime.cli.app import main

__all__ = ["main"]
