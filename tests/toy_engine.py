"""An engine that fits in one file: its tokens are bytes, and it answers a prompt with the prompt itself."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import json
from array import array
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any

from moorage.runtime.serving.block_shares import BlockShares
from moorage.runtime.serving.health import ClusterHealth
from moorage.runtime.serving.protocol import (
    ClusterStatus,
    Event,
    Finished,
    GenerateParams,
    ModelInfo,
    Progress,
    PromptLogprobs,
    ScoreParams,
    Token,
)
from moorage.runtime.serving.request_totals import RequestTotals
from moorage.runtime.serving.sessions.records import SessionInfo
from moorage.runtime.serving.status_records import KvActorStatus
from moorage.runtime.serving.tenant_limits import NO_LIMITS, TenantLimits
from moorage.runtime.serving.trace_context import trace_of_caller
from moorage.runtime.serving.usage import Usage
from moorage.runtime.text import jobs
from moorage.runtime.text.body import Body, read_all
from moorage.runtime.text.chat_extra import ChatExtra
from moorage.runtime.text.grammar import Grammars
from moorage.runtime.text.reasoning import ReasoningUse
from moorage.runtime.text.tools.formats import FORMATS, ToolUse
from moorage.workers.errors import (
    FailedPrecondition,
    InvalidRequest,
    MoorageError,
    NotFound,
    ResourceExhausted,
)
from moorage.workers.hf_generation import SamplingDefaults

BOS = 256
VOCAB_SIZE = 260
SECRET = "a prompt that nobody may log"


class ByteTokenizer:
    """One token a byte, after BOS."""

    source = "tokenizer.json"
    chat_template_source = "chat_template.jinja"

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return [BOS] * add_special_tokens + list(text.encode())

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        return bytes(t for t in token_ids if t < BOS or not skip_special_tokens).decode(errors="replace")

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        parse_special: bool = False,
        said: Mapping[int, Sequence[int]] | None = None,
        tools: Sequence[Mapping[str, Any]] = (),
        **values: Any,
    ) -> list[int]:
        """Each message with its role, and with what else it has as JSON; other values after them.

        With the value `open` the prompt begins the reasoning.
        """
        begin = "{" if parse_special else "<"
        ids = list("".join(f"[{json.dumps(tool['function'])}]" for tool in tools).encode())
        for place, message in enumerate(messages):
            more = {name: value for name, value in message.items() if name not in ("role", "content")}
            content = message["content"] + (json.dumps(more) if more else "")
            ids += f"{begin}{message['role']}>".encode()
            ids += (said or {}).get(place, content.encode())
        if values:
            ids += json.dumps(values).encode()
        return ids + list(b"<think>\n" if values.get("open") else b"")


class ToyText:
    """What the text process does, done at once by a `ByteTokenizer`."""

    max_bytes_per_token = 16

    def __init__(self, tokenizer: ByteTokenizer) -> None:
        self._tokenizer = tokenizer
        self.tool_use: ToolUse | None = ToolUse(FORMATS["hermes"])
        self.reasoning: ReasoningUse | None = None

    async def encode(self, field: str, text: Body, *, add_special_tokens: bool = True) -> array[int]:
        options = {"field": field, "add_special_tokens": add_special_tokens}
        return array("I", jobs.encode(self._tokenizer, read_all(text.fd), options))

    async def encode_chat(
        self,
        contents: Body,
        messages: Sequence[tuple[str, int]],
        *,
        parse_special: bool = False,
        extra: ChatExtra = jobs.NO_EXTRA,
    ) -> array[int]:
        layout = jobs.chat_layout(messages, extra)
        contents.append(layout)
        options = {"layout_bytes": len(layout), "parse_special": parse_special}
        return array("I", jobs.encode_chat(self._tokenizer, read_all(contents.fd), options))

    async def decode(self, token_ids: Sequence[int]) -> str:
        return self._tokenizer.decode(token_ids)

    def spelling(self, token_id: int) -> str:
        return self._tokenizer.decode([token_id])

    async def close(self) -> None: ...


class ToySessions:
    """Sessions as clients see them; `busy` is in use."""

    def __init__(self) -> None:
        self.held = {
            name: SessionInfo(name, "idle", 40, 1 << 20, last_used_s=5.0) for name in ("busy", "talk")
        }

    async def list(self, tenant: str = "") -> tuple[SessionInfo, ...]:
        assert not tenant
        return tuple(self.held.values())

    async def delete(self, name: str, tenant: str = "") -> None:
        self._unused(name, tenant)
        del self.held[name]

    async def rename(self, name: str, new_name: str, tenant: str = "") -> SessionInfo:
        renamed = dataclasses.replace(self._unused(name, tenant), name=new_name)
        del self.held[name]
        self.held[new_name] = renamed
        return self.held[new_name]

    async def fork(self, name: str, new_name: str, tenant: str = "") -> SessionInfo:
        held = self._unused(name, tenant)
        self.held[new_name] = dataclasses.replace(held, name=new_name, shared_bytes=held.dram_bytes)
        return self.held[new_name]

    async def save(self, name: str, tenant: str = "") -> SessionInfo:
        self.held[name] = dataclasses.replace(self._unused(name, tenant), saved_bytes=1 << 21)
        return self.held[name]

    async def wake(self, name: str | None, tenant: str = "") -> None: ...

    async def load(self, name: str, tenant: str = "") -> SessionInfo:
        assert not tenant
        if name == "damaged":
            raise InvalidRequest("blocks-0.safetensors: checksum: the file is not what was saved")
        self.held[name] = SessionInfo(name, "idle", 50, 1 << 20, saved_bytes=1 << 21)
        return self.held[name]

    async def pin(self, name: str, pinned: bool = True, tenant: str = "") -> SessionInfo:
        self.held[name] = dataclasses.replace(self._unused(name, tenant), pinned=pinned)
        return self.held[name]

    def _unused(self, name: str, tenant: str) -> SessionInfo:
        assert not tenant
        if name == "busy":
            raise FailedPrecondition("session: 'busy' is in use by a request; wait for its end")
        if name not in self.held:
            raise NotFound(f"session: {name!r} is not held here; list those that are")
        return self.held[name]


class ToyEngine:
    """Keeps the interface of the coordinator. `endless` sessions go on until they are closed."""

    def __init__(self, max_seq_len: int = 4096, step_s: float = 0.0, has_chat_template: bool = True) -> None:
        self.tokenizer = ByteTokenizer()
        self.text = ToyText(self.tokenizer)
        self.health = ClusterHealth()
        self.request_totals = RequestTotals()
        self.failed_with: list[MoorageError] = []
        self.max_seq_len, self.step_s = max_seq_len, step_s
        self.has_chat_template = has_chat_template
        self.default_sampling = SamplingDefaults()
        self.started = asyncio.Event()
        self.ended = asyncio.Event()
        self.seen: list[GenerateParams | ScoreParams] = []
        self.traces: list[Mapping[str, str]] = []
        """Of each generation, what its client said of its trace."""
        self.closed = False
        self.says: str | None = None
        """An answer in ASCII that it gives instead of the prompt, and ends by itself."""
        self.sessions = ToySessions()
        self.overloaded = False
        """Whether no request is taken, whatever it asks."""
        self.checked: list[tuple[str, TenantLimits]] = []
        """Tenants of the requests that came, and their limits, in order."""

    @property
    def grammars(self) -> Grammars:
        raise InvalidRequest("grammar: the toy engine follows none")

    def model_info(self) -> ModelInfo:
        return ModelInfo(
            "toy",
            "llama",
            "float32",
            VOCAB_SIZE,
            self.max_seq_len,
            "full",
            has_chat_template=self.has_chat_template,
            eos_token_ids=(BOS,),
            default_sampling=self.default_sampling,
        )

    def check_load(self, tenant: str = "", limits: TenantLimits = NO_LIMITS) -> None:
        self.checked.append((tenant, limits))
        if self.overloaded:
            raise ResourceExhausted("64 requests wait already; try again", retry_after_s=1.5)

    def generate(self, params: GenerateParams) -> AsyncGenerator[Event]:
        self.seen.append(params)
        self.traces.append(trace_of_caller())
        self._admit(params.prompt, params.preset)
        return self._generated(params)

    async def _generated(self, params: GenerateParams) -> AsyncGenerator[Event]:
        self.started.set()
        try:
            yield Progress(len(params.prompt) // 2, len(params.prompt))
            yield Progress(len(params.prompt), len(params.prompt))
            if params.prompt_logprobs:
                yield self._prompt_logprobs(1, params.prompt[1:])
            endless = params.session == "endless"
            said = params.prompt if self.says is None else self.says.encode()
            answer = [t for t in said if t != BOS] if not endless else itertools.repeat(65)
            index = 0
            for index, token in enumerate(
                itertools.islice(answer, None if endless else params.max_new_tokens)
            ):
                await asyncio.sleep(self.step_s)
                alternatives = tuple((token + i, -0.5 - i) for i in range(params.sampling.num_logprobs))
                yield Token(index, token, chr(token), -0.5, alternatives)
            whole = self.says is not None and len(self.says) <= params.max_new_tokens
            usage = self._usage(len(params.prompt), index + 1)
            attention = BlockShares(16, (0.75, 0.25)) if params.inspect else None
            yield Finished("stop" if whole else "length", usage, attention=attention)
        finally:
            self.ended.set()

    def score(self, params: ScoreParams) -> AsyncGenerator[Event]:
        self.seen.append(params)
        self._admit(params.tokens, params.preset)
        return self._scored(params)

    async def _scored(self, params: ScoreParams) -> AsyncGenerator[Event]:
        for start in range(1, len(params.tokens), 1000):
            part = params.tokens[start : start + 1000]
            yield self._prompt_logprobs(start, part)
            yield Progress(start + len(part), len(params.tokens))
        yield Finished("length", self._usage(len(params.tokens), 0))

    def _prompt_logprobs(self, start: int, tokens: Sequence[int]) -> PromptLogprobs:
        """The likeliest token is always BOS, twice as likely in its logarithm as the given one."""
        logprobs = tuple(-token / VOCAB_SIZE for token in tokens)
        return PromptLogprobs(start, logprobs, tuple((BOS, logprob / 2) for logprob in logprobs))

    async def status(self) -> ClusterStatus:
        return ClusterStatus(
            model=self.model_info(),
            state="serving",
            uptime_s=1.5,
            running=1,
            waiting=2,
            prefilling=0,
            kv_actors=(KvActorStatus("kv-0", 11, 1 << 33, 1 << 34, 3),),
            worker_pids=(12,),
            prompt_tokens_total=7,
            generated_tokens_total=8,
            cache_hit_rate=None,
            recall=0.75,
            step_part_s={"linear": 0.25},
            link_bytes_total=5 << 30,
        )

    def fail_requests(self, error: MoorageError) -> None:
        self.failed_with.append(error)

    async def close(self) -> None:
        self.closed = True

    def _admit(self, prompt: Sequence[int], preset: str | None) -> None:
        if preset == "unheard-of":
            raise InvalidRequest("preset: 'unheard-of' is unknown; use full")
        if preset == "busy":
            raise ResourceExhausted("64 requests wait already; try again", retry_after_s=1.5)
        if preset == "broken":
            raise ZeroDivisionError(bytes(t for t in prompt if t < BOS).decode())

    def _usage(self, prompt_tokens: int, completion_tokens: int) -> Usage:
        return Usage(prompt_tokens, 0, completion_tokens, 0.0, 0.01, None, 50.0, 0.5, 1 << 20, 2.5, 0, None)
