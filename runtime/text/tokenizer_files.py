"""What a model directory says beside tokenizer.json: named special tokens and chat templates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from moorage.workers.errors import InvalidModel
from moorage.workers.hf_fields import Fields

SETTINGS_FILE = "tokenizer_config.json"
SPECIAL_TOKENS_FILE = "special_tokens_map.json"
TEMPLATE_FILE = "chat_template.jinja"
TEMPLATE_JSON_FILE = "chat_template.json"
NAMED_TEMPLATES_FOLDER = "additional_chat_templates"
DEFAULT_TEMPLATE = "default"
_SPECIAL_NAMES = tuple(f"{name}_token" for name in ("bos", "eos", "unk", "sep", "pad", "cls", "mask"))


@dataclass(frozen=True, slots=True)
class TemplateSource:
    """The text of a chat template, and the file it stands in."""

    text: str
    path: Path


@dataclass(frozen=True, slots=True)
class TokenizerFiles:
    """The parts of a model directory that lie round its tokenizer.json."""

    special_tokens: Mapping[str, str]
    """Text of each named special token, such as `bos_token`; chat templates use the names."""
    eos_tokens: tuple[str, ...]
    """Every text that some file gives for `eos_token`."""
    templates: Mapping[str, TemplateSource]
    """Chat templates by name."""


def read_tokenizer_files(directory: Path) -> TokenizerFiles:
    """Reads a model directory as transformers does. Raises InvalidModel with the file that can't be read."""
    settings = _read(directory / SETTINGS_FILE)
    special = _read(directory / SPECIAL_TOKENS_FILE)
    named = _special_tokens(settings)
    mapped = _special_tokens(special)
    # transformers reads the older file only where tokenizer_config.json does not list the added tokens.
    # A null in it takes the name away.
    kept = {name: text for name, text in named.items() if name not in special.values}
    both = named if settings.get("added_tokens_decoder") is not None else kept | mapped
    ends = (tokens.get("eos_token") for tokens in (named, mapped))
    return TokenizerFiles(
        both, tuple(dict.fromkeys(end for end in ends if end)), _templates(directory, settings)
    )


def _read(path: Path) -> Fields:
    return Fields.read(path) if path.is_file() else Fields({}, str(path))


def _special_tokens(fields: Fields) -> dict[str, str]:
    tokens = {}
    for name in _SPECIAL_NAMES:
        value = fields.get(name)
        text = value.get("content") if isinstance(value, dict) else value
        if text is None and value is None:
            continue
        if not isinstance(text, str):
            raise fields.wrong(name, "a string, or an object with its content")
        tokens[name] = text
    return tokens


def _templates(directory: Path, settings: Fields) -> dict[str, TemplateSource]:
    """Files of templates go before tokenizer_config.json, and that before chat_template.json."""
    files = {
        path.stem: TemplateSource(_text(path), path)
        for path in sorted((directory / NAMED_TEMPLATES_FOLDER).glob("*.jinja"))
    }
    if (directory / TEMPLATE_FILE).is_file():
        path = directory / TEMPLATE_FILE
        return {**files, DEFAULT_TEMPLATE: TemplateSource(_text(path), path)}
    listed = _listed(settings, directory / SETTINGS_FILE)
    if not listed:
        path = directory / TEMPLATE_JSON_FILE
        listed = _listed(_read(path), path)
    return {**listed, **files}


def _listed(fields: Fields, path: Path) -> dict[str, TemplateSource]:
    """The field `chat_template`: one template, an object or a list of named ones."""
    value = fields.get("chat_template")
    if isinstance(value, str):
        value = {DEFAULT_TEMPLATE: value}
    elif isinstance(value, list) and all(isinstance(entry, dict) for entry in value):
        value = {entry.get("name"): entry.get("template") for entry in value}
    elif value is None:
        value = {}
    if not isinstance(value, dict) or not all(
        isinstance(name, str) and isinstance(text, str) for name, text in value.items()
    ):
        raise fields.wrong("chat_template", "a template, or a list of objects with name and template")
    return {name: TemplateSource(text, path) for name, text in value.items()}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InvalidModel(f"{path}: not a chat template in UTF-8 ({reason}); download it again") from None
