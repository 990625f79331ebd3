"""The configuration of a cluster: every section of `cluster.yaml`, and all of it."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, field_validator, model_validator

from moorage.runtime.config.declared import DeclaredSection, with_settings
from moorage.runtime.config.presets import check_preset_name
from moorage.runtime.config.types import (
    Bytes,
    Collector,
    Count,
    CpuList,
    DirectoryPath,
    FileOrNone,
    FilePath,
    HostPort,
    HttpAddress,
    RayAddress,
    Seconds,
    Section,
    Text,
    Threads,
    Tokens,
    TokensOrAuto,
)
from moorage.workers.counting import counted
from moorage.workers.spec import ExpertsPlace, WeightKind

CPU_CHUNK = 4096
"""An automatic chunk_size on a CPU."""


class ModelSection(Section):
    """Which model is served."""

    path: DirectoryPath = Field(
        description="Directory of the model in the Hugging Face layout, or GGUF file (any part of a split one); "
        "relative to this file; required."
    )
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = Field(
        "auto", description="Type of weights and activations; auto is the checkpoint's own."
    )
    weights: WeightKind = Field(
        WeightKind.AUTO,
        description="How matrices are kept: auto as the checkpoint holds them; float in the type of activations; "
        "int8 or int4 quantised at load, in groups of 32 channels, where the checkpoint holds floats. Under int4 "
        "embeddings and head have 8 bits.",
    )
    experts: ExpertsPlace = Field(
        ExpertsPlace.DEVICE,
        description="Where the weights of a mixture of experts lie: device, or host, for models that a GPU does not "
        "hold. The CPU then computes the experts of generated tokens, and a prompt streams them to the GPU "
        "(llama.cpp's --cpu-moe). On a CPU both mean the same.",
    )


@with_settings("memory")
class MemorySection(DeclaredSection):
    """What a session attends: a preset, and single axes that differ from it."""

    preset: Annotated[Text, AfterValidator(check_preset_name)] = Field(
        "moorage", description="Named choice on all axes; `runtime presets` lists them."
    )


@with_settings("long_context")
class LongContextSection(DeclaredSection):
    """Chunks, blocks, anchors and selection, under the key names of ktransformers."""

    chunk_size: TokensOrAuto = Field(
        4096,
        description="Most prompt tokens of one prefill chunk; auto is on a GPU the least from 2K to 8K for which the "
        "past streams as fast as it is attended, by what is measured at the start, and 4096 elsewhere.",
    )
    max_seq_len: Tokens | None = Field(
        None,
        description="Most tokens of one session, prompt and generated together; default is what the checkpoint or "
        "its model card promises, or up to 128K where positions reach further.",
    )
    threads_num: Threads | None = Field(
        None,
        description="CPU threads of all KV actors together, of which an actor uses at most one for each CPU; default "
        "is the host's CPU count.",
    )


class KvStoreSection(Section):
    """DRAM that holds the KV cache."""

    actors: Annotated[Count, Field(le=1024)] = Field(
        2, description="KV actors (Ray processes) that share the cache."
    )
    dram: Bytes = Field(8 * 1024**3, description="DRAM of all KV actors together, such as 8GiB.")
    stripe_blocks: Count = Field(
        8, description="Consecutive blocks that one actor holds before the next one follows."
    )
    quantizer: FilePath | None = Field(
        None,
        description="File of `runtime calibrate`, by which kv_type NUQ4, NUQ3 or NUQ2 packs keys and values; "
        "relative to this file. Without one they take levels of a normal distribution, and statistics of each block.",
    )
    cpus: list[CpuList] | None = Field(
        None,
        description="CPUs of each actor's threads, such as [0-15, 16-31] for the two NUMA nodes of a host; an "
        "actor's memory is then taken at its start, from the node of its CPUs.",
    )

    @model_validator(mode="after")
    def _a_list_for_each_actor(self) -> Self:
        if self.cpus is not None and len(self.cpus) != self.actors:
            raise ValueError(
                f"cpus has {counted(len(self.cpus), 'list')} for {counted(self.actors, 'actor')}; give one for each"
            )
        return self


@with_settings("gpu_workers")
class GpuWorkersSection(DeclaredSection):
    """Processes that run the model."""

    count: Count = Field(1, description="GPU workers; this version runs one.")
    device: Literal["auto", "cuda", "cpu"] = Field(
        "auto", description="Where the model runs; auto is cuda when there is one, else cpu."
    )
    device_memory: Bytes | None = Field(
        None,
        description="Most device memory for weights, slots and workspace, such as 20GiB; default unlimited.",
    )
    num_threads: Threads | None = Field(
        None, description="CPU threads of the worker's linear layers; default is every core that it may use."
    )

    @field_validator("count")
    @classmethod
    def _one_worker(cls, count: int) -> int:
        if count > 1:
            raise ValueError("several GPU workers are not available in this version; use 1")
        return count


class SchedulerSection(Section):
    """How a step's tokens are shared."""

    max_step_tokens: Tokens | None = Field(
        None, description="Most tokens of one step over all sessions; default is long_context.chunk_size."
    )
    decode_prefill_tokens: Tokens = Field(
        512,
        description="Most prompt tokens of a step in which others decode, so that their tokens keep flowing.",
    )


class ServerSection(Section):
    """The gRPC and the HTTP server."""

    grpc: HostPort = Field("127.0.0.1:50051", description="HOST:PORT to listen on; port 0 takes a free one.")
    http: HttpAddress = Field(
        "auto",
        description="HOST:PORT of the HTTP server, or off; auto is 127.0.0.1:8000, or a free port where that one is "
        "in use, if the packages of moorage[http] are installed.",
    )
    keys: FileOrNone | None = Field(
        None,
        description="File of API keys that `runtime key add` makes; every request then needs one, but those for "
        "health and version. none lets in whoever reaches the server. Without either, an address that other hosts "
        "reach is refused.",
    )
    tls_cert: FilePath | None = Field(
        None, description="Certificate of both servers, in PEM form; clients then connect by TLS."
    )
    tls_key: FilePath | None = Field(None, description="Private key of tls_cert, in PEM form.")
    tls_client_ca: FilePath | None = Field(
        None, description="Certificates of authorities; only clients with a certificate of theirs are let in."
    )
    tool_parser: Literal[
        "auto",
        "deepseek_v3",
        "deepseek_v31",
        "hermes",
        "llama3_json",
        "mistral",
        "openai",
        "qwen3_coder",
        "json",
    ] = Field(
        "auto",
        description="Format in which the model writes tool calls; auto reads it from the chat template.",
    )
    reasoning_parser: Literal[
        "auto",
        "none",
        "deepseek_r1",
        "deepseek_v3",
        "glm45",
        "kimi_k2",
        "mistral",
        "openai_gptoss",
        "qwen3",
    ] = Field(
        "auto",
        description="Format in which the model writes its reasoning, which HTTP answers have apart from their text; "
        "auto reads it from the chat template, none leaves it in the text.",
    )
    otlp: Collector | None = Field(
        None,
        description="Address of an OpenTelemetry collector that takes OTLP by gRPC, such as 127.0.0.1:4317; it gets "
        "a trace of each request, with ids and counts and no text. Needs the packages of moorage[otlp].",
    )
    max_message_bytes: Annotated[Bytes, Field(ge=2 * 1024**2, le=2**31 - 1)] = Field(
        4 * 1024**2,
        description="Largest message the server takes, at least 2MiB; long prompts come in pieces.",
    )
    max_running: Count = Field(
        8, description="Most sessions that run at once; device slots are reserved for them."
    )
    max_queued_requests: Count = Field(
        64, description="Most requests of a tenant that wait; more are refused with RESOURCE_EXHAUSTED."
    )
    max_wait: Seconds | None = Field(
        None,
        description="Longest time that a request may expect to wait by the measured speed, such as 30s or 10min; one "
        "that would wait longer is refused at once, and told when to try again. The delay by prompts that are "
        "prefilled at the same time counts as well. Default unlimited.",
    )


class SessionsSection(Section):
    """Named sessions whose KV stays between requests."""

    ttl: Seconds | None = Field(
        None,
        description="A session that no request used for so long is dropped unless it is pinned, such as 30min, 12h "
        "or 7d; default is never. Sessions are also dropped when others need their memory.",
    )
    prefixes: bool = Field(
        True,
        description="Requests use the KV of any session of their tenant that begins as their prompt does, and the KV "
        "of requests without a session stays for others until its memory is needed.",
    )
    path: DirectoryPath | None = Field(
        None,
        description="Folder of saved sessions, relative to this file; default saves none. All KV actors must see "
        "it.",
    )
    save_after: Seconds | None = Field(
        None,
        description="A named session that no request used for so long is saved by itself, such as 10min, and the "
        "others when the server stops; default saves only what is asked for. Needs path.",
    )
    max_bytes: Bytes | None = Field(
        None,
        description="Most bytes of all saved sessions, such as 500GB; those saved first are removed for others. "
        "Default unlimited.",
    )
    quota: Bytes | None = Field(
        None,
        description="DRAM that the idle sessions of one tenant may hold together, such as 64GiB; beyond it those "
        "unused for longest are dropped unless they are pinned. Default unlimited.",
    )


class RaySection(Section):
    """The Ray cluster that the processes run in."""

    address: RayAddress = Field(
        "local", description="local starts a private cluster; auto or HOST:PORT joins a running one."
    )
    namespace: Annotated[Text, Field(min_length=1, max_length=255)] = Field(
        "moorage", description="Ray namespace of the named actors."
    )
    object_store_memory: Annotated[Bytes, Field(ge=80 * 1024**2)] = Field(
        256 * 1024**2, description="Ray's object store on each host of a private cluster, at least 80MiB."
    )


class ClusterConfig(Section):
    """All of `cluster.yaml`."""

    model: ModelSection = Field(description="Which model is served.")
    memory: MemorySection = Field(default=MemorySection(), description="What a session attends.")
    long_context: LongContextSection = Field(
        default=LongContextSection(),
        description="Chunks, blocks, anchors and selection, under the key names of ktransformers.",
    )
    kv_store: KvStoreSection = Field(default=KvStoreSection(), description="DRAM that holds the KV cache.")
    gpu_workers: GpuWorkersSection = Field(
        default=GpuWorkersSection(), description="Processes that run the model."
    )
    scheduler: SchedulerSection = Field(
        default=SchedulerSection(), description="How a step's tokens are shared."
    )
    server: ServerSection = Field(default=ServerSection(), description="The gRPC and the HTTP server.")
    sessions: SessionsSection = Field(
        default=SessionsSection(), description="Named sessions whose KV stays between requests."
    )
    ray: RaySection = Field(default=RaySection(), description="The Ray cluster that the processes run in.")

    @property
    def max_step_tokens(self) -> int:
        """Most tokens of one step; under an automatic chunk_size, where there is no GPU to measure."""
        chunk = self.long_context.chunk_size
        return self.scheduler.max_step_tokens or (chunk if isinstance(chunk, int) else CPU_CHUNK)
