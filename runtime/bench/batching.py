"""`bench decode --batch`: seconds of a step in which several sessions of one length decode together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

from moorage.runtime.bench.decoding import part_rows
from moorage.runtime.bench.measure import WARM_ROUNDS, Sample, median_s, sample
from moorage.runtime.bench.pilot import Setup, open_pilot, pilot_bytes
from moorage.runtime.bench.report import Row
from moorage.runtime.bench.threads import use_threads
from moorage.runtime.config.units import format_bytes, format_tokens
from moorage.runtime.planning.host import read_host
from moorage.workers.counting import counted
from moorage.workers.errors import InvalidRequest
from moorage.workers.spec import StepResult


def run_batches(contexts: Sequence[int], batches: Sequence[int], steps: int, setup: Setup) -> Iterator[Row]:
    """Rows of each context and batch: a step and its parts, with all tokens/s against one session's.

    A ratio of 8 for 8 sessions would mean that seven of them cost nothing. Raises InvalidRequest for sessions whose
    KV does not fit this host's free memory.
    """
    for context in contexts:
        _check_memory(context, max(batches))
    use_threads(setup.threads)
    for context in contexts:
        yield from _rows(context, sorted({1, *batches}), steps, setup)


def _rows(context: int, batches: Sequence[int], steps: int, setup: Setup) -> Iterator[Row]:
    taken: dict[int, list[Sample[StepResult]]] = {batch: [] for batch in batches}
    rounds = steps + WARM_ROUNDS
    with open_pilot([context] * batches[-1], rounds * len(batches) + 1, setup) as pilot:
        for number in range(rounds):
            shift = number % len(batches)
            for batch in [*batches[shift:], *batches[:shift]]:
                taken[batch].append(sample(partial(pilot.decode, range(batch))))
    alone = median_s(taken[1][WARM_ROUNDS:])
    for batch in batches:
        samples = taken[batch][WARM_ROUNDS:]
        step_s, name = median_s(samples), f"decode-batch-{batch}"
        yield Row(
            name,
            step_s,
            context,
            setup.threads,
            ratio_to={} if batch == 1 else {"decode-batch-1": batch * alone / step_s},
            values={"tokens_per_s": batch / step_s},
        )
        yield from part_rows(name, context, setup.threads, samples)


def _check_memory(context: int, batch: int) -> None:
    need, have = pilot_bytes(context, batch), read_host().usable_bytes
    if need > have:
        raise InvalidRequest(
            f"{counted(batch, 'session')} of {format_tokens(context)} tokens take {format_bytes(need)} and this host "
            f"has {format_bytes(have)} free; lower --batch or --context"
        )
