"""Fields that a route has not: refused by name where they would change the answer, and else ignored, as by vLLM."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from moorage.workers.errors import InvalidRequest

_NONE: tuple[Any, ...] = (None, False, 0, "", [], {})
"""Values that say what is so without the field."""
_CHANGES_THE_ANSWER: dict[str, tuple[Any, ...]] = {
    "add_generation_prompt": (True,),
    "allowed_token_ids": (),
    "audio": (),
    "bad_words": (),
    "best_of": (1,),
    "chat_template": (),
    "continue_final_message": (),
    "documents": (),
    "dry_multiplier": (),
    "dynatemp_range": (),
    "function_call": ("none", "auto"),
    "functions": (),
    "include_stop_str_in_output": (),
    "length_penalty": (1,),
    "logit_bias": (),
    "min_tokens": (),
    "mirostat": (),
    "modalities": (["text"],),
    "prediction": (),
    "prompt_embeds": (),
    "prompt_logprobs": (),
    "skip_special_tokens": (True,),
    "stop_token_ids": (),
    "suffix": (),
    "truncate_prompt_tokens": (),
    "typical_p": (1,),
    "use_beam_search": (),
    "web_search_options": (),
    "xtc_probability": (),
}
"""Field -> values beside the ones of `_NONE` that change nothing. False is no such value where True is."""


def refuse_unsupported(extra: Mapping[str, Any] | None) -> None:
    """Raises InvalidRequest for the first field that would change the answer, if it were obeyed."""
    for field, value in (extra or {}).items():
        neutral = _CHANGES_THE_ANSWER.get(field)
        if neutral is None or value is None or _is_one_of(value, neutral):
            continue
        if True not in map(_only_bool, neutral) and _is_one_of(value, _NONE):
            continue
        raise InvalidRequest(f"{field}: is not supported here; leave it out")


def _is_one_of(value: Any, values: tuple[Any, ...]) -> bool:
    return any(value == other and isinstance(value, bool) == isinstance(other, bool) for other in values)


def _only_bool(value: Any) -> bool:
    return value is True
