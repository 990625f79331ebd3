"""Every record survives the way over the wire."""

from __future__ import annotations

import dataclasses

import pytest

from moorage.proto.v1 import moorage_pb2 as pb
from moorage.runtime.api.grpc import codec
from moorage.runtime.serving.protocol import (
    ClusterStatus,
    Finished,
    ModelInfo,
    Progress,
    PromptLogprobs,
    Token,
)
from moorage.runtime.serving.status_records import KvActorStatus, RunningRequest, WaitingRequest
from moorage.runtime.serving.usage import Usage
from moorage.workers.errors import MoorageError
from moorage.workers.hf_generation import SamplingDefaults

FULL_USAGE = Usage(
    9,
    4,
    3,
    0.5,
    1.5,
    6.0,
    7.0,
    8.0,
    1 << 40,
    2.5,
    4096,
    0.75,
    0.125,
    0.25,
    7,
    9,
    8,
    0.5,
    768.0,
    ("block_size 64, not 128",),
)
BARE_USAGE = Usage(9, 4, 3, 0.5, None, None, None, 8.0, 0, None, 0, None)
MODEL = ModelInfo(
    *("pilot", "llama", "float16", 2048, 1 << 20, "full"),
    has_chat_template=True,
    eos_token_ids=(2, 7),
    default_sampling=SamplingDefaults(0.5, 20, 0.75, 0.125, 1.25),
    trained_tokens=8192,
    reach_tokens=16384,
    warnings=("a", "b"),
)


@pytest.mark.parametrize("usage", [FULL_USAGE, BARE_USAGE, dataclasses.replace(FULL_USAGE, recall=0.0)])
@pytest.mark.parametrize("reason", ["stop", "length", "cancelled"])
def test_finished(usage: Usage, reason: str) -> None:
    event = Finished(reason, usage)
    assert codec.read_finished(codec.generate_response(event).finished) == event
    assert codec.read_finished(codec.score_response(event).finished) == event


def test_events() -> None:
    token = Token(3, 17, "é", -0.5, ((17, -0.5), (4, -1.25)))
    progress = Progress(5, 1 << 20)
    logprobs = PromptLogprobs(1, (-0.5, -2.0))
    assert codec.read_token(codec.generate_response(token).token) == token
    assert codec.read_progress(codec.generate_response(progress).progress) == progress
    assert codec.read_progress(codec.score_response(progress).progress) == progress
    assert codec.read_prompt_logprobs(codec.score_response(logprobs).logprobs) == logprobs


@pytest.mark.parametrize("rate", [None, 0.0, 0.5])
def test_status(rate: float | None) -> None:
    actors = (KvActorStatus("kv-0", 7, 1 << 36, 1 << 37, 2), KvActorStatus("kv-1", 8, 0, 1 << 37, 0))
    waiting = (WaitingRequest("a1", 1 << 20, 2.5, "memory", "needs 3 GiB", rate),)
    status = ClusterStatus(
        *(MODEL, "failed", 1.5, 1, 2, 1, actors, (5, 6), 10, 20, rate, rate, {"linear": 0.5}),
        waiting_requests=waiting,
        idle_sessions=3,
        failure="the worker is gone",
        failed_steps_total=4,
        attention_dtype="bfloat16",
        link_bytes_total=1 << 40,
        running_requests=(RunningRequest("b2", 7, 1 << 20, 1 << 19, 3),),
    )
    assert codec.read_status(codec.status_response(status)) == status
    unlimited = dataclasses.replace(MODEL, reach_tokens=None, warnings=())
    assert codec.read_model(codec.model(unlimited)) == unlimited


def test_every_field_of_a_record_is_in_its_message() -> None:
    for record, message in (
        (Usage, pb.Usage),
        (KvActorStatus, pb.KvActor),
        (WaitingRequest, pb.WaitingRequest),
        (RunningRequest, pb.RunningRequest),
        (ClusterStatus, pb.GetStatusResponse),
        (SamplingDefaults, pb.SamplingDefaults),
    ):
        assert {field.name for field in dataclasses.fields(record)} == set(message.DESCRIPTOR.fields_by_name)


def test_a_server_that_tells_no_defaults_reads_as_plain_ones() -> None:
    assert codec.read_model(pb.Model(name="old")).default_sampling == SamplingDefaults()


def test_unknown_reason_is_refused() -> None:
    with pytest.raises(MoorageError, match="unknown"):
        codec.read_finished(pb.Finished(usage=pb.Usage()))
