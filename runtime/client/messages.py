"""Requests as messages: the parameters, then the prompt in pieces; and responses as events."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, cast

from google.protobuf.message import Message

from moorage.client.types import GRAMMARS, Accepted, GenerateEvent, GenerateOptions, Prompt, ScoreEvent
from moorage.proto.v1 import moorage_pb2 as pb
from moorage.runtime.api.grpc import codec
from moorage.runtime.api.setting_texts import setting_texts
from moorage.workers.errors import InvalidRequest, MoorageError

_TEXT_PIECE_BYTES = 512 << 10
_IDS_PER_PIECE = 100_000
_GENERATION_FIELDS = ("model", "max_new_tokens", "ignore_eos", "preset", "session", "parse_special")
_FIELDS = GenerateOptions.__annotations__.keys()


def generate_requests(prompt: Prompt, options: GenerateOptions) -> Iterator[pb.GenerateRequest]:
    """The messages of one generation. Raises InvalidRequest at once for what can't be sent."""
    unknown = sorted(options.keys() - _FIELDS)
    if unknown:
        raise TypeError(f"generate() has no option {unknown[0]!r}; it has {', '.join(_FIELDS)}")
    parameters = pb.GenerateParameters()
    for name, value in options.items():
        if value is None:
            continue
        if name == "stop":
            parameters.stop.extend(_strings(name, value))
        elif name == "memory":
            parameters.memory.update(_settings(value))
        elif name in GRAMMARS:
            if parameters.HasField("grammar"):
                raise InvalidRequest(f"{name}: is given beside another grammar; give one")
            _set(parameters.grammar, name, grammar_text(name, value))
        else:
            _set(parameters if name in _GENERATION_FIELDS else parameters.sampling, name, value)
    pieces = _pieces(prompt)
    return chain(
        [pb.GenerateRequest(parameters=parameters)], (pb.GenerateRequest(piece=piece) for piece in pieces)
    )


def score_requests(
    text: str | bytes | Sequence[int], preset: str | None, memory: Mapping[str, object] | None = None
) -> Iterator[pb.ScoreRequest]:
    """The messages of one scoring. Raises InvalidRequest at once for what can't be sent."""
    parameters = pb.ScoreParameters(memory=_settings(memory or {}))
    if preset is not None:
        _set(parameters, "preset", preset)
    pieces = _pieces(text)
    return chain([pb.ScoreRequest(parameters=parameters)], (pb.ScoreRequest(piece=piece) for piece in pieces))


def read_generate(response: pb.GenerateResponse) -> GenerateEvent:
    """The event of a response."""
    match response.WhichOneof("event"):
        case "accepted":
            return Accepted(response.accepted.request_id, response.accepted.prompt_tokens)
        case "progress":
            return codec.read_progress(response.progress)
        case "token":
            return codec.read_token(response.token)
        case "finished":
            return codec.read_finished(response.finished)
    raise MoorageError("the server sent an event that this client does not know; use the server's version")


def read_score(response: pb.ScoreResponse) -> ScoreEvent:
    """The event of a response."""
    match response.WhichOneof("event"):
        case "accepted":
            return Accepted(response.accepted.request_id, response.accepted.prompt_tokens)
        case "progress":
            return codec.read_progress(response.progress)
        case "logprobs":
            return codec.read_prompt_logprobs(response.logprobs)
        case "finished":
            return codec.read_finished(response.finished)
    raise MoorageError("the server sent an event that this client does not know; use the server's version")


def grammar_text(name: str, value: object) -> str:
    """The text of an option that says what the answer must follow. Raises InvalidRequest for another type."""
    if isinstance(value, str):
        return text_bytes(value, name).decode()
    if name == "json_schema" and isinstance(value, Mapping):
        try:
            return json.dumps(value)
        except (TypeError, ValueError, RecursionError):
            raise InvalidRequest("json_schema: is no JSON; check its values") from None
    raise InvalidRequest(f"{name}: must be text, not {type(value).__name__}")


def detokenize_request(token_ids: Sequence[int]) -> pb.DetokenizeRequest:
    """The message for token ids. Raises InvalidRequest for what is not an id."""
    return pb.DetokenizeRequest(token_ids=_ids(token_ids).ids)


def time_limit(timeout_s: float | None) -> float | None:
    """The time limit as it was given. Raises InvalidRequest for what is no number of seconds over 0."""
    if timeout_s is None or (isinstance(timeout_s, int | float) and timeout_s > 0):
        return timeout_s
    raise InvalidRequest(
        f"timeout_s: {str(timeout_s)[:40]!r} is no number of seconds over 0; None sets no limit"
    )


def text_bytes(text: str | bytes, field: str = "text") -> bytes:
    """UTF-8 of a text; bytes pass as they are. Raises InvalidRequest for a lone surrogate or another type."""
    if isinstance(text, bytes):
        return text
    if not isinstance(text, str):
        raise InvalidRequest(f"{field}: must be str or bytes, not {type(text).__name__}")
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidRequest(f"{field}: is not valid Unicode at character {error.start}; remove it") from None


def _pieces(prompt: Prompt) -> Iterator[pb.PromptPiece]:
    if isinstance(prompt, str | bytes):
        data = text_bytes(prompt, "prompt")
        return (pb.PromptPiece(text=part) for part in _split(data))
    if isinstance(prompt, Mapping) or not (hasattr(prompt, "__len__") and hasattr(prompt, "__getitem__")):
        raise InvalidRequest(
            "prompt: must be str, bytes, a list of token ids or a list of chat messages, "
            f"not {type(prompt).__name__}"
        )
    if len(prompt) and isinstance(prompt[0], Mapping):
        return _chat_pieces(cast("Sequence[Mapping[str, str]]", prompt))
    ids = cast("Sequence[int]", prompt)
    _ids(ids[:1])
    starts = range(0, len(ids), _IDS_PER_PIECE)
    return iter([pb.PromptPiece(token_ids=_ids(ids[at : at + _IDS_PER_PIECE])) for at in starts])


def _chat_pieces(messages: Sequence[Mapping[str, str]]) -> Iterator[pb.PromptPiece]:
    pieces = []
    for place, message in enumerate(messages):
        fields = (message.get("role"), message.get("content")) if isinstance(message, Mapping) else ()
        if not fields or not all(isinstance(field, str) for field in fields) or not fields[0]:
            raise InvalidRequest(
                f'message {place + 1}: must be a mapping with a "role" and a "content" of text'
            )
        role = message["role"]
        for part in _split(text_bytes(message["content"])):
            pieces.append(pb.PromptPiece(message=pb.ChatMessage(role=role, content=part)))
            role = ""
    return iter(pieces)


def _split(data: bytes) -> list[bytes]:
    starts = range(0, max(1, len(data)), _TEXT_PIECE_BYTES)
    return [data[at : at + _TEXT_PIECE_BYTES] for at in starts]


def _ids(token_ids: Sequence[int]) -> pb.TokenIds:
    try:
        return pb.TokenIds(ids=token_ids)
    except (TypeError, ValueError):
        raise InvalidRequest(
            "token_ids: must be whole numbers from 0 to 4294967295; check the list"
        ) from None


def _set(message: Message, name: str, value: Any) -> None:
    try:
        setattr(message, name, value)
    except (TypeError, ValueError):
        raise InvalidRequest(f"{name}: {str(value)[:40]!r} can't be sent; check its type and range") from None


def _settings(memory: object) -> dict[str, str]:
    found = setting_texts(memory)
    for key, value in found.items():
        text_bytes(f"{key}{value}", "memory")
    return found


def _strings(name: str, value: Any) -> Sequence[str]:
    if isinstance(value, str | bytes) or not isinstance(value, Sequence):
        raise InvalidRequest(f"{name}: must be a list of strings; send it as one")
    for item in value:
        if not isinstance(item, str):
            raise InvalidRequest(f"{name}: must hold strings only, not {type(item).__name__}")
        text_bytes(item, name)
    return cast("Sequence[str]", value)
