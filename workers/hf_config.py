"""Reads the shape of a model from a Hugging Face directory, without torch or transformers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from moorage.workers.errors import InvalidModel
from moorage.workers.gguf.config import config_of
from moorage.workers.gguf.files import gguf_files
from moorage.workers.gguf.matrices import stored_matrices
from moorage.workers.gguf.model import read_gguf
from moorage.workers.gpu.model.families import FAMILIES
from moorage.workers.gpu.model.family import Family
from moorage.workers.gpu.model.quantization import read_format
from moorage.workers.gpu.model.weight_plan import quantized_matrices
from moorage.workers.hf_claims import with_claim
from moorage.workers.hf_directory import check_directory
from moorage.workers.hf_fields import Fields
from moorage.workers.hf_keys import check_keys
from moorage.workers.hf_rope import read_rope
from moorage.workers.hf_tensors import checkpoint_tensors
from moorage.workers.hf_unsupported import unsupported
from moorage.workers.hf_weights import own_head, read_headers
from moorage.workers.spec import ModelSpec, RopeSpec

ARCHITECTURES: Mapping[str, str] = {
    architecture: family.name for family in FAMILIES.values() for architecture in family.architectures
}
"""Name of the family of each architecture that can be served."""

MOST_LAYERS, MOST_HEADS, MOST_HEAD_DIM = 4096, 4096, 4096
MOST_CHANNELS, MOST_TOKENS = 2**20, 2**24
"""Sizes beyond which a config.json is taken for a mistake; several times the largest that is published."""
SHARED_KEYS = (
    "bos_token_id",
    "dtype",
    "eos_token_id",
    "quantization_config",
    "tie_word_embeddings",
    "torch_dtype",
)
"""Keys that a model of several parts has once, beside its text part's."""
DTYPES = ("float32", "bfloat16", "float16")


def read_model_spec(directory: str | Path) -> ModelSpec:
    """ModelSpec from `config.json` and, where there is one, `generation_config.json`; or from a GGUF file.

    Raises InvalidModel with the file, the field and the fix when the model can't be served as it is.
    """
    directory = Path(directory)
    if files := gguf_files(directory):
        model = read_gguf(files)
        config = config_of(model)
        spec = read_spec(config, _family(config))
        return replace(spec, stored_matrices=stored_matrices(model, spec))
    check_directory(directory)
    config = Fields.read(directory / "config.json")
    family = _family(config)
    spec = _with_generation(_of_text(config, family), directory)
    if not any(directory.glob("model*.safetensors")):
        return spec
    if spec.tie_word_embeddings:
        spec = _with_own_head(spec, directory)
    if spec.quantization_config is None:
        return spec
    tensors = checkpoint_tensors(spec, read_headers(directory, spec.family))
    return replace(spec, stored_matrices=quantized_matrices(spec, tensors))


def _of_text(config: Fields, family: Family) -> ModelSpec:
    """ModelSpec of a whole model, or of the text part of one that has others."""
    text = None if family.text_config is None else config.child(family.text_config)
    if text is None:
        return read_spec(config, family)
    shared = {key: value for key in SHARED_KEYS if (value := config.get(key)) is not None}
    spec = read_spec(Fields({**shared, **text.values}, text.source), family)
    note = f"{config.source}: only the text part of {family.name} is served; prompts are text alone"
    return replace(spec, notes=(*spec.notes, note))


def read_spec(config: Fields, family: Family) -> ModelSpec:
    """ModelSpec of a model of `family`, by the fields of its `config.json` alone. Raises InvalidModel."""
    config = Fields({**family.defaults, **config.values}, config.source)
    _check_accepted(config, family)
    num_heads = config.positive_int("num_attention_heads", most=MOST_HEADS)
    num_kv_heads = config.positive_int("num_key_value_heads", num_heads)
    if num_heads % num_kv_heads:
        raise config.wrong("num_key_value_heads", f"a divisor of num_attention_heads {num_heads}")
    head_dim = _head_dim(config, family, num_heads)
    common = ModelSpec(
        family=family.name,
        num_layers=config.positive_int("num_hidden_layers", most=MOST_LAYERS),
        hidden_size=config.positive_int("hidden_size", most=MOST_CHANNELS),
        intermediate_size=config.positive_int("intermediate_size", most=MOST_CHANNELS),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        vocab_size=config.positive_int("vocab_size", most=MOST_TOKENS),
        max_position_embeddings=config.positive_int("max_position_embeddings"),
        rms_norm_eps=config.epsilon("rms_norm_eps", 1e-6),
        rope=_rope(config, family, head_dim),
        tie_word_embeddings=config.flag("tie_word_embeddings"),
        dtype=_dtype(config),
        bos_token_id=next(iter(config.token_ids("bos_token_id")), None),
        eos_token_ids=tuple(dict.fromkeys(config.token_ids("eos_token_id"))),
    )
    spec = replace(family.own_keys(common, config), quantization_config=_quantization(config, family))
    check_keys(config, family.ignored, family.name)
    return with_claim(spec, family)


def _rope(config: Fields, family: Family, head_dim: int) -> RopeSpec:
    """The rotary embedding. Rotation of a part of the channels is an error where the architecture has none."""
    rope = read_rope(config, head_dim, family.rope_by_layer)
    if rope.rotary_dim != head_dim and not family.rotates_partly:
        raise InvalidModel(
            f"{config.source}: partial_rotary_factor makes {rope.rotary_dim} of {head_dim} channels rotate, but "
            "transformers rotates all of them in this architecture; remove it, or correct architectures"
        )
    return rope


def _family(config: Fields) -> Family:
    names = config.get("architectures") or []
    if not isinstance(names, list):
        raise config.wrong("architectures", "a list of names")
    known = [name for name in names if isinstance(name, str) and name in ARCHITECTURES]
    model_type = config.get("model_type")
    for name in known:
        family = FAMILIES[ARCHITECTURES[name]]
        # transformers goes by model_type, vLLM by architectures.
        if model_type not in (None, family.name, *family.model_types):
            raise InvalidModel(
                f"{config.source}: architectures says {name} and model_type {model_type!r}, which compute "
                "differently; correct the one that the weights were not trained as"
            )
    if len({ARCHITECTURES[name] for name in known}) > 1:
        raise config.wrong("architectures", "of one family; leave the one that the weights are of")
    if known:
        return FAMILIES[ARCHITECTURES[known[0]]]
    if not names and isinstance(model_type, str) and model_type in FAMILIES:
        return FAMILIES[model_type]
    shown = ", ".join(map(str, names)) or f"with model_type {model_type!r}"
    why = unsupported(config, [str(name) for name in names])
    because = "" if why is None else f", since {why}"
    raise InvalidModel(
        f"{config.source}: architecture {shown} is not supported{because}; use one of {', '.join(ARCHITECTURES)}"
    )


def _check_accepted(config: Fields, family: Family) -> None:
    """Refuses what the decoder would compute in another way than the model's authors, without an error."""
    for accepted in family.accepted:
        if config.get(accepted.key) not in (None, *accepted.values):
            raise config.wrong(accepted.key, accepted.expected)


def _quantization(config: Fields, family: Family) -> str | None:
    """`quantization_config` as JSON, once it was read; None where `other_tensors` of the family say what it says."""
    quantized = config.child("quantization_config")
    if quantized is None or quantized.get("quant_method") in family.quant_methods:
        return None
    read_format(config)
    return json.dumps(quantized.values)


def _head_dim(config: Fields, family: Family, num_heads: int) -> int:
    hidden_size = config.positive_int("hidden_size")
    given = config.optional_positive_int("head_dim", most=MOST_HEAD_DIM) or family.head_dim
    if given is None and hidden_size % num_heads:
        raise config.wrong("hidden_size", f"a multiple of num_attention_heads {num_heads}, or head_dim given")
    head_dim = hidden_size // num_heads if given is None else given
    if head_dim % 16:
        name = "head_dim" if given else "hidden_size / num_attention_heads"
        raise InvalidModel(f"{config.source}: {name} is {head_dim}; only multiples of 16 are supported")
    return head_dim


def _dtype(config: Fields) -> str:
    name = "dtype" if config.get("dtype") is not None else "torch_dtype"
    dtype = config.get(name)
    if dtype is None:
        return "float32"
    if dtype not in DTYPES:
        raise config.wrong(name, ", ".join(DTYPES))
    return str(dtype)


def _with_generation(spec: ModelSpec, directory: Path) -> ModelSpec:
    """`spec` with the end-of-sequence tokens of `generation_config.json` beside those of `config.json`."""
    generation = directory / "generation_config.json"
    if not generation.is_file():
        return spec
    ids = (*spec.eos_token_ids, *Fields.read(generation).token_ids("eos_token_id"))
    return replace(spec, eos_token_ids=tuple(dict.fromkeys(ids)))


def _with_own_head(spec: ModelSpec, directory: Path) -> ModelSpec:
    """`spec` without tied embeddings where the files hold another output matrix, as transformers 5 reads it."""
    if not any(directory.glob("model*.safetensors")):
        return spec
    head = own_head(directory, spec.family)
    if head is None:
        return spec
    note = (
        f"{directory}: config.json has tie_word_embeddings true, but {head} differs from the embeddings; "
        "the file's is used, as in transformers 5"
    )
    return replace(spec, tie_word_embeddings=False, notes=(*spec.notes, note))
