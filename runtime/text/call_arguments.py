"""Arguments of calls as chat templates use them: most take an object, and some join a text to them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


class CallArguments(dict[str, Any]):
    """An object that is its JSON where a template adds it to a text, as those of DeepSeek do."""

    def __add__(self, other: str) -> str:
        return self._json() + other

    def __radd__(self, other: str) -> str:
        return other + self._json()

    def _json(self) -> str:
        return json.dumps(self, ensure_ascii=False)


def with_arguments(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """A message whose calls have such arguments."""
    calls = message.get("tool_calls")
    if not isinstance(calls, list | tuple):
        return message
    return {**message, "tool_calls": [_with_arguments(call) for call in calls]}


def _with_arguments(call: Any) -> Any:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("arguments"), Mapping):
        return call
    arguments = CallArguments(function["arguments"])
    return {**call, "function": {**function, "arguments": arguments}}
