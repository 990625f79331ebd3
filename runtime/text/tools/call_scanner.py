"""Reads one call, a JSON object with a name and arguments, as its characters come."""

from __future__ import annotations

from collections.abc import Collection

from moorage.runtime.text.tools.strict_json import strict_json

NAME_KEYS = ("name",)
ARGUMENT_KEYS = ("arguments", "parameters")
OTHER_KEYS = ("id", "type")
"""Keys that models add; their values are not used."""
_SPACE = " \t\r\n"
_SCALAR_ENDS = _SPACE + ",}]"


class ValueSpan:
    """Finds where one JSON value ends. It counts brackets and strings, and does not judge what stands in them."""

    def __init__(self) -> None:
        self.text = ""
        self._depth, self._in_string, self._escaped = 0, False, False

    def push(self, character: str) -> bool | None:
        """True for the last character of the value, False for one before, None for one that follows the value."""
        if not self.text and character in _SPACE:
            return False
        if self._is_scalar and character in _SCALAR_ENDS:
            return None
        self.text += character
        if self._in_string:
            if self._escaped:
                self._escaped = False
            elif character == "\\":
                self._escaped = True
            elif character == '"':
                self._in_string = False
                return self._depth == 0
        elif character == '"':
            self._in_string = True
        elif character in "{[":
            self._depth += 1
        elif character in "}]":
            self._depth -= 1
            return self._depth == 0
        return False

    @property
    def _is_scalar(self) -> bool:
        return bool(self.text) and self._depth == 0 and not self._in_string


class CallScanner:
    """Reads `{"name": …, "arguments": {…}}`, or the arguments alone where the name is known already.

    The arguments are given out as the model writes them, once the name is known. With `names`, a call of any other
    name is none.
    """

    def __init__(self, names: Collection[str] | None = None, name: str | None = None) -> None:
        self._names = names
        self.name = name
        self.raw = ""
        """All that was read."""
        self.ended = self.failed = False
        self._arguments: str | None = None
        self._shown = 0
        self._key: str | None = None if name is None else ARGUMENT_KEYS[0]
        self._state = self._in_object if name is None else self._in_value
        self._alone = name is not None
        self._value = ValueSpan()
        self._separated = True
        """Whether a key may follow."""

    @property
    def begun(self) -> bool:
        """Whether it is clear that this is a call."""
        return self.name is not None and (self._arguments is not None or self.ended) and not self.failed

    def push(self, text: str) -> str:
        """Reads on. Returns what follows the call; on failure also what made it fail is in `raw`."""
        for at, character in enumerate(text):
            self.raw += character
            self._state(character)
            if self.ended or self.failed:
                return text[at + 1 :]
        return ""

    def take_arguments(self) -> str:
        """The next piece of the arguments."""
        arguments = self._arguments if self.begun and self._arguments is not None else ""
        piece, self._shown = arguments[self._shown :], max(self._shown, len(arguments))
        return piece

    def _in_object(self, character: str) -> None:
        if character == "{" and self.raw.strip() == "{":
            return
        if character in _SPACE:
            return
        if character == '"' and self._separated:
            self._value = ValueSpan()
            self._value.push(character)
            self._state = self._in_key
        elif character == "," and not self._separated:
            self._separated = True
        elif character == "}":
            self._end()
        else:
            self.failed = True

    def _in_key(self, character: str) -> None:
        if not self._value.push(character):
            return
        key = strict_json(self._value.text)
        self._key = key if isinstance(key, str) else None
        known = (*NAME_KEYS, *ARGUMENT_KEYS, *OTHER_KEYS)
        self.failed = self._names is not None and self._key not in known
        self._value, self._state = ValueSpan(), self._before_value

    def _before_value(self, character: str) -> None:
        if character == ":":
            self._state = self._in_value
        elif character not in _SPACE:
            self.failed = True

    def _in_value(self, character: str) -> None:
        last = self._value.push(character)
        text = self._value.text
        if self._key in ARGUMENT_KEYS and text.startswith("{"):
            self._arguments = text
        if last is False:
            return
        self._separated, self._state = False, self._in_object
        self._set(text)
        if self._alone and not self.failed:
            self.ended = True
        elif last is None and not self.failed:
            self._in_object(character)

    def _set(self, text: str) -> None:
        """Takes the whole value of a key."""
        value = strict_json(text)
        if self._key in NAME_KEYS:
            self.name = value if isinstance(value, str) and value else None
            self.failed = self.name is None or (self._names is not None and self.name not in self._names)
        elif self._key in ARGUMENT_KEYS:
            if isinstance(value, str):  # Some models write the object as a string.
                text, value = value, strict_json(value)
            self.failed = not (isinstance(value, dict) or text == "null")
            self._arguments = "{}" if text == "null" else text

    def _end(self) -> None:
        if self.name is None:
            self.failed = True
            return
        self.ended = True
        if self._arguments is None:
            self._arguments = "{}"
