"""`bench prefill`: seconds of a prompt token by the length of what lies before it, exact and selected."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from statistics import median

from moorage.runtime.bench.measure import Sample, median_s, sample, undisturbed
from moorage.runtime.bench.pilot import FULL, SELECTED, Setup, open_pilot
from moorage.runtime.bench.report import Row
from moorage.runtime.bench.threads import use_threads
from moorage.runtime.bench.transformers_peer import CachedModel, fits
from moorage.workers.spec import StepResult

PARTS = {"linear": "linear", "select": "score", "gather": "gather", "attend": "attend", "append": "link"}
REFERENCE_TOKENS = 64 * 1024


def run_prefill(
    contexts: Sequence[int],
    chunk_tokens: int,
    rounds: int,
    setup: Setup,
    exact_tokens: int,
    peer_tokens: int,
) -> Iterator[Row]:
    """Seconds a token of one chunk behind each context: selected, exact as far as asked, and transformers.

    A chunk's own cost is the slope of a whole prefill at that length, so a cost that is constant here makes the
    whole linear.
    """
    use_threads(setup.threads)
    selected: dict[int, list[Sample[StepResult]]] = {context: [] for context in contexts}
    exact: dict[int, list[Sample[StepResult]]] = {
        context: [] for context in contexts if context <= exact_tokens
    }
    with open_pilot(contexts, chunk_tokens + 2, setup) as pilot:
        for _ in range(rounds + 1):
            for session_id, context in enumerate(contexts):
                selected[context].append(sample(partial(pilot.prefill, session_id, chunk_tokens, SELECTED)))
                if context in exact:
                    exact[context].append(sample(partial(pilot.prefill, session_id, chunk_tokens, FULL)))
        peer_contexts = [n for n in contexts if n <= peer_tokens and fits(pilot.spec, n)]
    peers = {context: _peer_s(context, chunk_tokens, rounds) for context in peer_contexts}
    own = {context: _token_s(results, chunk_tokens) for context, results in selected.items()}
    exact_s = {context: _token_s(results, chunk_tokens) for context, results in exact.items()}
    others = {"prefill-exact": exact_s, "transformers": peers}
    for context in contexts:
        ratio_to = {name: each[context] / own[context] for name, each in others.items() if context in each}
        if REFERENCE_TOKENS in own and context != REFERENCE_TOKENS:
            ratio_to = {"prefill-selected-64K": own[REFERENCE_TOKENS] / own[context]} | ratio_to
        yield Row("prefill-selected", own[context], context, setup.threads, ratio_to=ratio_to)
        yield from _part_rows(selected[context], context, chunk_tokens, setup.threads)
        for name, each in (("prefill-exact", exact_s), ("prefill-transformers", peers)):
            if context in each:
                yield Row(name, each[context], context, setup.threads)


def _part_rows(
    samples: Sequence[Sample[StepResult]], context: int, chunk_tokens: int, threads: int
) -> Iterator[Row]:
    """Seconds a token of each part of a selected prefill."""
    results = [taken.value for taken in undisturbed(samples[1:])]
    for part, shown in PARTS.items():
        part_s = median(r.part_s.get(part, 0.0) for r in results) / chunk_tokens
        yield Row(f"prefill-selected-{shown}", part_s, context, threads)


def _token_s(results: Sequence[Sample[StepResult]], chunk_tokens: int) -> float:
    return median_s(results[1:]) / chunk_tokens


def _peer_s(context: int, chunk_tokens: int, rounds: int) -> float:
    model = CachedModel.of_pilot(context)
    run = partial(model.prefill, chunk_tokens)
    return median_s([sample(run) for _ in range(rounds + 1)][1:]) / chunk_tokens
