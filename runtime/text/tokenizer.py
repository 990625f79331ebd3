"""Text to token ids and back, as the model's own tokenizer.json says, and conversations by its chat template."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from tokenizers import Tokenizer

from moorage.runtime.text.chat_encoding import ChatEncoder
from moorage.runtime.text.chat_template import ChatTemplate
from moorage.runtime.text.gguf_tokenizer import has_gguf_tokenizer, read_gguf_tokenizer
from moorage.runtime.text.tokenizer_files import (
    DEFAULT_TEMPLATE,
    TEMPLATE_FILE,
    TokenizerFiles,
    read_tokenizer_files,
)
from moorage.workers.errors import InvalidModel, InvalidRequest
from moorage.workers.gguf.files import gguf_files
from moorage.workers.spec import ModelSpec

TOKENIZER_FILE = "tokenizer.json"
_LEAST_BYTES_PER_TOKEN = 16
_TOOL_TEMPLATE = "tool_use"


class TextTokenizer:
    """A tokenizer and its chat templates. Encoding adds what the post-processor adds, such as BOS."""

    def __init__(
        self, tokenizer: Tokenizer, file: Path, chats: Mapping[str, ChatEncoder], ends: Sequence[str]
    ) -> None:
        self._tokenizer, self._file, self._chats = tokenizer, file, chats
        self.special_ids = frozenset(
            token_id for token_id, token in tokenizer.get_added_tokens_decoder().items() if token.special
        )
        self._spellings: dict[int, str] = {}
        ids = (tokenizer.token_to_id(end) for end in ends)
        self.eos_token_ids = tuple(dict.fromkeys(token_id for token_id in ids if token_id is not None))
        """Ids of the `eos_token` that tokenizer_config.json and special_tokens_map.json name."""

    @classmethod
    def load(cls, model_dir: str | Path) -> Self:
        """Reads tokenizer.json and the files beside it (see `read_tokenizer_files`), or a GGUF file.

        Raises InvalidModel with the file that is missing or can't be read.
        """
        directory = Path(model_dir)
        gguf = gguf_files(directory)
        path = gguf[0] if gguf else directory / TOKENIZER_FILE
        try:
            tokenizer, files = read_gguf_tokenizer(path) if gguf else _read_directory(directory)
        except InvalidModel:
            raise
        except Exception as error:  # the library raises no narrower class
            raise InvalidModel(f"{path}: not a tokenizer ({_brief(error)}); download it again") from error
        tokenizer.no_truncation()
        tokenizer.no_padding()
        templates = {
            name: ChatTemplate(source, files.special_tokens) for name, source in files.templates.items()
        }
        try:
            chats = {name: ChatEncoder(tokenizer, template) for name, template in templates.items()}
        except RecursionError:
            raise InvalidModel(f"{path}: its added tokens are too many and too alike; remove some") from None
        return cls(tokenizer, path, chats, files.eos_tokens)

    @property
    def source(self) -> str:
        """The name of the file that holds the tokenizer."""
        return self._file.name

    @property
    def vocab_size(self) -> int:
        """Ids that the tokenizer knows, special ones included."""
        return int(self._tokenizer.get_vocab_size())

    def as_json(self) -> str:
        """The tokenizer as the text of a tokenizer.json."""
        return str(self._tokenizer.to_str())

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of `text`, in which special tokens may be spelled.

        Raises InvalidRequest for text that is not valid Unicode.
        """
        try:
            return list(self._tokenizer.encode(text, add_special_tokens=add_special_tokens).ids)
        except (TypeError, UnicodeEncodeError) as error:
            raise InvalidRequest("the text has lone surrogates; send valid UTF-8") from error

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Text of `token_ids`; ids that the tokenizer does not know are left out."""
        return str(self._tokenizer.decode(list(token_ids), skip_special_tokens=skip_special_tokens))

    def spelling(self, token_id: int) -> str:
        """The text of one token as it stands within a text; bytes that are no character are replaced."""
        found = self._spellings.get(token_id)
        if found is None:
            before = self._tokenizer.encode("a", add_special_tokens=False).ids
            start = len(self.decode(before, skip_special_tokens=False))
            found = self.decode([*before, token_id], skip_special_tokens=False)[start:]
            self._spellings[token_id] = found
        return found

    @property
    def max_bytes_per_token(self) -> int:
        """More bytes a token than any real text has: twice what all but a hundredth of the vocabulary keeps to.

        Only long runs of one character, which have tokens of their own, come over it.
        """
        lengths = sorted(len(token.encode("utf-8", "replace")) for token in self._tokenizer.get_vocab())
        return max(_LEAST_BYTES_PER_TOKEN, 2 * lengths[len(lengths) * 99 // 100] if lengths else 0)

    @property
    def has_chat_template(self) -> bool:
        """Whether conversations can be encoded."""
        return DEFAULT_TEMPLATE in self._chats

    @property
    def chat_template_source(self) -> str:
        """The file that holds the chat template, or would."""
        chat = self._chats.get(DEFAULT_TEMPLATE)
        return chat.template.path.name if chat else TEMPLATE_FILE

    @property
    def template_source(self) -> str | None:
        """The source of the chat template; None where conversations can't be encoded."""
        chat = self._chats.get(DEFAULT_TEMPLATE)
        return chat.template.source if chat is not None else None

    @property
    def tool_template(self) -> str | None:
        """The source of the chat template for conversations with tools; None where it has no place for them."""
        chat = self._chats.get(_TOOL_TEMPLATE) or self._chats.get(DEFAULT_TEMPLATE)
        return chat.template.source if chat is not None and chat.template.takes_tools else None

    def added_ids_of(self, texts: Iterable[str]) -> dict[str, int]:
        """The ids of those `texts` that are added tokens, special or not."""
        added = {token.content: i for i, token in self._tokenizer.get_added_tokens_decoder().items()}
        return {text: added[text] for text in texts if text in added}

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        parse_special: bool = False,
        said: Mapping[int, Sequence[int]] | None = None,
        **extra: Any,
    ) -> list[int]:
        """Token ids of the model's prompt for a conversation; `extra` goes to the template, as `tools` does.

        Special tokens that the contents spell stay plain text unless `parse_special` is set. `said` has the tokens
        that the model generated for some of its messages, by their place. Raises InvalidRequest when the model has no
        chat template, or the template does not know a role, refuses the messages or fails.
        """
        chat = self._chat(extra)
        for place, message in enumerate(messages, start=1):
            chat.template.check_role(message.get("role"), place)
        if parse_special:
            return self.encode(chat.template.render(messages, **extra), add_special_tokens=False)
        return chat.encode(messages, said=said, **extra)

    def render_chat(self, messages: Sequence[Mapping[str, Any]], **extra: Any) -> str:
        """The text of the model's prompt for a conversation. Raises InvalidRequest as `encode_chat` does."""
        return self._chat(extra).template.render(messages, **extra)

    def prepare_chat(self) -> None:
        """Builds now what else the first conversation that spells a special token waits for."""
        for chat in self._chats.values():
            chat.prepare()

    def _chat(self, extra: Mapping[str, Any]) -> ChatEncoder:
        name = _TOOL_TEMPLATE if extra.get("tools") is not None else DEFAULT_TEMPLATE
        chat = self._chats.get(name) or self._chats.get(DEFAULT_TEMPLATE)
        if chat is None:
            others = f"; it only has the named ones {', '.join(sorted(self._chats))}" if self._chats else ""
            where = "tokenizer.chat_template"
            model = self._file
            if self._file.name == TOKENIZER_FILE:
                model, where = self._file.parent, "chat_template.jinja or tokenizer_config.json"
            raise InvalidRequest(
                f"{model.name} has no chat template (in {where}){others}; send a plain prompt instead"
            )
        return chat


def has_tokenizer(model: str | Path) -> bool:
    """Whether a model has a tokenizer; without one it can be served token ids. Raises InvalidModel for a bad file."""
    files = gguf_files(Path(model))
    return has_gguf_tokenizer(files[0]) if files else (Path(model) / TOKENIZER_FILE).exists()


def _read_directory(directory: Path) -> tuple[Tokenizer, TokenizerFiles]:
    path = directory / TOKENIZER_FILE
    if not path.is_file():
        raise InvalidModel(
            f"{path}: missing; add the model's tokenizer.json, or send token ids instead of text"
        )
    return Tokenizer.from_str(path.read_text(encoding="utf-8")), read_tokenizer_files(directory)


def stop_token_ids(spec: ModelSpec, tokenizer: TextTokenizer | None) -> tuple[int, ...]:
    """Every id that ends a generation: those of the model's configuration files and the tokenizer's `eos_token`.

    Fine-tunes often change only one of the three.
    """
    own = tokenizer.eos_token_ids if tokenizer is not None else ()
    return tuple(dict.fromkeys((*spec.eos_token_ids, *own)))


def _brief(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
