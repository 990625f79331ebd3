"""Texts and conversations over a real connection, with the text process behind it and a template of ill will."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from moorage.proto.v1 import moorage_pb2 as pb
from moorage.proto.v1.moorage_pb2_grpc import MoorageStub
from moorage.runtime.api.grpc.server import ApiServer
from moorage.runtime.text.limits import JobLimits
from moorage.runtime.text.process import TextProcess
from moorage.runtime.text.tokenizer import TextTokenizer
from tests.toy_engine import VOCAB_SIZE, ToyEngine

PILOT = Path(__file__).parents[4] / "deploy" / "models" / "moorage-pilot"
LOOPS = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
CHAT = [
    pb.GenerateRequest(parameters=pb.GenerateParameters(max_new_tokens=1)),
    pb.GenerateRequest(piece=pb.PromptPiece(message=pb.ChatMessage(role="user", content=b"a"))),
]


class TextEngine(ToyEngine):
    """The toy with a real tokenizer in a process of its own."""

    def __init__(self, text: TextProcess) -> None:
        super().__init__()
        self.text = text  # type: ignore[assignment]


@pytest.fixture
async def stub(tmp_path: Path) -> AsyncIterator[MoorageStub]:
    shutil.copy(PILOT / "tokenizer.json", tmp_path)
    (tmp_path / "chat_template.jinja").write_text(LOOPS)
    text, server = TextProcess(tmp_path, 32, JobLimits(base_s=1, patience=120)), ApiServer()
    await text.start()
    address = await server.start("127.0.0.1:0")
    await server.serve(TextEngine(text))
    async with grpc.aio.insecure_channel(address) as channel:
        yield MoorageStub(channel)
    await server.stop()
    await text.close()


async def refusal(call: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in call:
            pass
    return caught.value.code(), str(caught.value.details())


async def test_text_and_back(stub: MoorageStub) -> None:
    text = "Hello, naïve 日本語 🙂 " * 30_000
    want = TextTokenizer.load(PILOT).encode(text)
    assert len(want) > 200_000
    reply = await stub.Tokenize(pb.TokenizeRequest(text=text.encode()))
    assert list(reply.token_ids) == want
    known = [token_id for token_id in want if token_id < VOCAB_SIZE]
    back = await stub.Detokenize(pb.DetokenizeRequest(token_ids=known))
    assert back.text == TextTokenizer.load(PILOT).decode(known)


async def test_a_looping_template_is_refused_by_name_while_others_are_answered(stub: MoorageStub) -> None:
    chats = [asyncio.create_task(refusal(stub.Generate(CHAT))) for _ in range(4)]
    plain = [CHAT[0], pb.GenerateRequest(piece=pb.PromptPiece(text=b"Hello"))]
    replies = [reply async for reply in stub.Generate(plain)]
    assert replies[-1].WhichOneof("event") == "finished"
    assert not any(chat.done() for chat in chats)
    for code, details in await asyncio.gather(*chats):
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert details.startswith("chat_template.jinja: the chat template needs more than 1 s of CPU time")
