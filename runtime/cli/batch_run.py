"""Asks the prompts of a batch, several at a time, and writes each answer as soon as it is whole."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any, cast

from moorage.client import AsyncClient, GenerateOptions, MoorageError, Unavailable
from moorage.runtime.cli.batch_files import AnswerFile, BatchPrompt, Id, PromptFile


async def run_batch(
    client: AsyncClient,
    prompts: PromptFile,
    answers: AnswerFile,
    options: GenerateOptions,
    *,
    raw: bool,
    at_once: int,
    on_answer: Callable[[bool], None],
) -> int:
    """Asks every prompt that has no answer, and returns how many failed. `on_answer` is told whether each has one.

    An option of a line stands above that of the command. A prompt that is refused has its error in the file. Raises
    Unavailable when the server is gone; what was answered is written.
    """
    models = await client.models()
    as_message = models[0].has_chat_template and not raw
    left: Iterator[Id] = iter([one for one in prompts.ids if one not in answers.answered])
    failed = 0

    async def ask_in_turn() -> None:
        nonlocal failed
        for prompt_id in left:
            one = prompts.read(prompt_id)
            answer = await _answer(client, one, options, as_message=as_message)
            answers.add(answer)
            failed += "error" in answer
            on_answer("error" not in answer)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(at_once):
                group.create_task(ask_in_turn())
    except* Unavailable as errors:
        raise errors.exceptions[0] from None
    return failed


async def _answer(
    client: AsyncClient, one: BatchPrompt, options: GenerateOptions, *, as_message: bool
) -> dict[str, Any]:
    asked = cast("GenerateOptions", {**options, **one.options})
    try:
        async with client.generate(one.prompt(as_message=as_message), **asked) as stream:
            result = await stream.result()
    except Unavailable:
        raise
    except MoorageError as error:
        return {"id": one.id, "error": {"type": type(error).__name__, "message": str(error)}}
    answer = {
        "id": one.id,
        "text": result.text,
        "finish_reason": result.finish_reason,
        "token_ids": result.token_ids,
        "logprobs": result.logprobs,
        "usage": asdict(result.usage),
    }
    return answer | ({"top_logprobs": result.top_logprobs} if any(result.top_logprobs) else {})
