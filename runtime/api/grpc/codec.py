"""Between the records of `moorage.runtime.serving.protocol` and the messages of `moorage.proto.v1`, both ways.

Server and client share it, so that a field can't be written by one and forgotten by the other.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, TypeVar

from google.protobuf.message import Message

from moorage.proto.v1 import moorage_pb2 as pb
from moorage.runtime.serving.protocol import (
    ClusterStatus,
    Finished,
    GenerateOptions,
    MessagePiece,
    ModelInfo,
    Progress,
    PromptLogprobs,
    PromptPiece,
    SamplingOptions,
    ScoreOptions,
    Token,
)
from moorage.runtime.serving.sessions.records import SessionInfo
from moorage.runtime.serving.status_records import KvActorStatus, RunningRequest, WaitingRequest
from moorage.runtime.serving.usage import Usage
from moorage.runtime.text.grammar import Grammar
from moorage.workers.errors import InvalidRequest, MoorageError
from moorage.workers.hf_generation import SamplingDefaults

R = TypeVar("R")

_REASONS = {
    "stop": pb.FINISH_REASON_STOP,
    "length": pb.FINISH_REASON_LENGTH,
    "cancelled": pb.FINISH_REASON_CANCELLED,
}
_REASON_NAMES = {number: name for name, number in _REASONS.items()}
_STATUS_SCALARS = (
    "state",
    "uptime_s",
    "running",
    "prefilling",
    "waiting",
    "worker_pids",
    "attention_dtype",
    "link_bytes_total",
    "prompt_tokens_total",
    "generated_tokens_total",
    "cache_hit_rate",
    "recall",
    "step_part_s",
    "idle_sessions",
    "failure",
    "failed_steps_total",
)


def read_generate_options(message: pb.GenerateParameters) -> GenerateOptions:
    """The record of a generation's parameters, as they were sent."""
    return GenerateOptions(
        model=message.model,
        max_new_tokens=_optional(message, "max_new_tokens"),
        ignore_eos=message.ignore_eos,
        stop=tuple(message.stop),
        preset=message.preset,
        memory=dict(message.memory),
        grammar=_read_grammar(message.grammar) if message.HasField("grammar") else None,
        session=message.session,
        sampling=_read_fields(SamplingOptions, message.sampling),
        parse_special=message.parse_special,
    )


def _read_grammar(message: Any) -> Grammar:
    kind = message.WhichOneof("kind")
    if kind is None:
        raise InvalidRequest("grammar: is empty; set one of json_schema, regex, lark")
    return Grammar(kind, getattr(message, kind))


def read_score_options(message: pb.ScoreParameters) -> ScoreOptions:
    """The record of a scoring's parameters, as they were sent."""
    return ScoreOptions(model=message.model, preset=message.preset, memory=dict(message.memory))


def read_piece(message: pb.PromptPiece) -> PromptPiece:
    """The record of a piece of a prompt. Token ids are not copied."""
    content: bytes | Sequence[int] | MessagePiece | None
    match message.WhichOneof("content"):
        case "text":
            content = message.text
        case "token_ids":
            content = message.token_ids.ids
        case "message":
            content = MessagePiece(message.message.role, message.message.content)
        case _:
            content = None
    return PromptPiece(content, message.ByteSize())


def generate_response(event: Progress | Token | Finished) -> pb.GenerateResponse:
    """The message of one event of a generation."""
    match event:
        case Progress():
            return pb.GenerateResponse(progress=_progress(event))
        case Token():
            top = [pb.TokenLogprob(token_id=token, logprob=value) for token, value in event.top_logprobs]
            return pb.GenerateResponse(
                token=pb.Token(
                    index=event.index,
                    token_id=event.token_id,
                    text=event.text,
                    logprob=event.logprob,
                    top_logprobs=top,
                )
            )
        case Finished():
            return pb.GenerateResponse(finished=_finished(event))


def score_response(event: Progress | PromptLogprobs | Finished) -> pb.ScoreResponse:
    """The message of one event of a scoring."""
    match event:
        case Progress():
            return pb.ScoreResponse(progress=_progress(event))
        case PromptLogprobs():
            return pb.ScoreResponse(logprobs=pb.PromptLogprobs(start=event.start, logprobs=event.logprobs))
        case Finished():
            return pb.ScoreResponse(finished=_finished(event))


def read_progress(message: pb.Progress) -> Progress:
    """The record of a Progress message."""
    return Progress(message.prefilled_tokens, message.total_tokens)


def read_token(message: pb.Token) -> Token:
    """The record of a Token message."""
    top = tuple((item.token_id, item.logprob) for item in message.top_logprobs)
    return Token(message.index, message.token_id, message.text, message.logprob, top)


def read_prompt_logprobs(message: pb.PromptLogprobs) -> PromptLogprobs:
    """The record of a PromptLogprobs message."""
    return PromptLogprobs(message.start, tuple(message.logprobs))


def read_finished(message: pb.Finished) -> Finished:
    """The record of a Finished message. Raises MoorageError for a reason that this version does not know."""
    reason = _REASON_NAMES.get(message.finish_reason)
    if reason is None:
        raise MoorageError(
            f"finish_reason {message.finish_reason} is unknown to this client; use the server's version"
        )
    return Finished(reason, _read_fields(Usage, message.usage))


def model(info: ModelInfo) -> pb.Model:
    """The message of a served model."""
    return pb.Model(
        name=info.name,
        family=info.family,
        dtype=info.dtype,
        vocab_size=info.vocab_size,
        max_seq_len_tokens=info.max_seq_len,
        preset=info.preset,
        has_chat_template=info.has_chat_template,
        eos_token_ids=info.eos_token_ids,
        default_sampling=pb.SamplingDefaults(**dataclasses.asdict(info.default_sampling)),
        trained_tokens=info.trained_tokens,
        reach_tokens=info.reach_tokens,
        warnings=info.warnings,
    )


def read_model(message: pb.Model) -> ModelInfo:
    """The record of a Model message."""
    return ModelInfo(
        name=message.name,
        family=message.family,
        dtype=message.dtype,
        vocab_size=message.vocab_size,
        max_seq_len=message.max_seq_len_tokens,
        preset=message.preset,
        has_chat_template=message.has_chat_template,
        eos_token_ids=tuple(message.eos_token_ids),
        default_sampling=_read_fields(SamplingDefaults, message.default_sampling)
        if message.HasField("default_sampling")
        else SamplingDefaults(),
        trained_tokens=message.trained_tokens,
        reach_tokens=_optional(message, "reach_tokens"),
        warnings=tuple(message.warnings),
    )


def status_response(status: ClusterStatus) -> pb.GetStatusResponse:
    """The message of a snapshot."""
    scalars = {name: getattr(status, name) for name in _STATUS_SCALARS if getattr(status, name) is not None}
    actors = [pb.KvActor(**dataclasses.asdict(actor)) for actor in status.kv_actors]
    waiting = [pb.WaitingRequest(**dataclasses.asdict(request)) for request in status.waiting_requests]
    running = [pb.RunningRequest(**dataclasses.asdict(request)) for request in status.running_requests]
    return pb.GetStatusResponse(
        model=model(status.model),
        kv_actors=actors,
        waiting_requests=waiting,
        running_requests=running,
        **scalars,
    )


def read_status(message: pb.GetStatusResponse) -> ClusterStatus:
    """The record of a GetStatusResponse."""
    return ClusterStatus(
        model=read_model(message.model),
        state=message.state,
        uptime_s=message.uptime_s,
        running=message.running,
        waiting=message.waiting,
        prefilling=message.prefilling,
        kv_actors=tuple(_read_fields(KvActorStatus, actor) for actor in message.kv_actors),
        worker_pids=tuple(message.worker_pids),
        prompt_tokens_total=message.prompt_tokens_total,
        generated_tokens_total=message.generated_tokens_total,
        cache_hit_rate=_optional(message, "cache_hit_rate"),
        recall=_optional(message, "recall"),
        step_part_s=dict(message.step_part_s),
        waiting_requests=tuple(_read_fields(WaitingRequest, one) for one in message.waiting_requests),
        running_requests=tuple(_read_fields(RunningRequest, one) for one in message.running_requests),
        idle_sessions=message.idle_sessions,
        failure=message.failure,
        failed_steps_total=message.failed_steps_total,
        attention_dtype=message.attention_dtype,
        link_bytes_total=message.link_bytes_total,
    )


def session(info: SessionInfo) -> pb.Session:
    """The message of a session."""
    present = {name: value for name, value in dataclasses.asdict(info).items() if value is not None}
    return pb.Session(**present)


def read_session(message: pb.Session) -> SessionInfo:
    """The record of a Session message."""
    return _read_fields(SessionInfo, message)


def _progress(event: Progress) -> pb.Progress:
    return pb.Progress(prefilled_tokens=event.prefilled_tokens, total_tokens=event.total_tokens)


def _finished(event: Finished) -> pb.Finished:
    present = {name: value for name, value in dataclasses.asdict(event.usage).items() if value is not None}
    return pb.Finished(finish_reason=_REASONS[event.finish_reason], usage=pb.Usage(**present))


def _read_fields(record: type[R], message: Message) -> R:
    """A dataclass whose fields are named as the message's.

    An absent optional field reads as None, and a repeated one as a tuple.
    """
    names = [field.name for field in dataclasses.fields(record)]  # type: ignore[arg-type]
    return record(**{name: _optional(message, name) for name in names})


def _optional(message: Message, name: str) -> Any:
    field = message.DESCRIPTOR.fields_by_name[name]
    if field.is_repeated:
        return tuple(getattr(message, name))
    return getattr(message, name) if not field.has_presence or message.HasField(name) else None
