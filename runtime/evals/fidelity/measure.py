"""Measures passages under several choices of memory, each against full attention over the same cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from moorage.runtime.evals.fidelity.choices import Choice, full_attention
from moorage.runtime.evals.fidelity.engines import by_engine
from moorage.runtime.evals.fidelity.forced_session import ForcedSession
from moorage.runtime.evals.fidelity.passages import Passage
from moorage.runtime.evals.local_engine import LocalEngine
from moorage.workers.spec import MemorySpec

if TYPE_CHECKING:
    import torch

    from moorage.workers.gpu.attention.mass_probe import MassSample

MOST_MEASURED = 12
"""Scored tokens of a passage whose attention mass is measured, spread evenly; each costs an exact pass."""
Float32 = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Said:
    """What a model said at the scored tokens of one passage, beside full attention; a value for each token."""

    task: str
    length: int
    passage: int
    choice: str
    budget: int | None
    index_bytes: float | None
    """Bytes of the index, for each key and KV head of a layer; None where nothing is selected."""
    kl: NDArray[np.float64]
    """[n] nats from full attention's distribution over the vocabulary."""
    agrees: NDArray[np.bool_]
    """[n] whether the likeliest token is full attention's."""
    hits: NDArray[np.bool_]
    """[n] whether it is the true token."""
    full_hits: NDArray[np.bool_]
    """[n] whether full attention's is."""
    margins: NDArray[np.float64]
    """[n] nats between full attention's two likeliest tokens: where they are few, its choice is nearly a tie."""
    mass: Float32 | None
    """[layers, m, Hq] share of the exact attention on the attended keys, of the m measured tokens; None where
    positions leave some keys no place."""
    source: Float32 | None
    """[layers, m, Hq] share on what the text copies; of full attention and copied text alone."""
    num_keys: float | None
    """Keys attended by a layer and head, the mean."""
    estimated: Float32 | None = None
    """[layers, m, Hq] `mass` as the steps themselves estimate it; None where single keys are not selected."""


def measure(
    choices: Sequence[Choice],
    make_passages: Callable[[LocalEngine], Sequence[Passage]],
    room: int,
    note: Callable[[Said], None] | None = None,
) -> Iterator[Said]:
    """Every passage under every choice; choices with one store share an engine and the prefill of each prompt.

    `room` is the most tokens of a passage. `note` is called with each result as it comes.
    """
    for engine, served in by_engine(choices, room):
        judge = _Judge(engine)
        for passage in make_passages(engine):
            for said in judge.compare(passage, served):
                if note is not None:
                    note(said)
                yield said


class _Judge:
    """Compares choices on one engine."""

    def __init__(self, engine: LocalEngine) -> None:
        from moorage.workers.gpu.attention.mass_probe import MassProbe

        self._session = ForcedSession(engine)
        self._probe = MassProbe(engine.exact, engine.layout.block_size)
        engine.observe(self._probe)

    def compare(self, passage: Passage, choices: Sequence[Choice]) -> Iterator[Said]:
        """Each choice over one prompt, then full attention, which needs no prefill of its own after them."""
        wanted = np.array(passage.wanted)
        runs = [self._run(passage, choice.memory, True) for choice in choices]
        truth, _ = self._run(passage, full_attention(choices[0].memory), False)
        likeliest_full = truth.argmax(-1).numpy()
        first_two = truth.double().topk(2).values
        margins = (first_two[:, 0] - first_two[:, 1]).numpy()
        for choice, (said, samples) in zip(choices, runs, strict=True):
            likeliest = said.argmax(-1).numpy()
            sources = [(each.layer, each.source) for each in samples if each.source is not None]
            guesses = [(each.layer, each.estimated) for each in samples if each.estimated is not None]
            yield Said(
                passage.task,
                passage.length,
                passage.index,
                choice.name,
                choice.budget,
                None if choice.attends_all else choice.index_bytes,
                divergence(truth, said),
                likeliest == likeliest_full,
                likeliest == wanted,
                likeliest_full == wanted,
                margins,
                _by_layer([(sample.layer, sample.mass) for sample in samples]),
                _by_layer(sources) if choice.attends_all else None,
                float(np.mean([sample.num_keys for sample in samples])) if samples else None,
                _by_layer(guesses),
            )

    def _run(
        self, passage: Passage, memory: MemorySpec, probed: bool
    ) -> tuple[torch.Tensor, list[MassSample]]:
        """Log-probabilities [n, vocab] before each scored token, on the host, and what the probe measured."""
        import torch

        self._session.prefill(passage.prompt, memory)
        probe, said = self._probe, []
        probe.samples, probe.source = [], passage.source
        first = len(passage.given) - 1
        every = -(-len(passage.wanted) // MOST_MEASURED)
        for place, token_id in enumerate(passage.fed, -first):
            probe.enabled = probed and place >= 0 and place % every == 0
            found = self._session.decode(token_id)
            if place >= 0:
                said.append(found.cpu())
        probe.enabled = False
        return torch.stack(said), probe.samples


def divergence(truth: torch.Tensor, said: torch.Tensor) -> NDArray[np.float64]:
    """[n] Kullback-Leibler divergence in nats of `said` from `truth`, log-probabilities [n, vocab]."""
    exact, other = truth.double().log_softmax(-1), said.double().log_softmax(-1)  # sum to 1 in fp64 too
    found: NDArray[np.float64] = (exact.exp() * (exact - other)).sum(-1).numpy()
    return found


def _by_layer(samples: Sequence[tuple[int, Float32]]) -> Float32 | None:
    """[layers, m, Hq] of samples of every layer in each of m steps; None without any."""
    if not samples:
        return None
    layers = sorted({layer for layer, _ in samples})
    return np.stack([np.stack([share for own, share in samples if own == layer]) for layer in layers])
