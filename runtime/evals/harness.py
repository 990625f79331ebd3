"""A target as a model of lm-evaluation-harness, so that its tasks run on a cluster or an engine in this process."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lm_eval.api.model import LM

from moorage.runtime.evals.asking import encode_long
from moorage.runtime.evals.targets import Target
from moorage.workers.counting import counted
from moorage.workers.errors import InvalidRequest

_DEFAULT_TOKENS = 256


class HarnessModel(LM):  # type: ignore[misc]
    """Greedy generation and log-likelihoods for the harness; requests come as its `Instance`s."""

    def __init__(self, target: Target) -> None:
        super().__init__()
        self._target = target

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:  # noqa: ARG002
        """Continuations, each cut before the first of its stop strings."""
        return [self._continue(*request.args) for request in requests]

    def loglikelihood(
        self,
        requests: Sequence[Any],
        disable_tqdm: bool = False,  # noqa: ARG002
    ) -> list[tuple[float, bool]]:
        """(log-probability of the continuation, whether it is the greedy one) after each context."""
        return [self._score(*request.args) for request in requests]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:  # noqa: ARG002
        """Log-probability of each text; one that is longer than the target's room is scored in pieces of it."""
        return [self._roll(request.args[0]) for request in requests]

    def _continue(self, context: str, options: dict[str, Any]) -> str:
        if options.get("do_sample") and options.get("temperature", 0.0) > 0:
            raise InvalidRequest(
                "lm-evaluation-harness: the task samples, which is not offered here; only greedy is"
            )
        most = int(options.get("max_gen_toks", _DEFAULT_TOKENS))
        prompt = [*self._target.prefix(), *encode_long(self._target, context)]
        if len(prompt) + most > self._target.room:
            raise InvalidRequest(
                f"lm-evaluation-harness: a prompt has {counted(len(prompt), 'token')}, with its answer "
                f"{len(prompt) + most}, and the model has room for {self._target.room}"
            )
        text = self._target.generate(prompt, most).text
        until = options.get("until") or []
        stops = [until] if isinstance(until, str) else until
        return text[: min((text.find(stop) for stop in stops if stop and stop in text), default=len(text))]

    def _score(self, context: str, continuation: str) -> tuple[float, bool]:
        stem = context.rstrip()
        context, continuation = stem, context[len(stem) :] + continuation
        before = [*self._target.prefix(), *encode_long(self._target, context)]
        after = encode_long(self._target, context + continuation)[len(before) - len(self._target.prefix()) :]
        if not before or not after:
            raise InvalidRequest("lm-evaluation-harness: a request without context or without continuation")
        logprobs = self._target.score([*before, *after])[-len(after) :]
        said = self._target.generate(before, len(after)).text
        return sum(logprobs), said == self._target.decode(after)

    def _roll(self, text: str) -> float:
        prefix, ids = self._target.prefix(), encode_long(self._target, text)
        size = self._target.room - len(prefix)
        scored = [
            value
            for start in range(0, len(ids), size)
            for value in self._target.score([*prefix, *ids[start : start + size]])[max(0, len(prefix) - 1) :]
        ]
        return sum(scored)
