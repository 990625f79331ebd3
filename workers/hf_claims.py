"""What the card of a published model says of long contexts, for checkpoints of its shape; free of torch.

config.json does not have it: Qwen's cards recommend YaRN beyond the trained length, and InternLM2.5's promises more
tokens than its scaling starts from.
"""

from __future__ import annotations

from dataclasses import replace

from moorage.workers.gpu.model.family import Family, PublishedModel
from moorage.workers.hf_fields import Fields
from moorage.workers.hf_rope import read_rope
from moorage.workers.spec import ModelSpec


def with_claim(spec: ModelSpec, family: Family) -> ModelSpec:
    """`spec` with the claim of the published model that it has the shape and the rotary embedding of.

    A checkpoint with another trained length or a scaling of its own is no such model: its config.json decides.
    """
    for model in family.published.values():
        if model.claim is not None and _same_shape(spec, model) and _same_scaling(spec, model):
            return _claimed(spec, model.claim.tokens, model.claim.scaling)
    return spec


def _claimed(spec: ModelSpec, tokens: int, scaling: object) -> ModelSpec:
    rope = spec.rope
    if scaling is not None:
        values = {"max_position_embeddings": rope.max_position_embeddings, "rope_theta": rope.theta}
        longer = read_rope(Fields({**values, "rope_scaling": scaling}, "model card"), spec.head_dim)
        rope = replace(rope, longer=longer)
    return replace(spec, rope=rope, claimed_length=tokens)


def _same_shape(spec: ModelSpec, model: PublishedModel) -> bool:
    ours = (
        spec.num_layers,
        spec.hidden_size,
        spec.intermediate_size,
        spec.num_heads,
        spec.num_kv_heads,
        spec.vocab_size,
        spec.max_position_embeddings,
    )
    return ours == (
        model.num_hidden_layers,
        model.hidden_size,
        model.intermediate_size,
        model.num_attention_heads,
        model.num_key_value_heads,
        model.vocab_size,
        model.max_position_embeddings,
    )


def _same_scaling(spec: ModelSpec, model: PublishedModel) -> bool:
    """Whether both name the same rotary embedding, base apart: sizes by name do without it."""
    published = read_rope(Fields(model.config(), "published"), spec.head_dim)
    same_base = "rope_theta" not in model.other_keys or published.theta == spec.rope.theta
    return same_base and replace(published, theta=spec.rope.theta) == spec.rope
