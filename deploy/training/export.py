"""Write a checkpoint in the Hugging Face layout, with its loss curve.

python -m deploy.training.export --work WORK --output deploy/models/moorage-ref
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor

from deploy.training.model import Llama, Shape
from deploy.training.recipe import Recipe
from deploy.training.tokenizer import BOS, EOS, save_tokenizer, special_id

MEAN_STEPS = 25
"""Steps that a point of the drawn curve is the mean of."""


def export(model: Llama, tokenizer: Tokenizer, folder: Path) -> None:
    """Write weights in fp16, configuration and tokenizer into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {
        f"model.{name}": weight.detach().cpu().to(torch.float16).contiguous()
        for name, weight in model.state_dict().items()
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    bos, eos = special_id(tokenizer, BOS), special_id(tokenizer, EOS)
    _write(folder / "config.json", hf_config(model.shape, bos, eos))
    _write(folder / "generation_config.json", {"bos_token_id": bos, "do_sample": False, "eos_token_id": eos})
    save_tokenizer(tokenizer, folder, model.shape.max_tokens)


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The weights of an exported model, in fp32 and by the names that `Llama` has."""
    weights = load_file(folder / "model.safetensors")
    return {name.removeprefix("model."): weight.float() for name, weight in weights.items()}


def hf_config(shape: Shape, bos: int, eos: int) -> dict[str, Any]:
    """The fields of `config.json`."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": bos,
        "dtype": "float16",
        "eos_token_id": eos,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "max_position_embeddings": shape.max_tokens,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": shape.num_heads,
        "num_hidden_layers": shape.num_layers,
        "num_key_value_heads": shape.num_kv_heads,
        "rms_norm_eps": shape.rms_norm_eps,
        "rope_parameters": {"rope_theta": shape.rope_theta, "rope_type": "default"},
        "tie_word_embeddings": True,
        "use_cache": True,
        "vocab_size": shape.vocab_size,
    }


def draw_losses(losses: list[float], recipe: Recipe, path: Path) -> None:
    """A PNG of the loss over the steps, with a line where rows grow longer."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    means = torch.tensor(losses).unfold(0, min(MEAN_STEPS, len(losses)), 1).mean(-1)
    axes.plot(range(len(losses) - len(means) + 1, len(losses) + 1), means.tolist(), linewidth=1)
    begin = 0
    for stage in recipe.stages:
        if begin < len(losses):
            axes.axvline(begin, color="0.8", linewidth=0.8)
            axes.text(begin, axes.get_ylim()[1], f" {stage.tokens}", color="0.4", va="top", fontsize=8)
        begin += stage.steps
    axes.set(xlabel=f"step of {recipe.batch_tokens:,} tokens", ylabel="weighted loss, nats a token")
    axes.set_title(f"Loss, mean of {MEAN_STEPS} steps; tokens of a row at each stage's begin", fontsize=10)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _write(path: Path, fields: dict[str, Any]) -> None:
    path.write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
