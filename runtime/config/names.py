"""The names of settings in a cluster file, and the words that other systems have for them: the one table of both.

In the file a setting is `memory.<its name>`, or `gpu_workers.<its name>` for those of the engine, unless KEYS gives
it other keys. Several keys of one setting may not differ in one file; the first is the one that is shown.
"""

from __future__ import annotations

from collections.abc import Mapping

from moorage.workers.gpu.settings import EngineSettings
from moorage.workers.spec import MemorySpec, RotarySettings, StoreSpec
from moorage.workers.spec.setting import Setting, settings_of

KEYS: Mapping[str, str] = {
    "memory.positions": "scheme",
    # InfLLM's words
    "memory.n_init": "sinks",
    "memory.topk": "topk",
    "memory.exc_block_size": "execution_block",
    "memory.exc_last_alone": "last_tokens_alone",
    "memory.max_cached_block": "max_cached_block",
    "memory.cache_strategy": "cache_strategy",
    "memory.score_decay": "score_decay",
    # ktransformers' section
    "long_context.block_size": "block_size",
    "long_context.local_windows_len": "window",
    "long_context.second_select_num": "topk",
    "long_context.anchor_type": "anchor_type",
    "long_context.kv_type": "kv_type",
    "long_context.dense_layer_num": "dense_layers",
    "long_context.anchor_num": "anchor_num",
    "long_context.preselect_block": "preselect",
    "long_context.head_select_mode": "head_select_mode",
    "long_context.preselect_block_count": "preselect_blocks",
    "long_context.layer_step": "layer_step",
    "long_context.token_step": "token_step",
}
"""Key of the file -> setting."""

WORDS: Mapping[str, Mapping[str, str]] = {
    "ktransformers": {
        **{place.partition(".")[2]: place for place in KEYS if place.startswith("long_context.")},
        "chunk_size": "long_context.chunk_size",
        "max_seq_len": "long_context.max_seq_len",
        # the words of its introduction
        "second_block_count": "long_context.second_select_num",
        "representative_num": "long_context.anchor_num",
        "representative_type": "long_context.anchor_type",
    },
    "InfLLM": {
        "path": "model.path",
        "block_size": "long_context.block_size",
        "n_init": "memory.n_init",
        "n_local": "long_context.local_windows_len",
        "chunk_size": "long_context.chunk_size",
        "topk": "memory.topk",
        "repr_topk": "memory.repr_topk",
        "score_decay": "memory.score_decay",
        "max_cached_block": "memory.max_cached_block",
        "exc_block_size": "memory.exc_block_size",
        "base": "memory.base",
        "distance_scale": "memory.distance_scale",
        "max_len": "long_context.max_seq_len",
    },
    "LMDeploy": {
        "model_path": "model.path",
        "max_batch_size": "server.max_running",
        "max_prefill_token_num": "long_context.chunk_size",
        "session_len": "long_context.max_seq_len",
    },
}
"""System -> key of its own files -> `section.key` of ours, for `runtime import-config`."""

READ_AS: Mapping[str, Mapping[bool, str | int]] = {
    "preselect": {True: "prompt", False: "off"},
    "last_tokens_alone": {True: 1, False: 0},
}
"""Setting -> value of another system, or of an earlier version -> ours."""

_LATER = "is not available in this version"
REFUSED: Mapping[str, Mapping[str, str]] = {
    "kv_type": {name: f"{name} {_LATER}" for name in ("Q4_0", "Q8_0")},
    "anchor_type": {
        "QUEST_HADAMARD": "QUEST_HADAMARD was removed, since single keys by KEY_CODES replace it"
    },
    "preselect": {
        "step": "step was removed, since single keys replace it; select these by memory.topk_keys and long_context."
        "anchor_type KEY_CODES"
    },
    "head_select_mode": {"INDIVIDUAL": "INDIVIDUAL is called PERHEAD here"},
}
"""Setting -> value of another system -> why it is refused."""

REMOVED: Mapping[str, str] = {
    "memory.lag": "asynchronous selection was removed; leave it out",
    "memory.lag_cosine": "asynchronous selection was removed; leave it out",
    "memory.anchor_codes": "four-bit codes of anchors were removed; leave it out",
}
"""`section.key` of earlier versions -> why it is refused, and what to do."""

_OWN_SECTIONS = {"memory": (MemorySpec, RotarySettings, StoreSpec), "gpu_workers": (EngineSettings,)}


def _all_keys() -> dict[str, Setting]:
    declared = [
        (section, each)
        for section, kinds in _OWN_SECTIONS.items()
        for kind in kinds
        for each in settings_of(kind)
    ]
    by_name = {each.name: each for _, each in declared}
    named = {key: by_name[name] for key, name in KEYS.items()}
    own = {f"{section}.{each.name}": each for section, each in declared if each.name not in KEYS.values()}
    return named | own


SETTINGS: Mapping[str, Setting] = _all_keys()
"""`section.key` of the file -> the setting that it names."""


def keys_of_section(section: str) -> list[tuple[str, Setting]]:
    """The keys of one section that name settings; those for research come last."""
    found = [(key.partition(".")[2], each) for key, each in SETTINGS.items() if key.startswith(f"{section}.")]
    return sorted(found, key=lambda pair: pair[1].declared.research)


def keys_of_setting(name: str) -> list[str]:
    """Every `section.key` that names a setting; the first is shown."""
    return [key for key, each in SETTINGS.items() if each.name == name]


def shown_key(name: str) -> str:
    """The key that is shown for a setting, without its section; what is no setting keeps its name."""
    keys = keys_of_setting(name)
    return keys[0].partition(".")[2] if keys else name


PRESET_SETTINGS = tuple({each.name: each for each in SETTINGS.values() if each.declared.of_preset}.values())
"""The settings that a preset gives."""
