"""The keys of a config.json that change nothing in what a model computes; every other is to be read.

A key that neither the reader nor these lists know may change the computation, so it is refused.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from moorage.workers.errors import InvalidModel
from moorage.workers.hf_fields import Fields


def _keys(names: str) -> frozenset[str]:
    return frozenset(names.split())


WITHOUT_EFFECT: Mapping[str, frozenset[str]] = {
    "where the file comes from, and which code of its authors belongs to it": _keys(
        "transformers_version transformers.js_config auto_map name_or_path model_name tokenizer_class "
        "processor_class unsloth_version unsloth_fixed license language library_name"
    ),
    "how a library runs it, not what it computes": _keys(
        "attn_implementation use_flash_attn use_flash_attention "
        "use_memory_efficient_attention "
        "use_cache use_fused_rope use_fused_mlp torchscript return_dict output_attentions output_hidden_states "
        "keys_to_ignore_at_inference chunk_size_feed_forward pretraining_tp tf_legacy_loss is_decoder "
        "tie_encoder_decoder cross_attention_hidden_size ep_size tp_size"
    ),
    "what a family is found by": _keys("architectures model_type is_llama_config"),
    "training": _keys(
        "attention_dropout attn_pdrop hidden_dropout resid_pdrop resid_dropout embd_pdrop embedding_dropout dropout "
        "hidden_dropout_prob attention_probs_dropout_prob classifier_dropout initializer_range initializer_factor "
        "init_std initializer_cutoff_factor gradient_checkpointing use_bfloat16 neftune_noise_alpha "
        "output_router_logits router_aux_loss_coef router_z_loss_coef router_jitter_noise input_jitter_noise "
        "aux_loss_alpha seq_aux use_reentrant max_train_length"
    ),
    "generation": _keys(
        "max_length min_length max_new_tokens do_sample early_stopping num_beams num_beam_groups diversity_penalty "
        "temperature top_k top_p typical_p repetition_penalty length_penalty no_repeat_ngram_size "
        "encoder_no_repeat_ngram_size bad_words_ids num_return_sequences output_scores return_dict_in_generate "
        "forced_bos_token_id forced_eos_token_id remove_invalid_values exponential_decay_length_penalty "
        "suppress_tokens begin_suppress_tokens prefix cache_implementation pad_token_id sep_token_id unk_token_id "
        "decoder_start_token_id model_max_length max_sequence_length seq_length logits_to_keep num_logits_to_keep"
    ),
    "labels of classifiers": _keys(
        "id2label label2id num_labels problem_type finetuning_task task_specific_params"
    ),
}
"""Keys by why they have no effect."""

OFF: Mapping[str, tuple[object, ...]] = {
    "activation": ("silu", "swiglu"),
    "add_cross_attention": (False,),
    "alibi": (False,),
    "apply_residual_connection_post_layernorm": (False,),
    "attention_bias": (False,),
    "bias": (False,),
    "embedding_multiplier": (1,),
    "full_attn_mod": (1,),
    "interpolate_factor": (1,),
    "is_encoder_decoder": (False,),
    "lm_head_bias": (False,),
    "logit_scale": (1,),
    "logits_scaling": (1,),
    "mlp_bias": (False,),
    "num_nextn_predict_layers": (0,),
    "parallel_attn": (False,),
    "pruned_heads": ({},),
    "qk_layernorm": (False,),
    "qkv_bias": (False,),
    "residual_multiplier": (1,),
    "rope_interleaved": (False,),
    "shared_expert_intermediate_size": (0,),
    "use_alibi": (False,),
    "use_bidirectional_attention": (False,),
    "use_dynamic_ntk": (False,),
    "use_logn_attn": (False,),
    "use_mrope": (False,),
    "use_parallel_residual": (False,),
    "use_qk_norm": (False,),
    "use_qkv_bias": (False,),
    "use_sliding_window": (False,),
}
"""The values at which keys of some families change nothing in the others."""

UNUSED_WINDOW = ("sliding_window", "max_window_layers", "layer_types")
"""Keys that say nothing where no layer slides."""
ROPE = _keys(
    "rope_theta rope_type type factor original_max_position_embeddings attention_factor beta_fast beta_slow mscale "
    "mscale_all_dim truncate low_freq_factor high_freq_factor short_factor long_factor partial_rotary_factor "
    "finetuned mrope_section"
)
"""Keys of `rope_scaling` and `rope_parameters`. Each type ignores those of the others, as transformers does."""

_PRIVATE = "_"
"""What keys begin with that transformers notes for itself, such as where a model was read from."""
_NO_EFFECT = frozenset[str]().union(*WITHOUT_EFFECT.values())


def check_keys(config: Fields, ignored: Collection[str], family: str) -> None:
    """Refuses keys that `config` has and that nobody has read, unless they are known to have no effect.

    `ignored` are those which this family's architecture has no use for, or none beside its other keys; null counts as
    absent. Raises InvalidModel.
    """
    unknown = [
        key
        for key, value in config.values.items()
        if value is not None
        and key not in config.was_read
        and key not in _NO_EFFECT
        and not key.startswith(_PRIVATE)
        and key not in ignored
        and value not in OFF.get(key, ())
    ]
    if unknown:
        raise _unknown(config, unknown, f"in a {family} model")


def check_rope_keys(rope: Fields, known: Collection[str] = ROPE) -> None:
    """Refuses keys of a rotary embedding that are not known: those that no type has. Raises InvalidModel."""
    unknown = [key for key, value in rope.values.items() if value is not None and key not in known]
    if unknown:
        raise _unknown(rope, unknown, "in a rotary embedding")


def _unknown(config: Fields, keys: list[str], where: str) -> InvalidModel:
    value = repr(config.values[keys[0]])
    value = value if len(value) <= 40 else f"{value[:37]}..."
    more = f" (nor {', '.join(keys[1:4])}{', …' if len(keys) > 4 else ''})" if len(keys) > 1 else ""
    return InvalidModel(
        f"{config.source}: {keys[0]} is {value}, which is not known {where}{more} and may change what it computes; "
        "take it out of the file if it does not"
    )
