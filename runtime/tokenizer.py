"""Text to token ids and back, as the model's own tokenizer.json says, and its chat template."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn, Self

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from moorage.workers.errors import InvalidModel, InvalidRequest
from moorage.workers.spec import ModelSpec

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_MOST_PENDING = 16
"""Tokens held back for an unfinished character; more are no character but bytes that will never be one."""
_TEMPLATE_FILE = "chat_template.jinja"
_SETTINGS_FILE = "tokenizer_config.json"
_LEAST_BYTES_PER_TOKEN = 16
_SPECIAL_NAMES = ("bos_token", "eos_token", "pad_token", "unk_token")


class TextTokenizer:
    """A tokenizer and a chat template. Encoding adds what the post-processor adds, such as BOS."""

    def __init__(self, tokenizer: Tokenizer, settings: Mapping[str, Any], directory: Path) -> None:
        self._tokenizer = tokenizer
        self._settings = settings
        self._directory = directory
        self.special_ids = frozenset(
            token_id for token_id, token in tokenizer.get_added_tokens_decoder().items() if token.special
        )

    @classmethod
    def load(cls, model_dir: str | Path) -> Self:
        """From tokenizer.json, tokenizer_config.json and chat_template.jinja of a model directory.

        Raises InvalidModel when tokenizer.json is missing or can't be read.
        """
        directory = Path(model_dir)
        path = directory / "tokenizer.json"
        if not path.is_file():
            raise InvalidModel(
                f"{path}: missing; add the model's tokenizer.json, or send token ids instead of text"
            )
        try:
            tokenizer = Tokenizer.from_str(path.read_text(encoding="utf-8"))
        except Exception as error:  # the library raises no narrower class
            raise InvalidModel(f"{path}: not a tokenizer ({_brief(error)}); download it again") from error
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return cls(tokenizer, _read_settings(directory), directory)

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """The id of the `eos_token` that tokenizer_config.json or special_tokens_map.json names; () for none."""
        names = [_token_content(files["eos_token"]) for files in (self._settings,) if files.get("eos_token")]
        ids = (self._tokenizer.token_to_id(name) for name in names)
        return tuple(dict.fromkeys(token_id for token_id in ids if token_id is not None))

    @property
    def vocab_size(self) -> int:
        """Ids that the tokenizer knows, special ones included."""
        return int(self._tokenizer.get_vocab_size())

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of `text`. Raises InvalidRequest for text that is not valid Unicode."""
        try:
            return list(self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids)
        except (TypeError, UnicodeEncodeError) as error:
            raise InvalidRequest("the text has lone surrogates; send valid UTF-8") from error

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Text of `token_ids`; ids that the tokenizer does not know are left out."""
        return str(self._tokenizer.decode(list(token_ids), skip_special_tokens=skip_special_tokens))

    @property
    def max_bytes_per_token(self) -> int:
        """More bytes a token than any real text has: twice what all but a hundredth of the vocabulary keeps to.

        Only long runs of one character, which have tokens of their own, come over it.
        """
        lengths = sorted(len(token.encode("utf-8", "replace")) for token in self._tokenizer.get_vocab())
        return max(_LEAST_BYTES_PER_TOKEN, 2 * lengths[len(lengths) * 99 // 100] if lengths else 0)

    @property
    def has_chat_template(self) -> bool:
        """Whether `render_chat` can work."""
        return self._template() is not None

    @property
    def chat_template_source(self) -> str:
        """The file that holds the chat template, or would."""
        return _TEMPLATE_FILE if (self._directory / _TEMPLATE_FILE).is_file() else _SETTINGS_FILE

    def encode_chat(self, messages: Sequence[Mapping[str, Any]], *, parse_special: bool = False) -> list[int]:  # noqa: ARG002
        """Token ids of the model's prompt for a conversation. Raises InvalidRequest as `render_chat` does."""
        return self.encode(self.render_chat(messages), add_special_tokens=False)

    def render_chat(
        self, messages: Sequence[Mapping[str, Any]], *, add_generation_prompt: bool = True, **extra: Any
    ) -> str:
        """The model's prompt for a conversation; encode it with `add_special_tokens=False`.

        Raises InvalidRequest when the model has no chat template or the template refuses the messages or fails.
        """
        template = self._template()
        if template is None:
            raise InvalidRequest(
                f"{self._directory.name} has no chat template (in chat_template.jinja or "
                "tokenizer_config.json); send a plain prompt instead"
            )
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
        names = {
            name: _token_content(self._settings[name]) for name in _SPECIAL_NAMES if self._settings.get(name)
        }
        try:
            return environment.from_string(template).render(
                messages=list(messages), add_generation_prompt=add_generation_prompt, **names, **extra
            )
        except jinja2.TemplateError as error:
            raise InvalidRequest(
                f"{self.chat_template_source}: the model's chat template refuses the messages: {_brief(error)}"
            ) from error
        except MemoryError:
            raise
        except Exception as error:  # a template can raise anything, such as ZeroDivisionError
            raise InvalidRequest(
                f"{self.chat_template_source}: the model's chat template fails with {type(error).__name__}: "
                f"{_brief(error)}; mend the template, or send a plain prompt"
            ) from error

    def _template(self) -> str | None:
        path = self._directory / _TEMPLATE_FILE
        if path.is_file():
            try:
                return path.read_text(encoding="utf-8")
            except (OSError, ValueError) as error:
                raise InvalidRequest(
                    f"{path}: is no chat template ({_brief(error)}); download it again"
                ) from error
        template = self._settings.get("chat_template")
        if isinstance(template, list):
            named = {entry["name"]: entry["template"] for entry in template}
            template = named.get("default")
        return template if isinstance(template, str) else None


def stop_token_ids(spec: ModelSpec, tokenizer: TextTokenizer | None) -> tuple[int, ...]:
    """Every id that ends a generation: those of the model's configuration files and the tokenizer's `eos_token`.

    Fine-tunes often change only one of the three.
    """
    own = tokenizer.eos_token_ids if tokenizer is not None else ()
    return tuple(dict.fromkeys((*spec.eos_token_ids, *own)))


class IncrementalDecoder:
    """Text of a growing sequence of tokens, in pieces that never split a character.

    A piece is the difference of two decodings of the latest tokens (as in Hugging Face's
    text-generation-inference), since a token's text can depend on the one before it, as a leading space does.
    """

    def __init__(self, tokenizer: TextTokenizer, *, skip_special_tokens: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skipped = tokenizer.special_ids if skip_special_tokens else frozenset()
        self._given: list[int] = []
        """Tokens of the last piece, which the spelling of the next may depend on."""
        self._pending: list[int] = []

    def push(self, token_id: int) -> str:
        """The text that `token_id` completes; empty while a character is unfinished."""
        if token_id in self._skipped:
            return ""
        self._pending.append(token_id)
        text = self._text()
        unfinished = not text or text.endswith(_REPLACEMENT)
        if unfinished and len(self._pending) < _MOST_PENDING:
            return ""
        self._given, self._pending = self._pending, []
        return text

    def flush(self) -> str:
        """What an unfinished end decodes to."""
        text = self._text() if self._pending else ""
        self._given, self._pending = self._pending, []
        return text

    def _text(self) -> str:
        before, both = (
            self._tokenizer.decode(ids, skip_special_tokens=False)
            for ids in (self._given, self._given + self._pending)
        )
        return both[len(before) :]


def _read_settings(directory: Path) -> Mapping[str, Any]:
    path = directory / _SETTINGS_FILE
    if not path.is_file():
        return {}
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InvalidModel(f"{path}: not JSON ({_brief(error)}); download it again") from error
    if not isinstance(settings, dict):
        raise InvalidModel(f"{path}: not a JSON object; download it again")
    return settings


def _token_content(token: Any) -> str:
    return str(token["content"] if isinstance(token, dict) else token)


def _to_json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _refuse(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _brief(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
