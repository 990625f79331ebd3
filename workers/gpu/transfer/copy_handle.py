"""Copies that were begun, and may be complete or not."""

from __future__ import annotations

from typing import Protocol


class CopyHandle(Protocol):
    """Copies under way. Between their submission and `wait` their targets hold anything."""

    @property
    def pending(self) -> bool:
        """Whether `wait` is needed."""

    def wait(self) -> None:
        """Whatever is asked of the device after this sees the copied blocks. The host may go on at once."""


class Done:
    """Copies that are complete already."""

    pending = False

    def wait(self) -> None:
        """Nothing to wait for."""


DONE = Done()
