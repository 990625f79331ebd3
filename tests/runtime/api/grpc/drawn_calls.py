"""Calls of the gRPC service drawn at random: messages by their descriptors, some of them damaged on the wire."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from moorage.proto.v1 import moorage_pb2 as pb

SERVICE = pb.DESCRIPTOR.services_by_name["Moorage"]
_MAX_DEPTH = 5
_TAME: dict[str, tuple[Any, ...]] = {
    "model": ("",),
    "max_new_tokens": (1, 2, 5),
    "preset": ("", "full", "moorage", "ktransformers", "inf-llm"),
    "session": ("", "a", "b", "c"),
    "name": ("a", "b", "c"),
    "new_name": ("a", "b", "d"),
    "role": ("user", "assistant", "system"),
    "temperature": (0.0, 1.0),
    "top_p": (0.5, 1.0),
    "repetition_penalty": (1.0, 1.1),
    "memory": (("topk", "4"), ("verify", "2"), ("recall_sample", "1"), ("dense_until", "0")),
}
"""Values by the name of their field that a server takes."""
_OFTEN = ("max_new_tokens", "ids", "name", "new_name", "role", "content", "text", "token_ids")
"""Fields without which there is little to answer."""
_TEXTS = (
    "",
    "a",
    "full",
    "x" * 300,
    "\0",
    "é\u2028\U0001f4a9",
    "{}",
    '{"type": "object"}',
    "[a-z]+",
    "topk",
    "-1",
)
_INTEGERS = (0, 1, 2, 3, 7, 200, 511, 512, 100_000, 2**31 - 1, 2**63 - 1, -1, -(2**31))
_REALS = (0.0, 0.5, 1.0, 2.0, -1.0, 1e-300, 1e308, float("nan"), float("inf"), -float("inf"))
_UNSIGNED = (FieldDescriptor.TYPE_UINT32, FieldDescriptor.TYPE_UINT64)
_NARROW = (FieldDescriptor.TYPE_INT32, FieldDescriptor.TYPE_UINT32)


@dataclass(frozen=True)
class Call:
    """A method, and the bytes of each message."""

    method: str
    streams: bool
    messages: tuple[bytes, ...]


def calls(seed: int) -> Iterator[Call]:
    """Calls without end; a seed gives the same ones."""
    draw = random.Random(seed)
    while True:
        method = draw.choice(
            [*SERVICE.methods, *[one for one in SERVICE.methods if one.client_streaming] * 3]
        )
        streams, tame, kind = bool(method.client_streaming), draw.random() < 0.6, method.input_type
        sent = _stream(draw, kind, tame) if streams else [_message(draw, kind, tame)]
        packed = [message.SerializeToString() for message in sent]
        if draw.random() < 0.1:
            packed = [_damaged(draw, data) for data in packed]
        yield Call(f"/{SERVICE.full_name}/{method.name}", streams, tuple(packed))


def _stream(draw: random.Random, kind: Descriptor, tame: bool) -> list[Message]:
    """Parameters and then pieces, or any messages in any order."""
    if not tame and draw.random() < 0.3:
        return [_message(draw, kind, tame) for _ in range(draw.randrange(5))]
    part, piece = (kind.fields_by_name[name] for name in ("parameters", "piece"))
    sent = []
    for field in (part, *[piece] * draw.randrange(1, 4)):
        message = GetMessageClass(kind)()
        getattr(message, field.name).CopyFrom(_message(draw, field.message_type, tame))
        sent.append(message)
    return sent


def _message(draw: random.Random, kind: Descriptor, tame: bool, depth: int = 0) -> Message:
    """A `tame` one has values that a server takes, most often together."""
    message = GetMessageClass(kind)()
    share = draw.choice((0.05, 0.2, 0.7))
    chosen = {oneof.name: draw.choice(oneof.fields).name for oneof in kind.oneofs if len(oneof.fields) > 1}
    for field in kind.fields:
        oneof = field.containing_oneof
        if oneof is not None and oneof.name in chosen:
            wanted = chosen[oneof.name] == field.name
        elif tame and field.name in _OFTEN:
            wanted = draw.random() < 0.9
        else:
            wanted = draw.random() < share and not (tame and field.name not in _TAME)
        if wanted and depth < _MAX_DEPTH:
            _set(draw, message, field, tame, depth)
    return message


def _set(draw: random.Random, message: Message, field: FieldDescriptor, tame: bool, depth: int) -> None:
    """Gives a field of any kind a drawn value."""
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        for _ in range(draw.randrange(3)):
            key, value = draw.choice(_TAME["memory"]) if tame else (draw.choice(_TEXTS), draw.choice(_TEXTS))
            getattr(message, field.name)[key] = value
    elif field.is_repeated and field.message_type is not None:
        made = [_message(draw, field.message_type, tame, depth + 1) for _ in range(draw.randrange(3))]
        getattr(message, field.name).extend(made)
    elif field.is_repeated:
        most = 300 if field.type in _UNSIGNED else 4
        made = [_value(draw, field, tame) for _ in range(draw.randrange(most))]
        getattr(message, field.name).extend(made)
    elif field.message_type is not None:
        getattr(message, field.name).CopyFrom(_message(draw, field.message_type, tame, depth + 1))
    else:
        setattr(message, field.name, _value(draw, field, tame))


def _value(draw: random.Random, field: FieldDescriptor, tame: bool) -> Any:
    if tame and field.name in _TAME:
        return draw.choice(_TAME[field.name])
    match field.cpp_type:
        case FieldDescriptor.CPPTYPE_BOOL:
            return draw.random() < 0.5
        case FieldDescriptor.CPPTYPE_STRING:
            text = draw.choice(_TEXTS)
            if field.type == FieldDescriptor.TYPE_STRING:
                return text
            return text.encode() if tame else draw.choice((text.encode(), b"\xff\xfe", draw.randbytes(40)))
        case FieldDescriptor.CPPTYPE_DOUBLE | FieldDescriptor.CPPTYPE_FLOAT:
            return draw.choice(_REALS)
        case FieldDescriptor.CPPTYPE_ENUM:
            return draw.choice(field.enum_type.values).number
    if tame:
        return draw.randrange(500)
    value = draw.choice(_INTEGERS)
    least = 0 if field.type in _UNSIGNED else -(2**31)
    return max(least, min(value, 2**31 - 1)) if field.type in _NARROW else max(least, value)


def _damaged(draw: random.Random, data: bytes) -> bytes:
    """One byte changed, a piece cut off, or bytes in its place."""
    if not data:
        return draw.randbytes(draw.randrange(9))
    place = draw.randrange(len(data))
    match draw.randrange(3):
        case 0:
            return data[:place] + draw.randbytes(1) + data[place + 1 :]
        case 1:
            return data[:place]
    return data[:place] + draw.randbytes(draw.randrange(40)) + data[place:]
