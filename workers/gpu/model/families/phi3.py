"""Phi-3, Phi-3.5 and Phi-4: a Llama with fused projections, whose later models rotate a part of each head."""

from __future__ import annotations

from dataclasses import replace

from moorage.workers.gpu.model.families.llama import TENSORS
from moorage.workers.gpu.model.family import Family, Packed, PublishedModel
from moorage.workers.gpu.model.parts import Part
from moorage.workers.hf_fields import Fields
from moorage.workers.hf_layers import read_window, with_windows
from moorage.workers.spec import ModelSpec

ROPE_TYPES = ("default", "longrope")
"""Phi-3's first files called the second one su and yarn."""


def _own_keys(spec: ModelSpec, config: Fields) -> ModelSpec:
    if spec.rope.rope_type not in ROPE_TYPES:
        name = "rope_scaling" if config.get("rope_scaling") is not None else "rope_parameters"
        raise config.wrong(name, f"of type {' or '.join(ROPE_TYPES)}")
    return with_windows(spec, config, (True,) * spec.num_layers, read_window(config, None))


def _longrope(num_channels: int, original: int) -> dict[str, object]:
    """The keys of a long context; sizes do not depend on the factors of single channels."""
    factors = [1.0] * num_channels
    return {
        "original_max_position_embeddings": original,
        "rope_scaling": {"type": "longrope", "short_factor": factors, "long_factor": factors},
    }


_MINI = (32, 3072, 8192, 32, 32, 32064)
_FUSED = {
    **{name: part for name, part in TENSORS.layer.items() if not name.endswith("_proj")},
    "self_attn.qkv_proj": Packed((Part.QUERY, Part.KEY, Part.VALUE)),
    "self_attn.o_proj": Part.OUTPUT,
    "mlp.gate_up_proj": Packed((Part.GATE, Part.UP)),
    "mlp.down_proj": Part.DOWN,
}

FAMILY = Family(
    name="phi3",
    architectures=("Phi3ForCausalLM",),
    tensors=replace(TENSORS, layer=_FUSED, older_names={}),
    own_keys=_own_keys,
    rotates_partly=True,
    defaults={"rms_norm_eps": 1e-5},
    published={
        "phi-3-mini-4k": PublishedModel(*_MINI, 4096, {"sliding_window": 2047}),
        "phi-3.5-mini": PublishedModel(*_MINI, 131072, {"sliding_window": 262144, **_longrope(48, 4096)}),
        "phi-3-medium-4k": PublishedModel(40, 5120, 17920, 40, 10, 32064, 4096, {"sliding_window": 2047}),
        "phi-4": PublishedModel(40, 5120, 17920, 40, 10, 100352, 16384, {"rope_theta": 250000.0}),
        "phi-4-mini": PublishedModel(
            32,
            3072,
            8192,
            24,
            8,
            200064,
            131072,
            {
                "tie_word_embeddings": True,
                "sliding_window": 262144,
                "partial_rotary_factor": 0.75,
                **_longrope(48, 4096),
            },
        ),
    },
)
