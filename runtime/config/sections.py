"""The sections of `cluster.yaml`. A field that is None takes the value of the memory preset."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, Strict, field_validator, model_validator

from moorage.runtime.config.presets import check_preset_name
from moorage.runtime.config.types import (
    Bytes,
    Count,
    CountOrZero,
    CpuList,
    DirectoryPath,
    HostPort,
    Number,
    OnlyKvTypes,
    OnlySelectModes,
    PreselectChoice,
    RayAddress,
    Section,
    Text,
    Threads,
    Tokens,
    TokensOrAuto,
    TokensOrZero,
)
from moorage.workers.counting import counted
from moorage.workers.spec import (
    AnchorPool,
    AnchorSpace,
    AnchorType,
    HeadPool,
    HeadSelectMode,
    KvType,
    Positions,
    Preselect,
    Scorer,
)


class ModelSection(Section):
    """Which model is served."""

    path: DirectoryPath = Field(
        description="Directory of the model in the Hugging Face layout, relative to this file; required."
    )
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = Field(
        "auto", description="Type of weights and activations; auto is the checkpoint's own."
    )


class MemorySection(Section):
    """What a session attends: a preset, and single axes that differ from it."""

    preset: Text = Field("moorage", description="Named choice on all axes; `runtime presets` lists them.")
    positions: Positions | None = Field(
        None,
        description="Where a query sees keys: rope (each at its own position), clamped (beyond the local window all "
        "at local_windows_len - 1, as InfLLM), dca (within chunks, as Dual Chunk Attention) or rolling (only sinks "
        "and window, side by side, as StreamingLLM).",
    )
    exc_block_size: TokensOrZero | None = Field(
        None, description="Prompt tokens that share one choice of blocks; 0 prefills exactly, over all keys."
    )
    exc_last_alone: bool | None = Field(
        None,
        description="Whether the prompt's last token chooses for itself, as generated tokens do, and not with those "
        "before it.",
    )
    n_init: TokensOrZero | None = Field(
        None, description="Sink tokens at the start that are always attended, rounded up to whole blocks."
    )
    topk: CountOrZero | None = Field(
        None,
        description="Blocks chosen per layer and step, the same as long_context.second_select_num; 0 attends "
        "sinks and window alone.",
    )
    pretraining_length: Tokens | None = Field(
        None,
        description="Length the model was trained for, where positions depend on it (dca, dynamic NTK, yarn); "
        "default is the checkpoint's.",
    )
    dca_chunk: Tokens | None = Field(
        None,
        description="Tokens of one chunk of dca, a multiple of block_size; default is the checkpoint's "
        "dual_chunk_attention_config, else three quarters of pretraining_length.",
    )
    mscale: Annotated[Number, Field(ge=0, le=100)] | None = Field(
        None,
        description="Growth of dca's attention with the length L: q and k times max(1, mscale * ln(L / "
        "pretraining_length) + 1); 0 is off, ChunkLlama has 0.05. Default is the checkpoint's.",
    )
    rope_scaling: dict[str, Any] | None = Field(
        None,
        description="Rotary embedding in place of the checkpoint's, in transformers' words, such as "
        "{rope_type: yarn, factor: 4}.",
    )
    rope_scaling_factor: Annotated[Number, Field(gt=0, le=1e6)] | None = Field(
        None,
        description="LMDeploy's dynamic NTK in place of the checkpoint's scaling: base * (factor * L / max - "
        "(factor - 1)) ** (d / (d - 2)).",
    )
    session_len: Tokens | None = Field(
        None,
        description="L of dynamic NTK and longrope for every session; default is the prompt's length, and the "
        "current length while decoding.",
    )
    base: Annotated[Number, Field(gt=1, le=1e15)] | None = Field(
        None, description="Base of the rotary embedding in place of the checkpoint's (InfLLM)."
    )
    distance_scale: Annotated[Number, Field(ge=1e-6, le=1e6)] | None = Field(
        None, description="Factor on every position, such as 0.25 for a fourfold interpolation (InfLLM)."
    )
    rebase_every: Count = Field(
        16,
        description="Decode steps between two adoptions of the current length by dynamic NTK and mscale.",
    )
    head_pool: HeadPool | None = Field(
        None,
        description="How the scores of heads that share a choice are joined: sum, softmax or max.",
    )
    anchor_pool: AnchorPool | None = Field(
        None, description="How the scores of a block's anchors are joined: max or sum."
    )
    anchor_space: AnchorSpace | None = Field(
        None,
        description="Whether anchors are made of keys as stored (plain, as InfLLM) or rotated at their own "
        "positions (rotated, as ktransformers).",
    )
    repr_topk: Count | None = Field(
        None, description="Keys per block that REPR_TOPK anchors are means of; a multiple of anchor_num."
    )
    dense_until: TokensOrZero | None = Field(
        None,
        description="Contexts of at most this many tokens attend all blocks; default is 8192, or the trained length "
        "where that is shorter.",
    )
    importance_queries: Count | None = Field(
        None, description="Last prompt tokens whose attention decides DYNAMIC anchors and preselection."
    )
    lag: Annotated[int, Strict(), Field(ge=0, le=1)] | None = Field(
        None,
        description="1 attends in each step the blocks that the last step's query chose, so that a GPU computes "
        "while the next choice is made; 0 waits for each step's own.",
    )
    lag_cosine: Annotated[Number, Field(ge=-1, le=1)] | None = Field(
        None,
        description="With lag 1, a choice is made anew at once where the query of a head that shares it has a "
        "smaller cosine with the last step's; -1 never does, and never waits for a query.",
    )
    scorer: Scorer = Field(
        Scorer.NUMBA,
        description="What scores anchors: numba, or faiss or faiss-fp16 (extras, with a copy of all anchors).",
    )
    anchor_codes: bool = Field(
        True,
        description="Keep four-bit codes of the anchors, a quarter of their size, and score long contexts by them "
        "first: only the best blocks' anchors are then read in full.",
    )
    recall_every: CountOrZero = Field(
        32,
        description="Decode steps between two samples of recall, the share of exact attention mass that was "
        "attended; 0 never samples.",
    )
    max_cached_block: Count | None = Field(
        None, description="Device slots per session and layer for chosen blocks; default 2 * topk."
    )
    cache_strategy: Literal["lru", "fifo", "lru-s"] = Field(
        "lru",
        description="Which block leaves its device slot first: the longest unused, the oldest, or the one of the "
        "smallest decayed score (lru-s: score = score * score_decay + received attention, as InfLLM).",
    )
    score_decay: Number = Field(0.1, ge=0, le=1, description="Decay of lru-s from step to step.")

    @field_validator("preset")
    @classmethod
    def _known_preset(cls, name: str) -> str:
        return check_preset_name(name)


class LongContextSection(Section):
    """Chunks, blocks, anchors and selection, under the key names of ktransformers."""

    chunk_size: TokensOrAuto = Field(
        4096,
        description="Most prompt tokens of one prefill chunk; auto is on a GPU the least from 2K to 8K for which the "
        "past streams as fast as it is attended, by what is measured at the start, and 4096 elsewhere.",
    )
    max_seq_len: Tokens | None = Field(
        None,
        description="Most tokens of one session, prompt and generated together; default is the model's trained "
        "length, or up to 128K where positions reach further.",
    )
    block_size: Annotated[Tokens, Field(le=65536)] | None = Field(
        None, description="Tokens of one KV block, the unit of storage and of choice."
    )
    local_windows_len: Tokens | None = Field(
        None,
        description="Last tokens, the query included, that are always attended; they stay on the device.",
    )
    second_select_num: CountOrZero | None = Field(
        None, description="Blocks chosen per layer and step; 0 attends sinks and window alone."
    )
    threads_num: Threads | None = Field(
        None,
        description="CPU threads of all KV actors together, of which an actor uses at most one for each CPU; default "
        "is the host's CPU count.",
    )
    anchor_type: AnchorType | None = Field(
        None,
        description="How a block is summarised: by its BLOCK_MEAN, BLOCK_MAX, QUEST (per-channel minimum and "
        "maximum), QUEST_HADAMARD (the same of Hadamard-transformed keys), FIXED (its first key), DYNAMIC (the key "
        "that the prompt's end asks for most) or REPR_TOPK (the repr_topk keys that received most attention while "
        "in the window).",
    )
    kv_type: Annotated[KvType, OnlyKvTypes] = Field(
        KvType.FP16, description="Storage of keys and values: FP16, or FP32."
    )
    dense_layer_num: CountOrZero | None = Field(
        None, description="First layers that attend all blocks in decode."
    )
    anchor_num: Count | None = Field(
        None,
        description="Equal parts of a block that are summarised each on its own; must divide block_size.",
    )
    preselect_block: Annotated[Preselect, PreselectChoice] | None = Field(
        None,
        description="A coarse choice before the one of each step: off, prompt (or true: once, from the attention "
        "of the prompt's last queries), or step (each step by anchors; single keys then decide).",
    )
    head_select_mode: Annotated[HeadSelectMode, OnlySelectModes] | None = Field(
        None,
        description="One choice for all heads (SHARED), for each KV head (SEPARATE), or for each query head "
        "(PERHEAD, for research).",
    )
    preselect_block_count: Count | None = Field(
        None, description="Blocks that the preselection keeps in each layer."
    )
    layer_step: Count | None = Field(None, description="Consecutive layers that share one choice in decode.")
    token_step: Count | None = Field(None, description="Decode steps that share one choice.")


class KvStoreSection(Section):
    """DRAM that holds the KV cache."""

    actors: Annotated[Count, Field(le=1024)] = Field(
        2, description="KV actors (Ray processes) that share the cache."
    )
    dram: Bytes = Field(8 * 1024**3, description="DRAM of all KV actors together, such as 8GiB.")
    stripe_blocks: Count = Field(
        8, description="Consecutive blocks that one actor holds before the next one follows."
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


class GpuWorkersSection(Section):
    """Processes that run the model."""

    count: Count = Field(1, description="GPU workers; this version runs one.")
    device: Literal["auto", "cuda", "cpu"] = Field(
        "auto", description="Where the model runs; auto is cuda when there is one, else cpu."
    )
    device_memory: Bytes | None = Field(
        None,
        description="Most device memory for weights, slots and workspace, such as 20GiB; default unlimited.",
    )
    score_on: Literal["auto", "cpu", "device"] = Field(
        "auto",
        description="Where anchors are scored for generated tokens: cpu, by the KV actors; device, on copies in what "
        "device_memory leaves; auto tries both on a GPU and keeps the faster.",
    )
    attend_on: Literal["device", "cpu"] = Field(
        "device",
        description="Where generated tokens attend chosen blocks that the GPU does not hold: device fetches "
        "them; cpu attends them in DRAM meanwhile, and fetches a block once it is chosen twice in a row, which pays "
        "where the link is slower than the CPU.",
    )
    dma_bytes: Bytes | None = Field(
        None,
        description="Pieces of at least this size, such as 256KiB, reach a GPU by DMA copies, smaller ones by a "
        "kernel that reads pinned memory; default is measured at the start.",
    )
    prefetch: bool = Field(
        False,
        description="While a layer computes on a GPU, begin to fetch the blocks that the next layer attended last.",
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
    """The gRPC server."""

    grpc: HostPort = Field("127.0.0.1:50051", description="HOST:PORT to listen on; port 0 takes a free one.")
    max_message_bytes: Annotated[Bytes, Field(ge=2 * 1024**2, le=2**31 - 1)] = Field(
        4 * 1024**2,
        description="Largest message the server takes, at least 2MiB; long prompts come in pieces.",
    )
    max_running: Count = Field(
        8, description="Most sessions that run at once; device slots are reserved for them."
    )
    max_queued_requests: Count = Field(
        64, description="Most requests that wait; more are refused with RESOURCE_EXHAUSTED."
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
