"""A toy engine that reads its prompt: it finds pass keys it can see, and scores tokens by their place."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator
from dataclasses import replace

from moorage.runtime.serving.protocol import Event, Finished, GenerateParams, Token
from tests.toy_engine import ToyEngine

SIGHT_TOKENS = 300


class ReadingEngine(ToyEngine):
    """Finds the pass key in the last `SIGHT_TOKENS` of the prompt; anywhere under the preset `keen`."""

    def __init__(self, step_s: float = 0.0) -> None:
        super().__init__(max_seq_len=1 << 20, step_s=step_s)

    async def generate(self, params: GenerateParams) -> AsyncGenerator[Event]:
        self.seen.append(params)
        await asyncio.sleep(self.step_s)
        text = self.tokenizer.decode(params.prompt)
        keys = re.findall(r"pass key is (\d+)\.", text if params.preset == "keen" else text[-SIGHT_TOKENS:])
        answer = f" {keys[-1]}." if keys else " unknown"
        for index, character in enumerate(answer[: params.max_new_tokens]):
            yield Token(index, ord(character), character, -0.5)
        usage = self._usage(len(params.prompt), len(answer))
        yield Finished("length", replace(usage, budget_tokens=SIGHT_TOKENS, recall=0.5))
