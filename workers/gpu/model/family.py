"""What a model family is: all that its checkpoints have and other families' do not; free of torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from moorage.workers.gpu.model.parts import Part
from moorage.workers.hf_fields import Fields
from moorage.workers.spec import ModelSpec


@dataclass(frozen=True, slots=True)
class Packed:
    """One tensor with the rows of several parts, one after the other."""

    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class PackedByKvHead:
    """One tensor with the rows of several parts: for each KV head, its rows of the first part, then of the next."""

    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Unsuffixed:
    """A part whose tensor has nothing after its name."""

    part: Part


@dataclass(frozen=True, slots=True)
class EachHead:
    """One tensor for each head, at whose number the name has `{head}`; together they hold `part`."""

    part: Part


@dataclass(frozen=True, slots=True)
class EachExpert:
    """One tensor for each expert, at whose number the name has `{expert}`; together they hold `part`."""

    part: Part


@dataclass(frozen=True, slots=True)
class AllExperts:
    """One tensor for all experts, [experts, out, in], with the rows of several parts one after the other."""

    parts: tuple[Part, ...]
    interleaved: bool = False
    """Whether rows of the parts alternate."""
    transposed: bool = False
    """Whether it is [experts, in, out]."""
    suffixes: tuple[str, str] = ("", "_bias")
    """What its weight and its bias have after their name."""


@dataclass(frozen=True, slots=True)
class Mxfp4Experts:
    """Two tensors for all experts, `_blocks` and `_scales`: codes of 4 bits, 32 of which share a power of two.

    The bias is a tensor as in AllExperts.
    """

    parts: tuple[Part, ...]
    interleaved: bool = False
    """Whether rows of the parts alternate."""


Held = Part | Unsuffixed | Packed | PackedByKvHead | EachHead | EachExpert | AllExperts | Mxfp4Experts
"""What a tensor holds."""


@dataclass(frozen=True, slots=True)
class TensorNames:
    """The tensors of a checkpoint, named without `.weight` and `.bias`, and the parts that they hold."""

    model: Mapping[str, Part]
    layer: Mapping[str, Held]
    """The tensors of one layer, named without `model.layers.0.`. A part that a model lacks may stand here."""
    older_names: Mapping[str, str] = field(default_factory=dict)
    """Pieces of names in older checkpoints, and what stands for them in `layer`."""
    layer_prefix: str = "model.layers.{}."
    """What stands before the names of a layer's tensors, with its number."""
    norms_less_one: bool = False
    """Whether the weights of norms are stored less by one, those of queries and keys as well."""
    interleaved_rotation: bool = False
    """Whether channel 2 i of a head rotates with 2 i + 1 in the order of the tensors' rows. In a decoder channel i
    rotates with the one half the rotated channels after it."""

    def name_of(self, wanted: Part) -> str:
        """The name of a part outside the layers."""
        return next(name for name, part in self.model.items() if part is wanted)

    def of_text_part(self) -> tuple[TensorNames, TensorNames]:
        """The names where text is one part of several: as published, and as transformers 5 has them."""
        return self._moved("language_model.model.", "language_model."), self._moved(
            "model.language_model.", ""
        )

    def _moved(self, model: str, head: str) -> TensorNames:
        moved = {
            model + name.removeprefix("model.") if name.startswith("model.") else head + name: part
            for name, part in self.model.items()
        }
        return replace(self, model=moved, layer_prefix=f"{model}layers.{{}}.")


@dataclass(frozen=True, slots=True)
class Accepted:
    """The values that a key of config.json may have, beside null; the decoder does not compute the others."""

    key: str
    values: tuple[object, ...]
    expected: str
    """What the key must be, for messages."""


@dataclass(frozen=True, slots=True)
class Claim:
    """What a model card says of long contexts, and config.json does not."""

    tokens: int
    """Tokens of a session that the model card promises."""
    scaling: Mapping[str, object] | None = None
    """`rope_scaling` that it recommends beyond max_position_embeddings; None keeps that of config.json."""


@dataclass(frozen=True, slots=True)
class PublishedModel:
    """The keys of a published config.json that sizes depend on."""

    num_hidden_layers: int
    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    vocab_size: int
    max_position_embeddings: int
    other_keys: Mapping[str, object] = field(default_factory=dict)
    claim: Claim | None = None

    def config(self) -> dict[str, object]:
        """The keys of config.json; the type is bfloat16 unless `other_keys` says another one."""
        return {
            "num_hidden_layers": self.num_hidden_layers,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": self.num_key_value_heads,
            "vocab_size": self.vocab_size,
            "max_position_embeddings": self.max_position_embeddings,
            "dtype": "bfloat16",
            **self.other_keys,
        }


VISION = (
    "vision_tower.",
    "multi_modal_projector.",
    "model.vision_tower.",
    "model.multi_modal_projector.",
)
"""What names of tensors begin with that a model sees with."""
ACCEPTED = (
    Accepted("hidden_act", ("silu", "swish"), "silu, the only supported activation"),
    Accepted("is_causal", (True,), "true: a model that generates attends no later token"),
)
"""What the decoder computes in every family that says nothing else."""


def _no_own_keys(spec: ModelSpec, config: Fields) -> ModelSpec:
    del config
    return spec


@dataclass(frozen=True, slots=True)
class Family:
    """A model family. Its file in `families` is the only one that names it."""

    name: str
    """The name that `model_type` and `ModelSpec.family` have."""
    architectures: tuple[str, ...]
    """The classes that config.json may name."""
    tensors: TensorNames
    other_tensors: tuple[TensorNames, ...] = ()
    """How other checkpoints of this family name their tensors."""
    text_config: str | None = None
    """The key of config.json under which models that see or hear beside reading have the keys of their text part."""
    other_modalities: tuple[str, ...] = ()
    """What names of the tensors begin with that such models have for anything but text."""
    quant_methods: tuple[str, ...] = ()
    """What `quantization_config` may name where `other_tensors` say how its weights are stored."""
    own_keys: Callable[[ModelSpec, Fields], ModelSpec] = _no_own_keys
    """Completes what the keys of all families say with what this family's keys say. Raises InvalidModel."""
    model_types: tuple[str, ...] = ()
    """What `model_type` may say beside `name`."""
    head_dim: int | None = None
    """Channels of a head where config.json names none; None is the hidden size by the number of heads."""
    accepted: tuple[Accepted, ...] = ACCEPTED
    defaults: Mapping[str, object] = field(default_factory=dict)
    """Keys that config.json may leave out, with the values that the architecture then has."""
    ignored: tuple[str, ...] = ()
    """Keys that the architecture has no use for, or none beside the other keys of a config.json."""
    rotates_partly: bool = False
    """Whether `partial_rotary_factor` may leave channels of a head un-rotated."""
    rope_by_layer: bool = False
    """Whether layers that slide may have a rotary embedding of their own."""
    published: Mapping[str, PublishedModel] = field(default_factory=dict)
    """Models that can be sized by name, without their files."""

    @property
    def layouts(self) -> tuple[TensorNames, ...]:
        """Every way in which checkpoints of this family name their tensors."""
        return (self.tensors, *self.other_tensors)
