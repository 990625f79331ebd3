"""The shape of a model, read from a Hugging Face directory without torch or transformers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from moorage.workers.errors import InvalidModel
from moorage.workers.hf_directory import check_directory
from moorage.workers.hf_fields import Fields
from moorage.workers.hf_rope import read_rope
from moorage.workers.hf_tensors import tensor_names
from moorage.workers.hf_weights import has_own_head
from moorage.workers.spec import DualChunkSpec, ModelSpec, RopeSpec

ARCHITECTURES: Mapping[str, str] = {
    "LlamaForCausalLM": "llama",
    "YiForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "InternLM2ForCausalLM": "internlm2",
}
"""Family of each architecture that can be served."""

_MODEL_TYPES: Mapping[str, tuple[str, ...]] = {"llama": ("Yi", "yi")}
"""What `model_type` may say beside an architecture of a family, other than the family's name."""
MOST_LAYERS, MOST_HEADS, MOST_HEAD_DIM = 4096, 4096, 4096
MOST_CHANNELS, MOST_TOKENS = 2**20, 2**24
"""Sizes beyond which a config.json is taken for a mistake; several times the largest that is published."""
DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True, slots=True)
class _Biases:
    qkv: bool = False
    output: bool = False
    mlp: bool = False


def read_model_spec(directory: str | Path) -> ModelSpec:
    """ModelSpec from `config.json` and, where there is one, `generation_config.json`.

    Raises InvalidModel with the file, the field and the fix when the model can't be served as it is.
    """
    directory = Path(directory)
    check_directory(directory)
    path = directory / "config.json"
    config = Fields.read(path)
    family = _family(config)
    _check_plain(config, family)
    spec = _spec(config, family, _eos_token_ids(directory, config))
    return _with_own_head(spec, directory) if spec.tie_word_embeddings else spec


def _with_own_head(spec: ModelSpec, directory: Path) -> ModelSpec:
    """`spec` without tied embeddings where the files hold another output matrix, as transformers 5 reads it."""
    if not any(directory.glob("model*.safetensors")) or not has_own_head(directory, spec.family):
        return spec
    head = tensor_names(spec.family).lm_head
    note = (
        f"{directory}: config.json has tie_word_embeddings true, but {head}.weight differs from the embeddings; "
        "the file's is used, as in transformers 5"
    )
    return replace(spec, tie_word_embeddings=False, notes=(*spec.notes, note))


def _spec(config: Fields, family: str, eos_token_ids: tuple[int, ...]) -> ModelSpec:
    num_heads = config.positive_int("num_attention_heads", most=MOST_HEADS)
    num_kv_heads = config.positive_int("num_key_value_heads", num_heads)
    if num_heads % num_kv_heads:
        raise config.wrong("num_key_value_heads", f"a divisor of num_attention_heads {num_heads}")
    head_dim = _head_dim(config, family, num_heads)
    biases = _biases(config, family)
    return ModelSpec(
        family=family,
        num_layers=config.positive_int("num_hidden_layers", most=MOST_LAYERS),
        hidden_size=config.positive_int("hidden_size", most=MOST_CHANNELS),
        intermediate_size=config.positive_int("intermediate_size", most=MOST_CHANNELS),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        vocab_size=config.positive_int("vocab_size", most=MOST_TOKENS),
        max_position_embeddings=config.positive_int("max_position_embeddings"),
        rms_norm_eps=config.positive_float("rms_norm_eps", 1e-6, least=1e-15, most=0.1),
        rope=_rope(config, head_dim),
        tie_word_embeddings=config.flag("tie_word_embeddings"),
        qkv_bias=biases.qkv,
        output_bias=biases.output,
        mlp_bias=biases.mlp,
        qk_norm=family == "qwen3",
        dtype=_dtype(config),
        bos_token_id=next(iter(config.token_ids("bos_token_id")), None),
        eos_token_ids=eos_token_ids,
        dual_chunk=_dual_chunk(config),
        sliding_window=_sliding_window(config, family),
    )


def _rope(config: Fields, head_dim: int) -> RopeSpec:
    """The rotary embedding. Rotation of a part of the channels counts as an error, in every family."""
    rope = read_rope(config, head_dim)
    if rope.rotary_dim != head_dim:
        raise InvalidModel(
            f"{config.source}: partial_rotary_factor makes {rope.rotary_dim} of {head_dim} channels rotate, but "
            "transformers rotates all of them in this architecture; remove it, or correct architectures"
        )
    return rope


def _dual_chunk(config: Fields) -> DualChunkSpec | None:
    """Qwen2.5-1M's key. Its chunk_size is the largest position, so the paper's c is one more."""
    values = config.child("dual_chunk_attention_config")
    if values is None:
        return None
    largest, local = values.positive_int("chunk_size", 8192), values.positive_int("local_size", 1024)
    if 2 * local > largest:
        # The last `local` keys would lie in more than two chunks, and only two keep their distances.
        raise values.wrong("local_size", f"at most half of chunk_size {largest}")
    original = values.get("original_max_position_embeddings") or None
    if original is not None:
        original = values.positive_int("original_max_position_embeddings")
    return DualChunkSpec(largest + 1, largest - local, original)


def _family(config: Fields) -> str:
    names = config.get("architectures") or []
    if not isinstance(names, list):
        raise config.wrong("architectures", "a list of names")
    known = [name for name in names if name in ARCHITECTURES]
    model_type = config.get("model_type")
    for name in known:
        family = ARCHITECTURES[name]
        # transformers goes by model_type, vLLM by architectures.
        if model_type not in (None, family, *_MODEL_TYPES.get(family, ())):
            raise InvalidModel(
                f"{config.source}: architectures says {name} and model_type {model_type!r}, which compute "
                "differently; correct the one that the weights were not trained as"
            )
    if len({ARCHITECTURES[name] for name in known}) > 1:
        raise config.wrong("architectures", "of one family; leave the one that the weights are of")
    if known:
        return ARCHITECTURES[known[0]]
    if not names and model_type in ARCHITECTURES.values():
        return str(model_type)
    shown = ", ".join(map(str, names)) or f"with model_type {model_type!r}"
    raise InvalidModel(
        f"{config.source}: architecture {shown} is not supported; use one of {', '.join(ARCHITECTURES)}"
    )


def _check_plain(config: Fields, family: str) -> None:
    """Refuse what the decoder would silently compute otherwise than the model's authors did."""
    if config.get("quantization_config") is not None:
        raise InvalidModel(
            f"{config.source}: quantization_config is set; use the checkpoint with plain float weights"
        )
    if config.get("hidden_act") not in (None, "silu", "swish"):
        raise config.wrong("hidden_act", "silu, the only supported activation")
    if not config.flag("is_causal", True):
        raise config.wrong("is_causal", "true: a model that generates attends no later token")
    window = _sliding_window(config, family)
    if window is not None and window < config.positive_int("max_position_embeddings"):
        raise InvalidModel(
            f"{config.source}: sliding_window {window} is active and not supported; set it to null to attend "
            "the whole context, or use a checkpoint trained without it"
        )


def _sliding_window(config: Fields, family: str) -> int | None:
    """Tokens that some layer attends at most, by transformers' rules and defaults; None is all."""
    if family in ("qwen2", "qwen3"):
        may_slide = config.flag("use_sliding_window") and _some_qwen_layer_slides(config)
    else:
        may_slide = family == "mistral"
    if not may_slide or config.values.get("sliding_window", 4096) is None:
        return None
    return config.positive_int("sliding_window", 4096)


def _some_qwen_layer_slides(config: Fields) -> bool:
    layer_types = config.get("layer_types")
    if isinstance(layer_types, list):
        return any(name != "full_attention" for name in layer_types)
    num_full_layers = config.get("max_window_layers")
    if not isinstance(num_full_layers, int):
        num_full_layers = 28
    return num_full_layers < config.positive_int("num_hidden_layers")


def _head_dim(config: Fields, family: str, num_heads: int) -> int:
    hidden_size = config.positive_int("hidden_size")
    given = config.optional_positive_int("head_dim", most=MOST_HEAD_DIM)
    if given is None and family == "qwen3":
        given = 128
    if given is None and hidden_size % num_heads:
        raise config.wrong("hidden_size", f"a multiple of num_attention_heads {num_heads}, or head_dim given")
    head_dim = hidden_size // num_heads if given is None else given
    if head_dim % 16:
        name = "head_dim" if given else "hidden_size / num_attention_heads"
        raise InvalidModel(f"{config.source}: {name} is {head_dim}; only multiples of 16 are supported")
    return head_dim


def _biases(config: Fields, family: str) -> _Biases:
    if family == "qwen2":
        return _Biases(qkv=True)
    if family == "mistral":
        return _Biases()
    if family == "internlm2":
        both = config.flag("bias", True)
        return _Biases(qkv=both, output=both)
    both = config.flag("attention_bias")
    return _Biases(qkv=both, output=both, mlp=family == "llama" and config.flag("mlp_bias"))


def _dtype(config: Fields) -> str:
    name = "dtype" if config.get("dtype") is not None else "torch_dtype"
    dtype = config.get(name)
    if dtype is None:
        return "float32"
    if dtype not in DTYPES:
        raise config.wrong(name, ", ".join(DTYPES))
    return str(dtype)


def _eos_token_ids(directory: Path, config: Fields) -> tuple[int, ...]:
    ids = config.token_ids("eos_token_id")
    generation = directory / "generation_config.json"
    if generation.is_file():
        ids += Fields.read(generation).token_ids("eos_token_id")
    return tuple(dict.fromkeys(ids))
