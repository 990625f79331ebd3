"""`runtime generate --batch`: answers a file of prompts, with progress, and goes on where it was stopped."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from moorage.client import AsyncClient, GenerateOptions, Unavailable
from moorage.runtime.cli.batch_files import AnswerFile, PromptFile
from moorage.runtime.cli.batch_run import run_batch
from moorage.runtime.cli.output import print_note
from moorage.workers.counting import counted
from moorage.workers.errors import InvalidRequest, MoorageError

_LINE_EVERY = 10
"""Answers after which a log gets one line of progress."""


@dataclass(frozen=True, slots=True)
class Batch:
    """What `--batch` and the options beside it say."""

    prompts: Path
    output: Path
    raw: bool
    at_once: int


def answer_batch(batch: Batch, address: str, options: GenerateOptions, timeout_s: float | None) -> None:
    """Answers all prompts that have no answer in the output. Raises MoorageError when some failed."""
    prompts = PromptFile(batch.prompts)
    if not prompts.ids:
        raise InvalidRequest(
            f'{batch.prompts}: has no prompts; write {{"id": …, "prompt": "…"}} on each line'
        )
    with AnswerFile(batch.output) as answers:
        before = len(answers.answered.intersection(prompts.ids))
        if before:
            print_note(f"{before} of {counted(len(prompts.ids), 'prompt')} had been answered before")

        async def run() -> int:
            async with AsyncClient(address, timeout_s) as client:
                with _progress(len(prompts.ids), before) as notify:
                    return await run_batch(
                        client,
                        prompts,
                        answers,
                        options,
                        raw=batch.raw,
                        at_once=batch.at_once,
                        on_answer=notify,
                    )

        try:
            failed = asyncio.run(run())
        except Unavailable as error:
            raise Unavailable(f"{error}; the same command goes on where this one ended") from None
    if failed:
        raise MoorageError(
            f"{failed} of {counted(len(prompts.ids), 'prompt')} failed; {batch.output} says why, and the same "
            "command asks them again"
        )


@contextmanager
def _progress(total: int, before: int) -> Iterator[Callable[[bool], None]]:
    """Yields a function that is told of each answer, and whether it is one: a bar, or lines of a log."""
    console = Console(stderr=True)
    if not console.is_terminal:
        done = before

        def tell(_: bool) -> None:
            nonlocal done
            done += 1
            if done % _LINE_EVERY == 0 or done == total:
                print_note(f"{done} of {counted(total, 'prompt')} answered")

        yield tell
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task, failed = bar.add_task("prompts", total=total, completed=before), 0

        def advance(answered: bool) -> None:
            nonlocal failed
            failed += not answered
            bar.update(task, advance=1, description=f"prompts, {failed} failed" if failed else "prompts")

        yield advance
