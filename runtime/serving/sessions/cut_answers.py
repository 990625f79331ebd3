"""Answers that were cut and go on: with the draw, the selection and the positions that they would have had. Pure.

Where a prompt is all that its named session holds, prompt and answer, and asks for the same draw with the same seed
and the same memory, the request goes on with the answer. Its newest token, which has no keys and values yet, goes
through the model as a generated token does, and the draw goes on with the seed's next noise. So the tokens are those
of an answer that was never cut, also after the session was saved and loaded. Any other prompt is read as `reuse.py`
says: what a server happens to hold makes no difference to a request that names no session.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from moorage.workers.spec import AnchorType, KvLayout, MemorySpec, Preselect, RopeSpec, SamplingSpec
from moorage.workers.token_ids import TokenIds


@dataclass(frozen=True, slots=True)
class Draw:
    """How the answer of a session was drawn, and its newest token, which has no keys and values yet."""

    sampling: SamplingSpec
    newest: int


class Stored(Protocol):
    """What a session holds. `StoredKv` is one."""

    @property
    def token_ids(self) -> TokenIds:
        """Tokens of the prompt, then of the answer, whose keys and values are stored."""

    @property
    def prompt_tokens(self) -> int:
        """How many of them are the prompt."""

    @property
    def memory(self) -> MemorySpec:
        """How they were made."""

    @property
    def draw(self) -> Draw | None:
        """How the answer was drawn."""


def draw_of(
    sampling: SamplingSpec, memory: MemorySpec, layout: KvLayout, generated: Sequence[int], has_windows: bool
) -> Draw | None:
    """What is kept of an answer so that it can go on; None where the worker does not keep all that its steps need.

    That is so for a selection that is made at the prompt or shared by several steps, rows of packed blocks, drafts,
    sliding windows, and positions that follow the length.
    """
    rope, selection = memory.positions.rope or RopeSpec(), memory.selection
    kept_state = selection.preselect is Preselect.PROMPT or layout.anchor_type is AnchorType.DYNAMIC
    shared = selection.selects and selection.token_step > 1
    moving = rope.follows_length or memory.positions.mscale
    if not generated or kept_state or shared or moving or memory.verify or layout.is_packed or has_windows:
        return None
    return Draw(_of_tokens(sampling), generated[-1])


def drawn_before(stored: Stored, prompt: TokenIds, memory: MemorySpec, sampling: SamplingSpec) -> int:
    """Tokens at the end of `prompt` that are the answer of a session, which goes on; 0 where it does not."""
    draw, held = stored.draw, stored.token_ids
    if draw is None or len(prompt) != len(held) + 1 or prompt[-1] != draw.newest:
        return 0
    if _of_tokens(sampling) != draw.sampling or memory.replace(inspect=False) != stored.memory:
        return 0
    return len(prompt) - stored.prompt_tokens if held.shared(prompt, len(held)) == len(held) else 0


def _of_tokens(sampling: SamplingSpec) -> SamplingSpec:
    """What of a draw decides on its tokens. A greedy one has no noise, and so no seed."""
    return replace(sampling, num_logprobs=0, seed=0 if sampling.is_greedy else sampling.seed)
