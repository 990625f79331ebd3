"""What a step of one session brought, as the coordinator learns it."""

from __future__ import annotations

from moorage.workers.gpu.engine.output import SegmentOutput
from moorage.workers.gpu.engine.rounds import SessionStep, finish_step
from moorage.workers.spec import SampledToken, SegmentResult


def result_of(step: SessionStep, output: SegmentOutput) -> SegmentResult:
    """What a step brought, which moves its session on."""
    stats = step.session.stats
    first, *others = finish_step(step, output.drawn) or (None,)
    return SegmentResult(
        step.segment.session_id,
        token_id=first.token_id if first else None,
        logprob=first.logprob if first else None,
        top_logprobs=first.top_logprobs if first else (),
        following=tuple(
            SampledToken(each.token_id, each.logprob, each.top_logprobs) for each in others if each
        ),
        num_drafted=len(step.verified),
        prompt_logprobs=output.scored.logprobs,
        prompt_likeliest=output.scored.likeliest,
        num_selected_blocks=stats.num_selected / max(stats.num_selections, 1),
        num_selected_keys=stats.num_keys / max(stats.num_selections, 1),
        recall=sum(stats.recall) / len(stats.recall) if stats.recall else None,
        recall_by_head=tuple(stats.recall),
        block_masses=stats.block_masses,
    )
