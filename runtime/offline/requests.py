"""Prompts and options of a script, as the parameters of a request. They are judged as those of clients are."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, TypeGuard, cast

import numpy as np

from moorage.client.messages import grammar_text
from moorage.client.types import GRAMMARS, GenerateOptions, Prompt
from moorage.runtime.api import validation
from moorage.runtime.api.setting_texts import setting_texts
from moorage.runtime.serving import protocol
from moorage.runtime.text.grammar import Grammar
from moorage.runtime.text.tokenizer import TextTokenizer
from moorage.workers.errors import InvalidRequest
from moorage.workers.token_ids import TokenIds

_SAMPLING = frozenset(field.name for field in fields(protocol.SamplingOptions))


def is_one_prompt(prompts: Prompt | Sequence[Prompt]) -> TypeGuard[Prompt]:
    """Whether the argument is one prompt and not a list of them: text, token ids, or chat messages."""
    if isinstance(prompts, str | bytes):
        return True
    return len(prompts) > 0 and not isinstance(prompts[0], str | bytes | list | tuple)


def request_params(
    token_ids: Sequence[int], options: GenerateOptions, served: protocol.ModelInfo
) -> protocol.GenerateParams:
    """The parameters of one generation. Raises TypeError for an unknown option, InvalidRequest for a bad value."""
    unknown = sorted(options.keys() - GenerateOptions.__annotations__.keys())
    if unknown:
        known = ", ".join(GenerateOptions.__annotations__)
        raise TypeError(f"a pipeline has no option {unknown[0]!r}; it has {known}")
    given = {name: value for name, value in options.items() if value is not None}
    sampling = {name: given.pop(name) for name in _SAMPLING & given.keys()}
    given["stop"] = tuple(cast("Sequence[str]", given.get("stop", ())))
    grammars = [Grammar(name, grammar_text(name, given.pop(name))) for name in GRAMMARS if name in given]
    if len(grammars) > 1:
        raise InvalidRequest(f"{grammars[1].kind}: is given beside another grammar; give one")
    given["memory"] = setting_texts(given.get("memory", {}))
    asked = protocol.GenerateOptions(
        **cast("dict[str, Any]", given), sampling=_sampling(sampling), grammar=next(iter(grammars), None)
    )
    params = validation.generate_params(asked, served, secrets.token_hex(6))
    validation.token_ids(token_ids, served.vocab_size)
    return replace(params, prompt=token_ids)


def encode_prompt(
    tokenizer: TextTokenizer | None,
    prompt: Prompt,
    *,
    raw: bool,
    parse_special: bool = False,
) -> Sequence[int]:
    """Token ids of a prompt. A text is a user's message where the model has a chat template and `raw` is not set.

    Raises InvalidRequest for text without a tokenizer, and for messages without a chat template.
    """
    if isinstance(prompt, bytes):
        prompt = _decoded(prompt)
    if isinstance(prompt, str) or (len(prompt) > 0 and isinstance(prompt[0], Mapping)):
        if tokenizer is None:
            raise InvalidRequest("the model has no tokenizer.json; give token ids instead of text")
        if not isinstance(prompt, str):
            messages = cast("Sequence[Mapping[str, str]]", prompt)
            return tokenizer.encode_chat(messages, parse_special=parse_special)
        if tokenizer.has_chat_template and not raw:
            return tokenizer.encode_chat([{"role": "user", "content": prompt}], parse_special=parse_special)
        return tokenizer.encode(prompt)
    return _token_ids(prompt)


def _sampling(given: Mapping[str, object]) -> protocol.SamplingOptions:
    for name, value in given.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InvalidRequest(f"{name}: {str(value)[:40]!r} is no number; give one")
    return protocol.SamplingOptions(**cast("dict[str, Any]", given))


def _token_ids(prompt: object) -> TokenIds:
    try:
        ids = np.asarray(prompt)
        if ids.ndim == 1 and (ids.dtype.kind in "iu" or not ids.size):
            return TokenIds(ids.tolist())
    except (ValueError, OverflowError):
        pass
    raise InvalidRequest("prompt: must be text, token ids from 0 up, or chat messages; check its type")


def _decoded(text: bytes) -> str:
    try:
        return text.decode()
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"prompt: is not valid UTF-8 ({error.reason}); give UTF-8 text") from None
