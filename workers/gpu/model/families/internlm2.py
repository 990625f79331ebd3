"""InternLM2 and InternLM2.5: a Llama with names of its own and one tensor for queries, keys and values."""

from __future__ import annotations

from dataclasses import replace

from moorage.workers.gpu.model.family import Claim, Family, PackedByKvHead, PublishedModel, TensorNames
from moorage.workers.gpu.model.parts import Part
from moorage.workers.hf_fields import Fields
from moorage.workers.spec import ModelSpec


def _own_keys(spec: ModelSpec, config: Fields) -> ModelSpec:
    biased = config.flag("bias", True)
    return replace(spec, qkv_bias=biased, output_bias=biased)


FAMILY = Family(
    name="internlm2",
    architectures=("InternLM2ForCausalLM",),
    tensors=TensorNames(
        model={
            "model.tok_embeddings": Part.EMBED,
            "model.norm": Part.FINAL_NORM,
            "output": Part.LM_HEAD,
        },
        layer={
            "attention_norm": Part.INPUT_NORM,
            "ffn_norm": Part.POST_NORM,
            "attention.wqkv": PackedByKvHead((Part.QUERY, Part.KEY, Part.VALUE)),
            "attention.wo": Part.OUTPUT,
            "feed_forward.w1": Part.GATE,
            "feed_forward.w3": Part.UP,
            "feed_forward.w2": Part.DOWN,
        },
    ),
    own_keys=_own_keys,
    published={
        "internlm2.5-7b-1m": PublishedModel(
            32,
            4096,
            14336,
            32,
            8,
            92544,
            262144,
            {"bias": False, "rope_scaling": {"type": "dynamic", "factor": 2.5}},
            Claim(2**20),
        ),
    },
)
