"""From the grammar of a request to the state of its answer in it."""

from __future__ import annotations

from dataclasses import replace

from moorage.runtime.api.engine import Engine
from moorage.runtime.serving.protocol import GenerateParams


async def with_guide(engine: Engine, params: GenerateParams) -> GenerateParams:
    """The same parameters with a fresh guide, where they have a grammar. Raises InvalidRequest for what is none."""
    if params.grammar is None:
        return params
    return replace(params, guide=await engine.grammars.guide(params.grammar))
