"""Command-R7B and Command-A: a Command-R whose layers slide and rotate; every fourth one does neither."""

from __future__ import annotations

from dataclasses import replace

from moorage.workers.gpu.model.families.cohere import COHERE_TENSORS, DEFAULTS, cohere_keys
from moorage.workers.gpu.model.family import ACCEPTED, Accepted, Family, PublishedModel
from moorage.workers.hf_fields import Fields
from moorage.workers.hf_layers import read_pattern, read_window, with_rotation, with_windows
from moorage.workers.spec import ModelSpec


def _own_keys(spec: ModelSpec, config: Fields) -> ModelSpec:
    slides, window = read_pattern(config, 4), read_window(config, 4096)
    # transformers rotates where there is a window, so a model without windows has no positions at all.
    rotates = slides if window is not None else (False,) * spec.num_layers
    spec = with_rotation(cohere_keys(spec, config), rotates)
    return with_windows(spec, config, slides, window)


_PUBLISHED_ONLY = "the value of every published model"
FAMILY = Family(
    name="cohere2",
    architectures=("Cohere2ForCausalLM",),
    tensors=replace(
        COHERE_TENSORS, layer={k: v for k, v in COHERE_TENSORS.layer.items() if "_norm" not in k}
    ),
    own_keys=_own_keys,
    defaults=DEFAULTS,
    accepted=(
        *ACCEPTED,
        Accepted(
            "order_of_interleaved_layers", ("local_attn_first",), f"local_attn_first, {_PUBLISHED_ONLY}"
        ),
        Accepted("position_embedding_type", ("rope_gptj",), f"rope_gptj, {_PUBLISHED_ONLY}"),
        Accepted("rotary_pct", (1,), f"1.0, {_PUBLISHED_ONLY}"),
        Accepted("use_gated_activation", (True,), f"true, {_PUBLISHED_ONLY}"),
        Accepted("use_parallel_block", (True,), f"true, {_PUBLISHED_ONLY}"),
    ),
    # tie_word_embeddings and sliding_window_pattern say the same to transformers.
    ignored=("use_embedding_sharing", "use_parallel_embedding", "layer_switch"),
    published={
        "command-r7b": PublishedModel(
            32, 4096, 14336, 32, 8, 256000, 132096, {"rope_theta": 50000.0, "logit_scale": 0.25}
        ),
        "command-a": PublishedModel(
            64, 12288, 36864, 96, 8, 256000, 131072, {"rope_theta": 50000.0, "logit_scale": 0.25}
        ),
    },
)
