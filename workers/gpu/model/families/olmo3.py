"""OLMo 3: an OLMo 2 of which three layers of four slide; only the others have a scaled rotary embedding."""

from __future__ import annotations

from moorage.workers.gpu.model.families.olmo2 import TENSORS, olmo_keys
from moorage.workers.gpu.model.family import Family, PublishedModel
from moorage.workers.hf_fields import Fields
from moorage.workers.hf_layers import read_pattern, read_window, with_sliding_rope, with_windows
from moorage.workers.hf_rope import read_sliding_rope
from moorage.workers.spec import ModelSpec


def _own_keys(spec: ModelSpec, config: Fields) -> ModelSpec:
    slides = read_pattern(config, default=4)
    spec = with_sliding_rope(olmo_keys(spec, config), slides, read_sliding_rope(config, spec.head_dim))
    return with_windows(spec, config, slides, read_window(config, 4096))


_YARN = {
    "rope_scaling": {
        "rope_type": "yarn",
        "factor": 8.0,
        "original_max_position_embeddings": 8192,
        "attention_factor": 1.2079441541679836,
        "beta_fast": 32.0,
        "beta_slow": 1.0,
    }
}

FAMILY = Family(
    name="olmo3",
    architectures=("Olmo3ForCausalLM",),
    tensors=TENSORS,
    own_keys=_own_keys,
    rope_by_layer=True,
    # Layers that slide are never scaled.
    defaults={"rms_norm_eps": 1e-5, "rope_theta": 500000.0, "rope_local_base_freq": 500000.0},
    published={
        "olmo-3-7b": PublishedModel(32, 4096, 11008, 32, 32, 100278, 65536, _YARN),
        "olmo-3-32b": PublishedModel(64, 5120, 27648, 40, 8, 100278, 65536, _YARN),
    },
)
