"""Asking a server the samples of an evaluation, and what comes out: trials, and rows of them by length."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from moorage.client import Client, GenerateResult
from moorage.runtime.evals.passkey import ANSWER_TOKENS, PasskeySample, is_correct


class ServerCoder:
    """The server's own tokenizer, so that an evaluation needs no copy of the model."""

    def __init__(self, client: Client) -> None:
        self._client = client

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`, without special tokens."""
        return self._client.tokenize(text, add_special_tokens=False)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of `token_ids`; of none, the empty text."""
        return self._client.detokenize(token_ids) if token_ids else ""

    def prefix(self) -> list[int]:
        """What the model expects before a text, such as BOS."""
        text = "text"
        plain, whole = self.encode(text), self._client.tokenize(text)
        starts = range(len(whole) - len(plain) + 1)
        start = next((at for at in starts if whole[at : at + len(plain)] == plain), 0)
        return whole[:start]


@dataclass(frozen=True, slots=True)
class Oracle:
    """Another way to answer the same prompt: a server's address, and a preset there or its own."""

    label: str
    address: str
    preset: str | None = None


@dataclass(frozen=True, slots=True)
class Trial:
    """One sample and what the server made of it."""

    sample: PasskeySample
    length: int
    """The length asked for: the prompt and room for its answer."""
    output: str
    correct: bool
    seconds: float
    recall: float | None
    budget_tokens: int


@dataclass(frozen=True, slots=True)
class Row:
    """The trials of one length, and of one depth where depths were asked for. `seconds` is the mean of a sample."""

    length: int
    depth: float | None
    accuracy: float
    samples: int
    recall: float | None
    budget_tokens: int
    """The most tokens attended per layer and decode step; 0 stands for all."""
    seconds: float

    def as_json(self) -> dict[str, Any]:
        """The row by name; without `depth` where depths were not told apart."""
        return {key: value for key, value in asdict(self).items() if key != "depth" or value is not None}


@dataclass(frozen=True, slots=True)
class Miss:
    """A missed trial, and which oracles answer the same prompt correctly."""

    trial: Trial
    found_by: dict[str, bool]

    def as_json(self) -> dict[str, Any]:
        """The miss by name, without the prompt."""
        sample = self.trial.sample
        return {
            "length": self.trial.length,
            "depth": sample.depth,
            "answer": sample.answer,
            "output": self.trial.output,
            "found_by": self.found_by,
        }


def run_trials(
    client: Client, samples: Sequence[PasskeySample], length: int, preset: str | None = None
) -> Iterator[Trial]:
    """Asks one sample after the other. Raises what the client raises."""
    for sample in samples:
        start_s = time.monotonic()
        result = _ask(client, sample, preset)
        yield Trial(
            sample=sample,
            length=length,
            output=result.text,
            correct=is_correct(result.text, sample.answer),
            seconds=time.monotonic() - start_s,
            recall=result.usage.recall,
            budget_tokens=result.usage.budget_tokens,
        )


def row_of(trials: Sequence[Trial], depth: float | None = None) -> Row:
    """The summary of at least one trial of the same length."""
    recalls = [trial.recall for trial in trials if trial.recall is not None]
    budgets = [trial.budget_tokens for trial in trials]
    return Row(
        length=trials[0].length,
        depth=depth,
        accuracy=fmean(trial.correct for trial in trials),
        samples=len(trials),
        recall=fmean(recalls) if recalls else None,
        budget_tokens=max(budgets) if all(budgets) else 0,
        seconds=fmean(trial.seconds for trial in trials),
    )


def explain_misses(trials: Sequence[Trial], oracles: Sequence[Oracle]) -> list[Miss]:
    """Asks every oracle each missed prompt.

    An oracle that attends all keys and finds the answer tells that the choice of blocks missed it (budget or
    anchor); a larger budget as second oracle parts the two. One that does not find it either speaks for the model,
    though weakly far beyond the trained length, where attending everything is harder than attending the right blocks.
    """
    missed = [trial for trial in trials if not trial.correct]
    found: list[dict[str, bool]] = [{} for _ in missed]
    for oracle in oracles if missed else ():
        with Client(oracle.address) as client:
            for trial, found_by in zip(missed, found, strict=True):
                output = _ask(client, trial.sample, oracle.preset).text
                found_by[oracle.label] = is_correct(output, trial.sample.answer)
    return [Miss(trial, found_by) for trial, found_by in zip(missed, found, strict=True)]


def _ask(client: Client, sample: PasskeySample, preset: str | None) -> GenerateResult:
    return client.generate(
        sample.prompt_ids, max_new_tokens=ANSWER_TOKENS, temperature=0.0, ignore_eos=True, preset=preset
    ).result()
