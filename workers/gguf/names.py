"""The tensors of GGUF files by the parts that they hold; llama.cpp names them alike in all architectures."""

from __future__ import annotations

from dataclasses import replace

from moorage.workers.gpu.model.family import AllExperts, Packed, TensorNames
from moorage.workers.gpu.model.parts import Part

EMBED, LM_HEAD = "token_embd.weight", "output.weight"
_SUFFIXES = (".weight", ".bias")

GGUF_TENSORS = TensorNames(
    model={"token_embd": Part.EMBED, "output_norm": Part.FINAL_NORM, "output": Part.LM_HEAD},
    layer={
        "attn_norm": Part.INPUT_NORM,
        "post_attention_norm": Part.ATTENTION_OUT_NORM,
        "ffn_norm": Part.POST_NORM,
        "post_ffw_norm": Part.MLP_OUT_NORM,
        "attn_q": Part.QUERY,
        "attn_k": Part.KEY,
        "attn_v": Part.VALUE,
        "attn_q_norm": Part.Q_NORM,
        "attn_k_norm": Part.K_NORM,
        "attn_sinks": Part.SINKS,
        "attn_output": Part.OUTPUT,
        "ffn_gate": Part.GATE,
        "ffn_up": Part.UP,
        "ffn_down": Part.DOWN,
        "ffn_gate_inp": Part.ROUTER,
        "ffn_gate_exps": AllExperts((Part.EXPERT_GATE,), suffixes=_SUFFIXES),
        "ffn_up_exps": AllExperts((Part.EXPERT_UP,), suffixes=_SUFFIXES),
        "ffn_down_exps": AllExperts((Part.EXPERT_DOWN,), suffixes=_SUFFIXES),
        "ffn_gate_shexp": Part.SHARED_GATE,
        "ffn_up_shexp": Part.SHARED_UP,
        "ffn_down_shexp": Part.SHARED_DOWN,
        "ffn_gate_inp_shexp": Part.SHARED_WEIGHT,
    },
    layer_prefix="blk.{}.",
)
_PACKED_MLP = {
    **{name: held for name, held in GGUF_TENSORS.layer.items() if name != "ffn_gate"},
    "ffn_up": Packed((Part.GATE, Part.UP)),
}
_PACKED = {**_PACKED_MLP, "attn_qkv": Packed((Part.QUERY, Part.KEY, Part.VALUE))}
_GPT_OSS = {**GGUF_TENSORS.layer, "post_attention_norm": Part.POST_NORM}
GGUF_LAYOUTS = (
    replace(
        GGUF_TENSORS, layer={k: v for k, v in _PACKED.items() if k not in ("attn_q", "attn_k", "attn_v")}
    ),
    replace(GGUF_TENSORS, layer=_PACKED_MLP),
    replace(GGUF_TENSORS, layer={k: v for k, v in _GPT_OSS.items() if k != "ffn_norm"}),
    GGUF_TENSORS,
)
"""The ways in which architectures divide the parts between tensors: Phi-3, GLM-4, GPT-OSS, all others.

Where a file has the names of several, the first counts; so those with fewer tensors come first.
"""
DERIVED = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
"""Tensors that the decoder computes by itself."""
