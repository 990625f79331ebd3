"""Which tensor of a checkpoint fills which part of the decoder, per family."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from moorage.workers.spec import ModelSpec

if TYPE_CHECKING:
    from moorage.workers.gpu.model.weights import DecoderWeights, LayerWeights

Split = Callable[[Tensor], tuple[Tensor, ...]]


@dataclass(frozen=True, slots=True)
class Slot:
    """A tensor that the checkpoint must hold, and the views of decoder weights that it fills."""

    shape: tuple[int, ...]
    targets: tuple[Tensor, ...]
    split: Split

    def fill(self, tensor: Tensor) -> None:
        """Copy a tensor of `shape` into the decoder, converting type and device."""
        for target, part in zip(self.targets, self.split(tensor), strict=True):
            target.copy_(part)


@dataclass(frozen=True, slots=True)
class _Names:
    embed: str
    norm: str
    lm_head: str
    input_norm: str
    post_norm: str
    qkv: tuple[str, ...]
    output: str
    gate: str
    up: str
    down: str
    q_norm: str = "self_attn.q_norm"
    k_norm: str = "self_attn.k_norm"


_LLAMA = _Names(
    embed="model.embed_tokens",
    norm="model.norm",
    lm_head="lm_head",
    input_norm="input_layernorm",
    post_norm="post_attention_layernorm",
    qkv=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    output="self_attn.o_proj",
    gate="mlp.gate_proj",
    up="mlp.up_proj",
    down="mlp.down_proj",
)
_INTERNLM2 = _Names(
    embed="model.tok_embeddings",
    norm="model.norm",
    lm_head="output",
    input_norm="attention_norm",
    post_norm="ffn_norm",
    qkv=("attention.wqkv",),
    output="attention.wo",
    gate="feed_forward.w1",
    up="feed_forward.w3",
    down="feed_forward.w2",
)
# Yi under its own class, before it was published as Llama.
_RENAMED = {".ln1.": ".input_layernorm.", ".ln2.": ".post_attention_layernorm."}


def decoder_name(name: str) -> str:
    """A checkpoint's tensor name with historical spellings replaced."""
    for old, new in _RENAMED.items():
        name = name.replace(old, new)
    return name


def is_redundant(name: str, spec: ModelSpec) -> bool:
    """Whether a tensor that has no slot may be skipped, because the decoder derives it."""
    return name.endswith("rotary_emb.inv_freq") or (
        spec.tie_word_embeddings and name == f"{_names(spec).lm_head}.weight"
    )


def slots(spec: ModelSpec, weights: DecoderWeights) -> dict[str, Slot]:
    """Every tensor that a checkpoint of `spec` must hold, by name."""
    names = _names(spec)
    found = {f"{names.embed}.weight": _whole(weights.embed), f"{names.norm}.weight": _whole(weights.norm)}
    if not spec.tie_word_embeddings:
        found[f"{names.lm_head}.weight"] = _whole(weights.lm_head)
    for index, layer in enumerate(weights.layers):
        found.update(
            (f"model.layers.{index}.{name}", slot) for name, slot in _layer_slots(spec, names, layer)
        )
    return found


def _names(spec: ModelSpec) -> _Names:
    return _INTERNLM2 if spec.family == "internlm2" else _LLAMA


def _layer_slots(spec: ModelSpec, names: _Names, layer: LayerWeights) -> Iterator[tuple[str, Slot]]:
    yield f"{names.input_norm}.weight", _whole(layer.input_norm)
    yield f"{names.post_norm}.weight", _whole(layer.post_norm)
    if layer.q_norm is not None and layer.k_norm is not None:
        yield f"{names.q_norm}.weight", _whole(layer.q_norm)
        yield f"{names.k_norm}.weight", _whole(layer.k_norm)
    projections = (
        ("weight", layer.qkv, layer.output, layer.gate_up, layer.down),
        ("bias", layer.qkv_bias, layer.output_bias, layer.gate_up_bias, layer.down_bias),
    )
    for kind, qkv, output, gate_up, down in projections:
        if qkv is not None:
            yield from ((f"{name}.{kind}", slot) for name, slot in _qkv_slots(spec, names, qkv))
        if output is not None:
            yield f"{names.output}.{kind}", _whole(output)
        if gate_up is not None:
            gate, up = gate_up.chunk(2)
            yield f"{names.gate}.{kind}", _whole(gate)
            yield f"{names.up}.{kind}", _whole(up)
        if down is not None:
            yield f"{names.down}.{kind}", _whole(down)


def _qkv_slots(spec: ModelSpec, names: _Names, fused: Tensor) -> Iterator[tuple[str, Slot]]:
    num_kv_rows = spec.num_kv_heads * spec.head_dim
    parts = torch.split(fused, [spec.num_heads * spec.head_dim, num_kv_rows, num_kv_rows])
    if len(names.qkv) == 1:
        yield names.qkv[0], Slot(tuple(fused.shape), parts, _unpacker(spec))
    else:
        yield from ((name, _whole(part)) for name, part in zip(names.qkv, parts, strict=True))


def _unpacker(spec: ModelSpec) -> Split:
    """InternLM2's wqkv holds, per KV head, its group's queries, then its key, then its value."""

    def unpack(packed: Tensor) -> tuple[Tensor, ...]:
        heads = packed.view(spec.num_kv_heads, spec.group_size + 2, spec.head_dim, *packed.shape[1:])
        query, key, value = torch.split(heads, [spec.group_size, 1, 1], dim=1)
        return query.flatten(0, 2), key.flatten(0, 2), value.flatten(0, 2)

    return unpack


def _whole(target: Tensor) -> Slot:
    return Slot(tuple(target.shape), (target,), lambda tensor: (tensor,))
