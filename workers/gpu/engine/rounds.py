"""Rounds of a session that drafts tokens by its selection and verifies them in one exact pass (speculative decoding).

The plan of each step asks for the session's next token, from the last token that is known. Where the last tokens
have occurred before, what followed them then is the draft (prompt lookup decoding), and the round is the step that
verifies it. Other rounds take several steps: one for each drafted token, in which none is known yet, then the one
that verifies.

Tokens are drawn with noise that is a function of the seed and of the token's number, so a draft is accepted where the
exact logits give the same token: greedy or not, the answer is the one that full attention gives.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from moorage.kernels.decode_layer.plan import NEVER
from moorage.workers.gpu.engine.batch import DecodeStep
from moorage.workers.gpu.engine.session_state import WorkerSession
from moorage.workers.gpu.model.sampler import Sampled, SampleRow
from moorage.workers.spec import KvLayout, RopeSpec, Segment

LEAST_LOGPROB = math.log(0.3)
"""Below it a greedy draft ends: what the selection is not sure of, full attention often draws otherwise."""


@dataclass(frozen=True, slots=True)
class SessionStep:
    """What one session does in a step."""

    segment: Segment
    """The tokens that go through the model."""
    session: WorkerSession
    decode: tuple[DecodeStep, ...] = ()
    """One for each generated token among them; none while the prompt is prefilled."""
    drafts: bool = False
    """Whether its next token is a draft."""
    verified: tuple[int, ...] = ()
    """Drafted tokens that it verifies: the last ones of `segment`."""

    @property
    def sample_rows(self) -> list[SampleRow]:
        """What is drawn from the logits of its last tokens."""
        session, segment = self.session, self.segment
        if not segment.sample:
            return []
        held: list[Sequence[int]] = [self.verified[:i] for i in range(max(1, len(self.decode)))]
        if self.drafts:
            held = [session.drafted]
        return [
            SampleRow(
                session.sampling,
                session.num_generated + len(before),
                session.counts.plus(before) if session.counts is not None and before else session.counts,
                segment.allowed,
            )
            for before in held
        ]


def decode_step(segment: Segment, session: WorkerSession, rope: RopeSpec, layout: KvLayout) -> SessionStep:
    """The step in which a session goes on from its last known token, that of `segment`."""
    block_size = layout.block_size
    if not session.memory.verify:
        return SessionStep(segment, session, (DecodeStep.of(session, block_size),))
    if not session.drafted:
        room = _room(session, rope, layout) if segment.sample else 0
        if found := session.known.following(room):
            return _verifying(segment, session, found, block_size)
        session.draft_length = min(room, session.memory.verify) if _selects(session) else 0
    drafted = session.drafted
    if len(drafted) < session.draft_length:
        newest = replace(segment, start=session.num_tokens, token_ids=(drafted or segment.token_ids)[-1:])
        return SessionStep(newest, session, (DecodeStep.of(session, block_size),), drafts=True)
    return _verifying(segment, session, tuple(drafted), block_size)


def _verifying(
    segment: Segment, session: WorkerSession, drafted: tuple[int, ...], block_size: int
) -> SessionStep:
    """The step that verifies some tokens behind the last known one."""
    tokens = (*segment.token_ids, *drafted)
    places = range(segment.start, segment.start + len(tokens))
    steps = tuple(DecodeStep.at(session, place, block_size, exact=True) for place in places)
    return SessionStep(replace(segment, token_ids=tokens), session, steps, verified=drafted)


def finish_step(step: SessionStep, drawn: Sequence[Sampled]) -> Sequence[Sampled]:
    """Moves the session on by what a step has computed; returns the tokens that are known now."""
    session, drafted = step.session, step.verified
    if step.drafts:
        session.num_tokens += 1
        session.drafted.append(drawn[0].token_id)
        if session.sampling.is_greedy and drawn[0].logprob < LEAST_LOGPROB:
            session.draft_length = len(session.drafted)
        return ()
    known = drawn
    if drafted:
        accepted = 0
        while accepted < len(drafted) and drafted[accepted] == drawn[accepted].token_id:
            accepted += 1
        known = drawn[: accepted + 1]
        if session.counts is not None:
            session.counts = session.counts.plus(drafted[:accepted])
        session.known.put(step.segment.start + 1, drafted[:accepted])
        session.num_tokens = step.segment.start + len(known)
        if session.drafted:
            session.drafted = []
            _forget_selections(session)
    else:
        session.num_tokens += len(step.segment.token_ids)
    session.num_generated += len(known)
    return known


def _selects(session: WorkerSession) -> bool:
    """Whether a step that drafts would attend less than one that does not."""
    return session.num_tokens >= session.memory.selection.dense_until


def _room(session: WorkerSession, rope: RopeSpec, layout: KvLayout) -> int:
    """Tokens to draft from the session's end on, at most: none where its selection attends everything."""
    memory = session.memory
    if not memory.selection.selects:
        return 0
    # One token comes of the last verified row itself, and the last token of all needs no row.
    most = min(memory.most_drafted, session.max_tokens - session.num_tokens - 2)
    if layout.is_packed:
        # A rejected draft in the next block would have packed rows that are needed again.
        most = min(most, layout.block_size - 1 - session.num_tokens % layout.block_size)
    return max(0, min(most, _steps_alike(session, rope, most + 1) - 1))


def _steps_alike(session: WorkerSession, rope: RopeSpec, most: int) -> int:
    """How many steps from now on, at most `most`, have the same rotary embedding."""
    positions = session.memory.positions
    own = positions.rope or rope
    if not (positions.mscale or own.follows_length):
        return most
    for ahead in range(1, most):
        if (session.decode_index + ahead) % positions.rebase_every == 0:
            return ahead
        if own.switches_at(session.num_tokens + 1 + ahead):
            return ahead
    return most


def _forget_selections(session: WorkerSession) -> None:
    """Selections that were made at positions whose tokens are gone are not used again."""
    session.selections.clear()
    if session.layer_selections is not None:
        session.layer_selections.made_at[:] = NEVER
