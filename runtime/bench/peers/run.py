"""`bench peers`: the same model in llama.cpp, transformers and Moorage, one engine working at a time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from moorage.runtime.bench.measure import Sample, installed
from moorage.runtime.bench.peers.dequantised import write_dequantised
from moorage.runtime.bench.peers.figures import Agreement, Figures, make_figures
from moorage.runtime.bench.peers.peer import PACKAGES, Kind, PeerSpec
from moorage.runtime.bench.peers.process import Parts, PeerProcess
from moorage.runtime.config.units import format_tokens
from moorage.workers.errors import InvalidRequest

WARM_STEPS = 2
"""Generated tokens of each round that are not counted."""
WARM_PROMPT = 512
"""Tokens of the prompt that every engine processes before the first round."""
LONG_PREFILL_S = 30.0
"""A prompt that took longer is prefilled once."""
ANSWER_TOKENS = 32
Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class PeerPlan:
    """What is measured."""

    model: Path
    """A GGUF file, or a directory in the Hugging Face layout."""
    gguf: Path | None
    """The same model for llama.cpp, where `model` is a directory."""
    lengths: tuple[int, ...]
    prefill_context: int
    """Longest prompt that is prefilled; beyond it the past is made up."""
    transformers_context: int
    """Longest context of transformers."""
    threads: int
    rounds: int
    steps: int
    """Generated tokens of each round that are counted."""
    weights: tuple[str, ...]
    preset: str
    overrides: tuple[str, ...] = ()

    @property
    def room(self) -> int:
        """Tokens that are generated after a context, under two presets."""
        return 2 * self.rounds * (self.steps + WARM_STEPS)


def peer_specs(plan: PeerPlan, dtype: str = "") -> tuple[list[PeerSpec], list[str]]:
    """The engines that can run, each computing in `dtype`, and a line for each that can not."""
    notes, specs = [], []
    gguf = plan.gguf or (plan.model if plan.model.is_file() else None)
    models: dict[Kind, Path | None] = {"llama.cpp": gguf, "transformers": plan.model}
    for kind, model in models.items():
        package, command = PACKAGES[kind]
        if not installed(package):
            notes.append(f"{kind} is not installed, so its rows are missing: {command}")
        elif kind == "transformers" and model is not None and model.is_file() and not installed("accelerate"):
            notes.append("transformers reads GGUF files with accelerate alone: pip install accelerate")
        elif model is None:
            notes.append(f"{kind} reads GGUF files alone, so its rows are missing: name one with --gguf")
        else:
            specs.append(PeerSpec(kind, kind, model, plan.threads, dtype=dtype))
    modes = tuple(dict.fromkeys(("full", plan.preset)))
    longest = max(*plan.lengths, WARM_PROMPT) + plan.room
    for weights in plan.weights:
        overrides = (f"model.weights={weights}", *plan.overrides)
        spec = PeerSpec(
            f"moorage {weights}", "moorage", plan.model, plan.threads, modes, overrides, dtype, longest
        )
        specs.append(spec)
    return specs, notes


def answer_specs(plan: PeerPlan, folder: Path) -> list[PeerSpec]:
    """The engines whose answers are compared, computing in float32.

    llama.cpp is asked twice: with its file, and with the same values in float32, in a copy that lies in `folder`.
    """
    specs = []
    for spec in peer_specs(plan, "float32")[0]:
        specs.append(spec)
        if spec.kind == "llama.cpp":
            copy = folder / "float32.gguf"
            write_dequantised(spec.model, copy)
            specs.append(replace(spec, name="llama.cpp float32", model=copy))
    return specs


def row_name(spec: PeerSpec, mode: str) -> str:
    """The name of an engine under one of its presets."""
    return f"{spec.name} {mode}".rstrip()


class PeerRun:
    """The processes of all engines, which wait while one of them works."""

    def __init__(self, plan: PeerPlan, specs: Sequence[PeerSpec], say: Say) -> None:
        self._plan, self._say = plan, say
        self._stack = ExitStack()
        self._processes: list[PeerProcess] = []
        for spec in specs:
            say(f"{spec.name}: loading {spec.model}")
            self._processes.append(self._stack.enter_context(PeerProcess(spec)))

    def __enter__(self) -> PeerRun:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def measure(self, context_tokens: int, prompt: Sequence[int]) -> list[Figures]:
        """Every engine at one length: in each round one prompt and some tokens of each, one engine after another."""
        plan = self._plan
        prefills: dict[str, list[Sample[Parts]]] = defaultdict(list)
        decodes: dict[str, list[Sample[Parts]]] = defaultdict(list)
        peaks: dict[str, int] = defaultdict(int)
        asked = [
            process
            for process in self._processes
            if process.spec.kind != "transformers" or context_tokens <= plan.transformers_context
        ]
        token: dict[str, int] = {}
        for number in range(plan.rounds):
            shift = number % len(asked)
            for process in asked[shift:] + asked[:shift]:
                name = process.spec.name
                self._say(f"{format_tokens(context_tokens)}, round {number + 1} of {plan.rounds}: {name}")
                token[name] = self._begin(process, context_tokens, prompt, prefills[name], token.get(name))
                for mode in process.spec.modes:
                    done = process.decode(token[name], plan.steps + WARM_STEPS, mode)
                    token[name] = done.token_id
                    decodes[row_name(process.spec, mode)] += done.taken[WARM_STEPS:]
                peaks[name] = max(peaks[name], process.peak_bytes())
        return [
            make_figures(
                row_name(process.spec, mode),
                context_tokens,
                prefills[process.spec.name],
                decodes[row_name(process.spec, mode)],
                peaks[process.spec.name],
            )
            for process in asked
            for mode in process.spec.modes
        ]

    def _begin(
        self,
        process: PeerProcess,
        context_tokens: int,
        prompt: Sequence[int],
        taken: list[Sample[Parts]],
        last: int | None,
    ) -> int:
        """A context of the length: prefilled anew while that is short, made up once where it is never prefilled.

        Otherwise the sequence goes on after the `last` token.
        """
        most = context_tokens + self._plan.room
        if context_tokens > self._plan.prefill_context:
            if last is None:
                process.fill(context_tokens, most)
                return prompt[0]
            return last
        if last is not None and taken[-1].seconds > LONG_PREFILL_S:
            return last
        done = process.prefill(prompt[:context_tokens], most)
        taken.append(done.taken)
        return done.token_id

    def warm_up(self, prompt: Sequence[int]) -> None:
        """Some tokens in every engine, since first calls allocate and compile."""
        for process in self._processes:
            token = process.prefill(prompt, len(prompt) + len(process.spec.modes) * WARM_STEPS).token_id
            for mode in process.spec.modes:
                token = process.decode(token, WARM_STEPS, mode).token_id

    def agreements(self, prompts: Sequence[Sequence[int]]) -> Iterator[Agreement]:
        """Greedy answers of Moorage, exact, beside those of each peer."""
        answers: dict[str, list[list[int]]] = {}
        for process in self._processes:
            self._say(f"{process.spec.name}: {len(prompts)} answers")
            mode = process.spec.modes[0]
            answers[process.spec.name] = [process.answer(ids, ANSWER_TOKENS, mode) for ids in prompts]
        kinds: Mapping[str, str] = {process.spec.name: process.spec.kind for process in self._processes}
        for name, own in answers.items():
            for peer, other in answers.items():
                if kinds[name] == "moorage" and kinds[peer] != "moorage":
                    yield agreement(name, peer, own, other)


def agreement(
    name: str, peer: str, own: Sequence[Sequence[int]], other: Sequence[Sequence[int]]
) -> Agreement:
    """Counts the answers that are the same."""
    equal = tuple(_equal_tokens(one, two) for one, two in zip(own, other, strict=True))
    identical = sum(count == len(answer) for count, answer in zip(equal, own, strict=True))
    return Agreement(name, peer, identical, len(own), ANSWER_TOKENS, equal)


def check_lengths(plan: PeerPlan) -> None:
    """Raises InvalidRequest for lengths too short to have a prompt."""
    if min(plan.lengths) < 2:
        raise InvalidRequest(f"--lengths: {min(plan.lengths)} is too short; give at least 2 tokens")


def _equal_tokens(one: Sequence[int], two: Sequence[int]) -> int:
    for count, (left, right) in enumerate(zip(one, two, strict=False)):
        if left != right:
            return count
    return min(len(one), len(two))
