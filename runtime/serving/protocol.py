"""Records: what clients ask (`…Options` as sent, `…Params` once `api/validation.py` judged it), events, status."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from moorage.runtime.serving.block_shares import BlockShares
from moorage.runtime.serving.status_records import KvActorStatus, RunningRequest, WaitingRequest
from moorage.runtime.serving.tenant_limits import NO_LIMITS, TenantLimits
from moorage.runtime.serving.usage import Usage
from moorage.runtime.text.grammar import Grammar, Guide
from moorage.workers.hf_generation import SamplingDefaults
from moorage.workers.spec import SamplingSpec


@dataclass(frozen=True, slots=True)
class SamplingOptions:
    """How a client wants tokens drawn. None takes the model's own default, and draws a seed."""

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int | None = None
    num_logprobs: int = 0


@dataclass(frozen=True, slots=True)
class GenerateOptions:
    """A generation as a client asks for it. Empty names stand for the defaults of the server."""

    model: str = ""
    max_new_tokens: int | None = None
    ignore_eos: bool = False
    stop: tuple[str, ...] = ()
    preset: str = ""
    session: str = ""
    sampling: SamplingOptions = SamplingOptions()
    parse_special: bool = False  # reads special tokens that are spelled in chat messages
    memory: Mapping[str, str] = field(default_factory=dict)
    """Settings of memory by their keys in a cluster file, in YAML."""
    grammar: Grammar | None = None
    inspect: bool = False


@dataclass(frozen=True, slots=True)
class ScoreOptions:
    """A scoring as a client asks for it."""

    model: str = ""
    preset: str = ""
    memory: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class MessagePiece:
    """Part of a chat message; with an empty role it goes on with the message before it."""

    role: str
    content: bytes


@dataclass(frozen=True, slots=True)
class PromptPiece:
    """A piece of a prompt: text in UTF-8, token ids or a chat message. None is an empty piece."""

    content: bytes | Sequence[int] | MessagePiece | None
    num_bytes: int  # as it was sent


@dataclass(frozen=True, slots=True)
class GenerateParams:
    """One generation. `prompt` is token ids, already checked against the vocabulary."""

    prompt: Sequence[int]
    sampling: SamplingSpec = SamplingSpec()
    max_new_tokens: int = 256
    ignore_eos: bool = False
    stop: tuple[str, ...] = ()
    preset: str | None = None
    """Another preset than the cluster's, on the same stored cache."""
    inspect: bool = False  # reports the attention mass on each block
    memory: Mapping[str, str] = field(default_factory=dict)
    """Settings of memory that stand above the preset, by their keys in a cluster file, in YAML."""
    session: str | None = None
    """Name of a session to continue; its KV stays after the request."""
    tenant: str = ""
    """Whose session it is, as the front end knows."""
    limits: TenantLimits = NO_LIMITS  # of its API key
    request_id: str = ""
    """Names the request in the log and in the status; drawn when empty."""
    prompt_logprobs: bool = False  # also scores the prompt, all of which is then prefilled, without a session
    grammar: Grammar | None = None
    """What the answer must follow."""
    guide: Guide | None = None
    """The grammar for this answer, compiled by `Grammars`; needed with `grammar`."""
    shown_special: frozenset[int] = (
        frozenset()
    )  # special tokens that the text has: those that mark tool calls


@dataclass(frozen=True, slots=True)
class ScoreParams:
    """Log-likelihood of `tokens`, each given those before it."""

    tokens: Sequence[int]
    preset: str | None = None
    memory: Mapping[str, str] = field(default_factory=dict)
    request_id: str = ""
    tenant: str = ""
    limits: TenantLimits = NO_LIMITS


@dataclass(frozen=True, slots=True)
class Progress:
    """Prefill went on."""

    prefilled_tokens: int
    total_tokens: int


@dataclass(frozen=True, slots=True)
class Token:
    """One generated token. `text` may be empty while a character is incomplete."""

    index: int
    token_id: int
    text: str
    logprob: float
    top_logprobs: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class PromptLogprobs:
    """Log-probabilities of consecutive prompt tokens, from position `start` (1 at first: token 0 has none)."""

    start: int
    logprobs: tuple[float, ...]
    likeliest: tuple[tuple[int, float], ...] = ()  # the likeliest token at each of these positions


@dataclass(frozen=True, slots=True)
class Finished:
    """The last event of a request. finish_reason: stop, length or cancelled."""

    finish_reason: str
    usage: Usage
    stop_string: str | None = None  # the one that ended the text
    attention: BlockShares | None = None  # where the answer looked, if that was asked for


Event = Progress | Token | PromptLogprobs | Finished


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A served model."""

    name: str
    family: str
    dtype: str
    vocab_size: int
    max_seq_len: int
    preset: str
    has_chat_template: bool = False
    """Whether a prompt may be chat messages."""
    eos_token_ids: tuple[int, ...] = ()
    """Tokens that end a generation."""
    default_sampling: SamplingDefaults = SamplingDefaults()
    """What a request gets where it is silent."""
    trained_tokens: int = 0
    """Tokens that the model was trained for; 0 when it is not known."""
    reach_tokens: int | None = None
    """Tokens that the positions of the cluster's preset reach; None reaches any length."""
    warnings: tuple[str, ...] = ()
    """What users should know of the settings, one line each."""


@dataclass(frozen=True, slots=True)
class ClusterStatus:
    """A snapshot of the cluster."""

    model: ModelInfo
    state: str
    """starting, serving, not serving (see `failure`), failed or stopping."""
    uptime_s: float
    running: int
    waiting: int
    prefilling: int
    kv_actors: tuple[KvActorStatus, ...]
    worker_pids: tuple[int, ...]
    prompt_tokens_total: int
    generated_tokens_total: int
    cache_hit_rate: float | None
    recall: float | None
    step_part_s: dict[str, float] = field(default_factory=dict)
    waiting_requests: tuple[WaitingRequest, ...] = ()  # in the expected order of admission
    idle_sessions: int = 0
    """Sessions, with a name or without, whose KV stays in DRAM while no request uses it."""
    failure: str = ""
    """What keeps the cluster from serving, in one line."""
    failed_steps_total: int = 0
    running_requests: tuple[RunningRequest, ...] = ()  # in order of admission
    attention_dtype: str = ""
    """The type in which workers attend prompts."""
    link_bytes_total: int = 0  # of blocks that were copied from the KV actors' memory to the device
