"""`bench decode`: seconds of a generated token by length of its context, with the same budget at each length."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import partial
from statistics import median

from moorage.runtime.bench.measure import WARM_ROUNDS, Sample, median_s, sample, undisturbed
from moorage.runtime.bench.pilot import Pilot, Setup, open_pilot
from moorage.runtime.bench.report import Row
from moorage.runtime.bench.threads import use_threads
from moorage.runtime.bench.transformers_peer import CachedModel, fits
from moorage.workers.spec import MemorySpec, StepResult

PARTS = {
    "linear": "linear",
    "select": "score",
    "gather": "gather",
    "attend": "attend",
    "append": "link",
    "sample": "sampling",
}
"""The engine's name of a part -> the row's."""
REFERENCE_TOKENS = 32 * 1024
Times = dict[int, list[Sample[StepResult]]]


def run_decode(
    contexts: Sequence[int], steps: int, full_steps: int, setup: Setup, peer_tokens: int
) -> Iterator[Row]:
    """Rows of every context: selected, its parts, full attention over the same cache, and transformers."""
    use_threads(setup.threads)
    room = steps + full_steps + 2 * WARM_ROUNDS + 8
    with open_pilot(contexts, room, setup) as pilot:
        chosen = _measure(pilot, contexts, steps, setup.selected)
        full = _measure(pilot, contexts, full_steps, setup.full)
        peer_contexts = [n for n in contexts if n <= peer_tokens and fits(pilot.spec, n)]
    peers = _peer_seconds(peer_contexts, full_steps)
    seconds = {context: median_s(results) for context, results in chosen.items()}
    for context in contexts:
        own, whole = seconds[context], median_s(full[context])
        ratio_to = {"decode-full": whole / own}
        if REFERENCE_TOKENS in seconds and context != REFERENCE_TOKENS:
            ratio_to["decode-32K"] = seconds[REFERENCE_TOKENS] / own
        if context in peers:
            ratio_to["transformers"] = peers[context] / own
        yield Row("decode", own, context, setup.threads, ratio_to=ratio_to)
        yield from part_rows("decode", context, setup.threads, chosen[context])
        yield Row("decode-full", whole, context, setup.threads)
        if context in peers:
            yield Row("decode-transformers", peers[context], context, setup.threads)


def _measure(pilot: Pilot, contexts: Sequence[int], steps: int, memory: MemorySpec) -> Times:
    """Times of steps under `memory`: a round is one step of each context."""
    times: Times = defaultdict(list)
    for _ in range(steps + WARM_ROUNDS):
        for session_id, context in enumerate(contexts):
            times[context].append(sample(partial(pilot.decode, (session_id,), memory)))
    return {context: taken[WARM_ROUNDS:] for context, taken in times.items()}


def part_rows(name: str, context: int, threads: int, samples: Sequence[Sample[StepResult]]) -> Iterator[Row]:
    """Median seconds of each part of a step."""
    results = [taken.value for taken in undisturbed(samples)]
    for part, shown in PARTS.items():
        yield Row(f"{name}-{shown}", median(r.part_s.get(part, 0.0) for r in results), context, threads)


def _peer_seconds(contexts: Sequence[int], steps: int) -> dict[int, float]:
    seconds = {}
    for context in contexts:
        model = CachedModel.of_pilot(context)
        seconds[context] = median_s([sample(model.decode) for _ in range(steps + WARM_ROUNDS)][WARM_ROUNDS:])
    return seconds
