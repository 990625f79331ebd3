"""Memory presets: published systems as named choices on the settings of one engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from difflib import get_close_matches
from typing import Any

from moorage.runtime.config.names import PRESET_SETTINGS, shown_key
from moorage.workers.spec import (
    AnchorSpace,
    AnchorType,
    KvLayout,
    KvType,
    MemorySpec,
    ModelSpec,
    Positions,
    RotarySettings,
    StoreSpec,
)
from moorage.workers.spec.setting import part, replaced, values_of


@dataclass(frozen=True, slots=True)
class Settings:
    """A value for every setting that a preset may give, by the part that obeys it."""

    memory: MemorySpec = field(metadata={"part": MemorySpec})
    rotary: RotarySettings = part(RotarySettings)
    store: StoreSpec = part(StoreSpec)

    def replace(self, values: Mapping[str, Any]) -> Settings:
        """These with some settings changed by name. Raises TypeError for a name that there is not."""
        return replaced(self, values)

    def values(self) -> dict[str, Any]:
        """The value of every setting by its name."""
        return values_of(self)

    def layout(self, model: ModelSpec) -> KvLayout:
        """Sizes of blocks, anchors and codes of keys."""
        shape = (model.num_stored_layers, model.num_kv_heads, model.head_dim)
        return KvLayout(*shape, **asdict(self.store))


@dataclass(frozen=True, slots=True)
class Preset:
    """A published system: the settings in which it differs from the defaults; sizes in tokens, budgets in blocks."""

    name: str
    source: str
    """The published system that it stands for."""
    differs: Mapping[str, Any] = field(default_factory=dict)
    """Setting -> value."""
    otherwise: Mapping[str, Any] = field(default_factory=dict)
    """Setting -> value above `differs` where the other settings, or the store, do not let single keys be selected;
    only of a preset that selects these."""

    def __post_init__(self) -> None:
        unknown = (self.differs.keys() | self.otherwise.keys()) - {each.name for each in PRESET_SETTINGS}
        if unknown:
            raise ValueError(
                f"preset {self.name}: {min(unknown)} is no setting that a preset gives; remove it"
            )
        if bool(self.differs.get("topk_keys")) != bool(self.otherwise):
            raise ValueError(
                f"preset {self.name}: what selects single keys says what it selects otherwise, and nothing else does"
            )

    def settings(self) -> Settings:
        """Every setting under this preset; those that no preset gives are at their defaults."""
        return Settings(MemorySpec(self.name)).replace(self.differs)

    def selecting_blocks(self) -> Settings:
        """The same settings where single keys can't be selected."""
        return self.settings().replace({"topk_keys": 0} | dict(self.otherwise))

    def axes(self) -> dict[str, Any]:
        """The value of every setting that a preset gives, by the key that a cluster file has for it."""
        values = self.settings().values()
        return {shown_key(each.name): values[each.name] for each in PRESET_SETTINGS}


_MOORAGE: dict[str, Any] = {
    "sinks": 64,
    "window": 128,
    "topk_keys": 768,
    "block_size": 64,
    "anchor_type": AnchorType.KEY_CODES,
}
_MOORAGE_BLOCKS: dict[str, Any] = {
    "sinks": 128,
    "window": 4096,
    "topk": 256,
    "last_tokens_alone": 1,
    "block_size": 32,
    "anchor_type": AnchorType.QUEST,
}
PRESETS = {
    preset.name: preset
    for preset in (
        Preset("full", "exact attention over every key: the oracle that the others are measured against"),
        Preset(
            "ktransformers",
            "ktransformers long_context: exact prefill, then 96 of all blocks a step",
            {
                "sinks": 128,
                "topk": 96,
                "anchor_type": AnchorType.DYNAMIC,
                "anchor_space": AnchorSpace.ROTATED,
            },
        ),
        Preset(
            "inf-llm",
            "InfLLM (NeurIPS 2024): sinks, selected blocks and a window, in prefill too; "
            "clamped positions, for any length",
            {
                "scheme": Positions.CLAMPED,
                "sinks": 128,
                "topk": 16,
                "execution_block": 512,
                "anchor_type": AnchorType.REPR_TOPK,
            },
        ),
        Preset(
            "chunkllama",
            "ChunkLlama, Dual Chunk Attention (ICML 2024): every key, positions re-mapped per chunk, "
            "up to 16 times the trained length",
            {"scheme": Positions.DCA},
        ),
        Preset(
            "lmdeploy",
            "LMDeploy TurboMind: every key, the checkpoint's RoPE scaling or, where it has none, dynamic "
            "NTK, up to twice the trained length",
            {"rope_scaling_factor": 1.0},
        ),
        Preset(
            "kvquant",
            "KVQuant (NeurIPS 2024): every key, in 3 bits at levels of a quantizer, with 1 % outliers and the first "
            "5 tokens in fp16",
            {"kv_type": KvType.NUQ3, "n_fp16_sinks": 5},
        ),
        Preset(
            "stream-llm",
            "StreamingLLM (ICLR 2024): sinks and window alone, side by side in a rolling cache, for any length",
            {"scheme": Positions.ROLLING, "sinks": 4, "topk": 0},
        ),
        Preset(
            "infinite-lm",
            "LM-Infinite (NAACL 2024): sinks and window alone, sinks never farther than the window, for any length",
            {"scheme": Positions.CLAMPED, "sinks": 100, "topk": 0},
        ),
        Preset(
            "moorage",
            "exact prefill, then 768 single keys of each KV head a step, selected by one-bit codes of all keys; "
            "means of blocks stand for the others",
            _MOORAGE,
            _MOORAGE_BLOCKS,
        ),
        Preset(
            "moorage-exact",
            "the tokens of full attention: moorage drafts, and one exact pass over all keys verifies 4 at a time "
            "(speculative decoding)",
            {**_MOORAGE, "verify": 4},
            _MOORAGE_BLOCKS,
        ),
    )
}


def check_preset_name(name: str) -> str:
    """`name` itself. Raises ValueError with the available presets when it is none of them."""
    if name in PRESETS:
        return name
    available = f"available: {', '.join(PRESETS)}"
    near = get_close_matches(name, PRESETS, n=1)
    raise ValueError(f"no such preset{f'; did you mean {near[0]}?' if near else ''}; {available}")
