"""What a session asks for, the plan of one step, and its result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from moorage.workers.errors import MoorageError
from moorage.workers.spec.idle_sessions import ForkSession, RestoreSession
from moorage.workers.spec.memory import MemorySpec
from moorage.workers.spec.sampling import SamplingSpec


@dataclass(frozen=True, slots=True)
class OpenSession:
    """Reserve room for a session before its first segment."""

    session_id: int
    max_tokens: int
    """Prompt and generated tokens together."""
    prompt_tokens: int
    memory: MemorySpec
    sampling: SamplingSpec
    first_shard: int = 0
    """The KV actor of its first stripe of blocks; the others follow in turn."""


@dataclass(frozen=True, slots=True)
class ContinueSession:
    """Reuse an open session for another prompt that shares its first `keep_tokens`."""

    session_id: int
    keep_tokens: int
    max_tokens: int
    """Prompt, kept tokens included, and generated tokens together."""
    prompt_tokens: int
    memory: MemorySpec
    sampling: SamplingSpec
    kept_ids: Sequence[int] = ()
    """Ids of the kept tokens, needed where `sampling` counts tokens, and of use where drafts are verified."""
    num_drawn: int = 0
    """Tokens of an answer that was cut and goes on here: the last of them are kept, and one has no K and V yet.
    `prompt_tokens` are then those before this answer."""


@dataclass(frozen=True, slots=True)
class Segment:
    """Consecutive tokens of one session that go through the model in one step."""

    session_id: int
    start: int
    """Position of the first token; equals the tokens already held."""
    token_ids: Sequence[int]
    sample: bool
    """Draw the next token from the last position."""
    prompt_logprobs: bool = False
    """Report the log-probability of every token of the segment, given those before it."""
    allowed: bytes | None = None
    """One bit for each token of the vocabulary, the lowest first: whether it may be drawn; None allows all."""


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One forward pass of a batch. Forks come first, then drops, then idles, restores, opens and
    the segments.

    Forks, drops and idles may come again, and of sessions that do not exist: a plan that failed is repeated in part.
    """

    step_id: int
    drops: tuple[int, ...] = ()
    opens: tuple[OpenSession | ContinueSession, ...] = ()
    segments: tuple[Segment, ...] = ()
    idles: tuple[int, ...] = ()
    """Sessions that no request uses now: their KV stays in DRAM, in the blocks that hold tokens, and nothing else."""
    forks: tuple[ForkSession, ...] = ()
    restores: tuple[RestoreSession, ...] = ()


@dataclass(frozen=True, slots=True)
class SampledToken:
    """A token that follows another one in the result of the same step."""

    token_id: int
    logprob: float
    top_logprobs: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class SegmentResult:
    """What one segment brought.

    A session that verifies drafts (`MemorySpec.verify`) brings no token in the steps that draft, and several in the
    step that verifies: its next segment begins with the last of them.
    """

    session_id: int
    token_id: int | None = None
    logprob: float | None = None
    top_logprobs: tuple[tuple[int, float], ...] = ()
    following: tuple[SampledToken, ...] = ()
    """Tokens after `token_id`: accepted drafts, of which `token_id` is the first, and the exact token after them."""
    num_drafted: int = 0
    """Drafted tokens that this step verified; as many as `following` were accepted."""
    prompt_logprobs: tuple[float, ...] = ()
    """One for each token of the segment but the prompt's first."""
    prompt_likeliest: tuple[tuple[int, float], ...] = ()
    """The likeliest token at each of these positions, and its log-probability."""
    num_selected_blocks: float = 0.0
    """Mean over layers of the distant blocks attended in this segment."""
    num_selected_keys: float = 0.0
    """Mean over layers of the single keys that each KV head attended beside sinks and window."""
    recall: float | None = None
    """Share of the exact attention mass on the attended keys, when sampled in this step; the mean over heads."""
    recall_by_head: tuple[float, ...] = ()
    """The same share of each sampled query head."""
    block_masses: bytes = b""
    """For a session that is inspected, in sampled steps: float32 shares of the exact attention mass, one a block."""
    error: MoorageError | None = None
    """Why this session alone failed; the others go on."""

    @property
    def tokens(self) -> tuple[SampledToken, ...]:
        """All new tokens, in order."""
        if self.token_id is None:
            return ()
        return (SampledToken(self.token_id, self.logprob or 0.0, self.top_logprobs), *self.following)


@dataclass(frozen=True, slots=True)
class StepResult:
    """What a step brought, and where its time went."""

    step_id: int
    segments: tuple[SegmentResult, ...]
    elapsed_s: float
    part_s: dict[str, float] = field(default_factory=dict)
    """Seconds by part: linear, select, gather, attend, sample."""
    cache_hits: int = 0
    cache_misses: int = 0
    link_bytes: int = 0  # of blocks that were copied from the stores to the device
