"""Rounds of a session that drafts tokens by its selection and verifies them in one exact pass (speculative decoding).

The plan of each step asks for the session's next token, from the last token that is known. A round takes several
steps: one for each drafted token, in which none is known yet, then the one that verifies.

Tokens are drawn with noise that is a function of the seed and of the token's number, so a draft is accepted where the
exact logits give the same token: greedy or not, the answer is the one that full attention gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from moorage.kernels.decode_layer.plan import NEVER
from moorage.workers.gpu.engine.batch import DecodeStep
from moorage.workers.gpu.engine.session_state import WorkerSession
from moorage.workers.gpu.model.sampler import Sampled, SampleRow
from moorage.workers.spec import KvLayout, RopeSpec, Segment


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

    @property
    def sample_rows(self) -> list[SampleRow]:
        """What is drawn from the logits of its last tokens."""
        session, segment = self.session, self.segment
        if not segment.sample:
            return []
        drafted = session.drafted
        held = [drafted] if self.drafts else [drafted[:i] for i in range(max(1, len(self.decode)))]
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
        # Tokens that are given and not drawn are not drafted either.
        session.draft_length = _draft_length(session, rope) if segment.sample else 0
        if layout.is_packed:
            # A rejected draft in the next block would have packed rows that are needed again.
            left = block_size - 1 - session.num_tokens % block_size
            session.draft_length = min(session.draft_length, left)
    drafted = session.drafted
    if len(drafted) < session.draft_length:
        newest = replace(segment, start=session.num_tokens, token_ids=(drafted or segment.token_ids)[-1:])
        return SessionStep(newest, session, (DecodeStep.of(session, block_size),), drafts=True)
    tokens = (*segment.token_ids, *drafted)
    places = range(segment.start, segment.start + len(tokens))
    steps = tuple(DecodeStep.at(session, place, block_size, exact=True) for place in places)
    return SessionStep(replace(segment, token_ids=tokens), session, steps)


def finish_step(step: SessionStep, drawn: Sequence[Sampled]) -> Sequence[Sampled]:
    """Moves the session on by what a step has computed; returns the tokens that are known now."""
    session, drafted = step.session, step.session.drafted
    if step.drafts:
        session.num_tokens += 1
        drafted.append(drawn[0].token_id)
        return ()
    known = drawn
    if drafted:
        accepted = 0
        while accepted < len(drafted) and drafted[accepted] == drawn[accepted].token_id:
            accepted += 1
        known = drawn[: accepted + 1]
        if session.counts is not None:
            session.counts = session.counts.plus(drafted[:accepted])
        session.num_tokens, session.drafted = step.segment.start + len(known), []
        _forget_selections(session)
    else:
        session.num_tokens += len(step.segment.token_ids)
    session.num_generated += len(known)
    return known


def _draft_length(session: WorkerSession, rope: RopeSpec) -> int:
    """Tokens to draft from the session's end on: none where its selection would attend everything."""
    memory, selection = session.memory, session.memory.selection
    if not selection.selects or session.num_tokens < selection.dense_until:
        return 0
    # One token comes of the last verified row itself, and the last token of all needs no row.
    most = min(memory.verify, session.max_tokens - session.num_tokens - 2)
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
