"""A toy engine that answers a prompt as a function tells it: evaluations meet a perfect, a wrong or an odd model."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable

from moorage.runtime.serving.protocol import Event, Finished, GenerateParams, Token
from tests.toy_engine import ToyEngine


class AnsweringEngine(ToyEngine):
    """`answer` maps the prompt's text to what is said; it may be replaced between requests."""

    def __init__(self, answer: Callable[[str], str] = lambda _prompt: "") -> None:
        super().__init__(max_seq_len=1 << 20)
        self.answer = answer

    async def generate(self, params: GenerateParams) -> AsyncGenerator[Event]:
        self.seen.append(params)
        said = self.answer(self.tokenizer.decode(params.prompt)).encode()[: params.max_new_tokens]
        text = said.decode(errors="ignore")
        for index, token in enumerate(said):
            yield Token(index, token, text if index == 0 else "", -0.5)
        yield Finished("length", self._usage(len(params.prompt), max(1, len(said))))
