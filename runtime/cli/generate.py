"""`runtime generate`: continue a prompt."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from moorage.client import Client, GenerateResult
from moorage.runtime.cli import options as o
from moorage.runtime.cli.app import app, examples
from moorage.runtime.cli.asked import Asked
from moorage.runtime.cli.batch import Batch, answer_batch
from moorage.runtime.cli.output import print_note
from moorage.runtime.cli.streaming import print_json_line, quiet, stream_text, summary


@app.command(
    epilog=examples(
        'runtime generate "Once upon a time" --max-new-tokens 64',
        "runtime generate --prompt-file book.txt --temperature 0.7 --top-p 0.9",
        'runtime generate "Why is the sky blue?" --system "Answer in one sentence."',
        "runtime generate --messages talk.json",
        "cat book.txt | runtime generate --json",
        "runtime generate --batch prompts.jsonl --output answers.jsonl",
    )
)
def generate(
    prompt: o.PromptText = None,
    prompt_file: o.PromptFile = None,
    messages_file: Annotated[
        Path | None,
        typer.Option(
            "--messages",
            help='Read chat messages from a file: a JSON list of {"role": …, "content": …}.',
            exists=True,
            dir_okay=False,
        ),
    ] = None,
    token_ids_file: o.TokenIdsFile = None,
    system: Annotated[
        str | None, typer.Option(metavar="TEXT", help="A system message before the prompt, for a chat model.")
    ] = None,
    raw: Annotated[
        bool,
        typer.Option(
            "--raw",
            help="Continue the text as it is, also where the model has a chat template. Special tokens that are "
            "spelled in it are then read as tokens.",
        ),
    ] = False,
    parse_special: Annotated[
        bool,
        typer.Option(
            "--parse-special",
            help="Read special tokens that are spelled in messages as tokens. Without it they stay plain text.",
        ),
    ] = False,
    address: o.Address = None,
    max_new_tokens: o.MaxNewTokens = None,
    temperature: o.Temperature = None,
    top_k: o.TopK = None,
    top_p: o.TopP = None,
    min_p: o.MinP = None,
    repetition_penalty: o.RepetitionPenalty = None,
    presence_penalty: o.PresencePenalty = None,
    frequency_penalty: o.FrequencyPenalty = None,
    seed: o.Seed = None,
    stop: o.Stop = None,
    ignore_eos: o.IgnoreEos = False,
    preset: o.Preset = None,
    memory: o.Memory = None,
    session: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Keep the KV under this name and go on from what it shares."),
    ] = None,
    num_logprobs: Annotated[
        int | None, typer.Option("--logprobs", help="Alternatives beside each token, in the JSON.")
    ] = None,
    json_schema: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="The answer is JSON of the schema in this file.", exists=True, dir_okay=False
        ),
    ] = None,
    regex: Annotated[
        str | None, typer.Option(metavar="TEXT", help="The answer matches this expression as a whole.")
    ] = None,
    timeout_s: o.Timeout = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object instead of the text.")
    ] = False,
    batch_file: Annotated[
        Path | None,
        typer.Option(
            "--batch",
            help="Answer every line of a file: a JSON object with prompt, messages or token_ids, an id, and options "
            "of its own by their names in the SDK.",
            exists=True,
            dir_okay=False,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            help="Where the answers of --batch go, a JSON object a line. What it holds is not asked again.",
            dir_okay=False,
        ),
    ] = None,
    at_once: Annotated[
        int, typer.Option(help="Prompts of --batch that are asked at a time.", min=1, max=64)
    ] = 8,
) -> None:
    """Answer or continue a prompt; the text streams to stdout.

    A model with a chat template answers the text as a user's message, any other continues it.
    """
    asked = Asked(prompt, prompt_file, messages_file, token_ids_file, system, raw)
    asked.check()
    _check_batch(batch_file, output, asked)
    options = o.given(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        presence_penalty=presence_penalty,
        frequency_penalty=frequency_penalty,
        seed=seed,
        stop=stop,
        ignore_eos=ignore_eos,
        preset=preset,
        memory=o.memory_settings(memory),
        session=session,
        parse_special=parse_special,
        num_logprobs=num_logprobs,
        json_schema=None if json_schema is None else json_schema.read_text(encoding="utf-8"),
        regex=regex,
    )
    if batch_file is not None and output is not None:
        answer_batch(Batch(batch_file, output, raw, at_once), o.server_address(address), options, timeout_s)
        return
    with o.time_limit(timeout_s), Client(o.server_address(address), timeout_s) as client:
        stream = client.generate(asked.prompt(client), **options)
        if as_json:
            with stream:
                quiet(stream)
                print_json_line(result_json(stream.result()))
            return
        result = stream_text(stream)
    if sys.stderr.isatty():
        print_note(summary(result.usage))


def _check_batch(batch_file: Path | None, output: Path | None, asked: Asked) -> None:
    """Raises typer.BadParameter for half of a batch, or a prompt beside it."""
    if (batch_file is None) != (output is None):
        raise typer.BadParameter("give --batch and --output together")
    if batch_file is not None and asked != Asked(None, None, None, None, None, asked.raw):
        raise typer.BadParameter("--batch has its own prompts; give no other")


def result_json(result: GenerateResult) -> dict[str, Any]:
    """The JSON object of a generation."""
    value: dict[str, Any] = {
        "token_ids": result.token_ids,
        "text": result.text,
        "logprobs": result.logprobs,
        "finish_reason": result.finish_reason,
        "usage": asdict(result.usage),
    }
    if any(result.top_logprobs):
        value["top_logprobs"] = result.top_logprobs
    return value
