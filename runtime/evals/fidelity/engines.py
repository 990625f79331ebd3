"""Engines for choices of memory, one after the other; choices with one store share theirs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from moorage.runtime.evals.fidelity.choices import Choice
from moorage.runtime.evals.local_engine import LocalEngine
from moorage.workers.sizes import slots_per_layer


def by_engine(choices: Sequence[Choice], room: int) -> Iterator[tuple[LocalEngine, list[Choice]]]:
    """Each engine with the choices that it serves, in their order; it is closed before the next is made.

    `room` is the most tokens of a session.
    """
    waiting = sorted(choices, key=_needs, reverse=True)
    order = {id(choice): place for place, choice in enumerate(choices)}
    while waiting:
        engine = LocalEngine(waiting[0].config, room, memory=waiting[0].memory)
        served = [choice for choice in waiting if engine.serves(choice.config, choice.memory)]
        waiting = [choice for choice in waiting if choice not in served]
        served.sort(key=lambda choice: order[id(choice)])
        try:
            yield engine, served
        finally:
            engine.close()


def _needs(choice: Choice) -> tuple[int, int]:
    """What of the device a choice needs: single keys, and slots."""
    slots = slots_per_layer(choice.memory, choice.layout, choice.config.memory.max_cached_block)
    return choice.memory.selection.topk_keys, slots
