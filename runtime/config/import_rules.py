"""How the keys of ktransformers, InfLLM and LMDeploy become those of a cluster file, or a note that says why not."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from moorage.runtime.config.names import WORDS
from moorage.workers.spec import KvType

Values = Mapping[str, Any]
ANCHOR_TYPES = ("BLOCK_MEAN", "BLOCK_MAX", "QUEST", "FIXED", "DYNAMIC")


@dataclass(slots=True)
class Imported:
    """A configuration in sections, and what did not fit into it."""

    system: str
    """ktransformers, InfLLM or LMDeploy."""
    sections: dict[str, dict[str, Any]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    """One line for each key that was left out or changed: the key, and why."""

    def put(self, target: str, value: Any) -> None:
        """Sets `section.key`."""
        section, key = target.split(".")
        self.sections.setdefault(section, {})[key] = value


Special = Callable[[Any, Imported], None]


@dataclass(frozen=True, slots=True)
class Rules:
    """How the keys of one system become ours."""

    same: Mapping[str, str]
    """Key -> section.key that takes its value."""
    dropped: Mapping[str, str]
    """Key -> why it is not carried over."""
    special: Mapping[str, Special] = field(default_factory=dict)

    def apply(self, values: Values, into: Imported, prefix: str = "") -> None:
        """Carries every key of `values` over; unknown ones become notes too."""
        for key, value in values.items():
            if value is None:
                continue
            if key in self.special:
                self.special[key](value, into)
            elif key in self.same:
                into.put(self.same[key], value)
            else:
                why = self.dropped.get(key, "no such setting here")
                into.notes.append(f"{prefix}{key}: {_shown(value)}: {why}")


def _available(target: str, values: tuple[str, ...], instead: str) -> Special:
    """Carries a value over when this version has it; else a note says what is taken instead."""

    def carry(value: Any, into: Imported) -> None:
        if value in values:
            into.put(target, value)
        else:
            into.notes.append(f"{target}: {_shown(value)}: not available in this version; {instead} is taken")

    return carry


def _preselect_block_count(value: Any, into: Imported) -> None:
    if value:
        into.put("long_context.preselect_block_count", value)
    else:
        into.put("long_context.preselect_block", False)


def _perhead(value: Any, into: Imported) -> None:
    if value:
        into.put("long_context.head_select_mode", "PERHEAD")


def _faiss(value: Any, into: Imported) -> None:
    if value:
        into.put("memory.scorer", "faiss")


def _rope_scaling_factor(value: Any, into: Imported) -> None:
    """0 is LMDeploy's word for the checkpoint's own positions."""
    if value:
        into.put("memory.rope_scaling_factor", value)
    else:
        into.put("memory.preset", "full")


def _only(key: str, usual: object, why: str) -> Special:
    """A key that needs a note only when it differs from its usual value."""

    def carry(value: Any, into: Imported) -> None:
        if value != usual:
            into.notes.append(f"{key}: {_shown(value)}: {why}")

    return carry


def _quant_policy(value: Any, into: Imported) -> None:
    """LMDeploy's bits of keys and values; 0 leaves them as they are."""
    kv_type = {8: KvType.INT8, 4: KvType.INT4}.get(value)
    if kv_type is not None:
        into.put("long_context.kv_type", kv_type.value)
    elif value:
        into.notes.append(
            f"quant_policy: {_shown(value)}: not available; FP16 is taken, set long_context.kv_type"
        )


def _dtype(value: Any, into: Imported) -> None:
    into.put("model.dtype", {"half": "float16"}.get(value, value))


def _shown(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("\n...\n").strip()
    return text if len(text) <= 40 else text[:37] + "..."


_anchor_type = _available("long_context.anchor_type", ANCHOR_TYPES, "the preset's")
KTRANSFORMERS = Rules(
    same=WORDS["ktransformers"],
    dropped={"threads_num": "ktransformers ignores it; its threads are ext.cpu_infer"},
    special={
        "anchor_type": _anchor_type,
        "representative_type": _anchor_type,
        "kv_type": _available("long_context.kv_type", tuple(KvType), "FP16"),
        "head_select_mode": _available("long_context.head_select_mode", ("SHARED", "SEPARATE"), "SHARED"),
        "preselect_block_count": _preselect_block_count,
    },
)  # fmt: skip
KTRANSFORMERS_FLAT = Rules(
    same={**KTRANSFORMERS.same, "threads_num": "long_context.threads_num"},
    dropped={},
    special=KTRANSFORMERS.special,
)
"""As its page lists the keys, which says of threads_num that it is the number of CPU threads."""
KTRANSFORMERS_KEYS = KTRANSFORMERS_FLAT.same.keys() | KTRANSFORMERS_FLAT.special.keys()
MODES = {"long_context": "ktransformers"}
"""Mode of a command line -> our preset; without one ktransformers attends everything."""


def _mode(value: Any, into: Imported) -> None:
    into.put("memory.preset", MODES.get(str(value), "full"))


KTRANSFORMERS_COMMAND = Rules(
    same={
        "model_path": "model.path",
        "gguf_path": "model.path",
        "cpu_infer": "long_context.threads_num",
        "cache_lens": "long_context.max_seq_len",
        "chunk_size": "long_context.chunk_size",
        "max_batch_size": "server.max_running",
    },
    dropped={
        "optimize_config_path": "operators are chosen by the device",
        "max_new_tokens": "each request says it",
        "temperature": "each request says it",
        "top_p": "each request says it",
        "prompt_file": "each request says it",
        "port": "set server.grpc",
        "host": "set server.grpc",
        "model_name": "a server serves one model",
        "use_cuda_graph": "the device decides it",
        "web": "the server speaks gRPC",
        "backend_type": "there is one engine",
        "architectures": "the model's files say it",
    },
    special={"mode": _mode},
)
"""Its command lines: `ktransformers --model_path … --gguf_path …` and `python -m ktransformers.local_chat …`."""
INFLLM = Rules(
    same=WORDS["InfLLM"],
    dropped={
        "fattn": "kernels are chosen by the device",
        "async_global_stream": "blocks are read as they are needed",
        "pin_memory": "decided by the device",
        "tokenizer_path": "the tokenizer is read from model.path",
        "conv_type": "the prompt's form is the client's",
        "truncation": "prompts are never cut",
        "verbose": "nothing to carry over",
    },
    special={
        "cache_strategy": _available("memory.cache_strategy", ("lru", "fifo", "lru-s"), "lru"),
        "perhead": _perhead,
        "faiss": _faiss,
    },
)
LMDEPLOY = Rules(
    same=WORDS["LMDeploy"],
    dropped={
        "cache_max_entry_count": "the cache lies in DRAM; set kv_store.dram",
        "cache_block_seq_len": "blocks are also the unit of selection; set long_context.block_size",
        "enable_prefix_caching": "a conversation's cache is kept, prefixes of others are not shared",
        "model_format": "plain safetensors only",
        "backend": "there is one engine",
        "server_port": "set server.grpc",
        "server_name": "set server.grpc",
        "use_logn_attn": "attention has no such scale; TurboMind ignores it too",
        "num_tokens_per_iter": "set scheduler.max_step_tokens",
        "max_prefill_iters": "prompts are read in chunks of long_context.chunk_size",
        "download_dir": "models are read from a local directory",
        "revision": "models are read from a local directory",
        "devices": "one GPU worker runs in this version",
        "communicator": "one GPU worker runs in this version",
    },
    special={
        "rope_scaling_factor": _rope_scaling_factor,
        "tp": _only("tp", 1, "one GPU worker runs in this version"),
        "quant_policy": _quant_policy,
        "dtype": _dtype,
    },
)
LMDEPLOY_KEYS = (LMDEPLOY.same.keys() | LMDEPLOY.dropped.keys() | LMDEPLOY.special.keys()) - {"dtype"}
