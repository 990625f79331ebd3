"""The forward pass of a step, and its repetition where the device has no memory left or one session fails."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from itertools import accumulate

import torch

from moorage.workers.errors import Internal, NotFinite
from moorage.workers.gpu.attention.step_attention import Part, StepAttention
from moorage.workers.gpu.engine.batch import Failures, SessionGuard, no_memory
from moorage.workers.gpu.engine.out_of_memory import is_out_of_memory
from moorage.workers.gpu.engine.output import OutputStage
from moorage.workers.gpu.engine.results import result_of
from moorage.workers.gpu.engine.rounds import SessionStep
from moorage.workers.gpu.model.decoder import Decoder
from moorage.workers.spec import SegmentResult


class ForwardPass:
    """Runs a step of several sessions through the model.

    A failure of one session's attention fails that session alone; the step goes on for the others.
    """

    def __init__(
        self,
        decoder: Decoder,
        attention: StepAttention,
        output: OutputStage,
        free_memory: Callable[[], bool],
    ) -> None:
        """`free_memory` frees device memory, or says that there is none to free."""
        self._decoder, self._attention, self._output = decoder, attention, output
        self._free_memory = free_memory

    def run(self, steps: Sequence[SessionStep], failed: Failures) -> list[SegmentResult]:
        """The results of all sessions but the failed ones.

        Where the device has no memory left, the pass runs again with fewer slots or fewer segments. Where it raises
        what nobody foresees, each session goes alone, so that only those fail which raise again.
        """
        return [result for some in self._passes(steps) for result in self._pass(some, failed)]

    def _passes(self, steps: Sequence[SessionStep]) -> list[list[SessionStep]]:
        """Passes of a step, one where it can be.

        Positions that are verified go through the prepared pass of few tokens, which generates tokens: by another one
        they would be rounded in another way, and the tokens would not always be those of full attention.
        """
        graphs, found = self._decoder.graphs, [list(steps)]
        if graphs is None or graphs.takes(_count(steps)):
            return found
        found = [[step for step in steps if len(step.decode) < 2]]
        for step in steps:
            if len(step.decode) < 2:
                continue
            if found[-1] and not graphs.takes(_count([*found[-1], step])):
                found.append([])
            found[-1].append(step)
        return found

    def _pass(self, steps: Sequence[SessionStep], failed: Failures) -> list[SegmentResult]:
        while steps:
            try:
                return self._once(steps, failed)
            except Exception as error:
                if not is_out_of_memory(error):
                    if len(steps) == 1:
                        raise
                    return self._each_alone(steps, error, failed)
            # What the failed pass held is free only now.
            steps = self._fewer(steps, failed)
        return []

    def _fewer(self, steps: Sequence[SessionStep], failed: Failures) -> list[SessionStep]:
        """The sessions of the next pass after one without memory; the longest fails where nothing could be freed."""
        left = [step for step in steps if step.segment.session_id not in failed]
        freed = self._free_memory()
        longest = max(left, key=lambda step: len(step.segment.token_ids), default=None)
        for step in left:
            if not step.session.repeatable or (step is longest and not freed):
                failed[step.segment.session_id] = no_memory(step.segment.session_id)
        return [step for step in left if step.segment.session_id not in failed]

    def _each_alone(
        self, steps: Sequence[SessionStep], first: Exception, failed: Failures
    ) -> list[SegmentResult]:
        """Runs each session alone after a pass over all raised `first`; raises that when none gets through."""
        results: list[SegmentResult] = []
        for step in steps:
            session_id = step.segment.session_id
            if session_id in failed:
                continue
            if not step.session.repeatable:
                failed[session_id] = _unexpected(first)
                continue
            try:
                results += self._once((step,), failed)
            except Exception as error:  # noqa: BLE001  it ends this session alone
                failed[session_id] = no_memory(session_id) if is_out_of_memory(error) else _unexpected(error)
        if not results:
            raise first
        return results

    def _once(self, steps: Sequence[SessionStep], failed: Failures) -> list[SegmentResult]:
        token_ids = torch.tensor([t for step in steps for t in step.segment.token_ids], dtype=torch.long)
        bounds = list(accumulate((len(step.segment.token_ids) for step in steps), initial=0))
        parts = [
            Part(step.session, slice(begin, end), step.decode)
            for step, begin, end in zip(steps, bounds, bounds[1:], strict=False)
        ]
        # A session that is alone leaves it to the whole pass to run again.
        metadata = self._attention.prepare(
            parts, SessionGuard(failed, self._free_memory if len(steps) > 1 else None)
        )

        def attend(layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            return self._attention.forward(layer, q, k, v, metadata)

        hidden = self._decoder.forward(token_ids.to(self._decoder.device), attend)
        self._attention.finish(metadata)
        outputs = self._output(hidden, steps)
        self._attention.commit(metadata)
        results = []
        for step, output in zip(steps, outputs, strict=True):
            if step.segment.session_id in failed:
                continue
            if output.error is not None:
                failed[step.segment.session_id] = NotFinite(output.error)
                continue
            results.append(result_of(step, output))
        return results


def _count(steps: Sequence[SessionStep]) -> int:
    return sum(len(step.segment.token_ids) for step in steps)


def _unexpected(error: Exception) -> Internal:
    return Internal(f"{type(error).__name__}: {error}", "".join(traceback.format_exception(error)))
