"""Loss, keys, values and gradients equal those of transformers for every way in which families differ."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from moorage.runtime.calibrate.dense import DenseDecoder
from moorage.workers.gpu.model.decoder import Decoder
from tests.tiny_models import TinyModel, build_tiny_checkpoint, random_prompt

FAMILIES = {
    "llama3": "scaled rope",
    "llama_biased": "biases",
    "qwen3": "norm of each head",
    "olmo2": "norm of all heads, norms after the parts",
    "cohere": "parallel parts, layer norm, norm of each head of a layer",
    "gemma2": "sandwich norms, GELU, windows, soft caps",
    "granite": "scales of embeddings, residuals, attention and logits",
    "stablelm": "partial rotation",
    "smollm3": "layers without rotation",
    "phi3": "one matrix for queries, keys and values; longrope",
    "gpt_oss": "sinks, yarn, clamped swish, experts with biases",
    "qwen2_moe": "a shared expert",
    "mixtral": "experts",
}
INTERLEAVED = ("cohere",)
"""Families whose channels 2 i and 2 i + 1 rotate together; the decoder has them D / 2 apart."""
LENGTH = 48


def oracle(model: TinyModel, ids: torch.Tensor) -> tuple[float, list[tuple[torch.Tensor, torch.Tensor]]]:
    """transformers' loss, and keys and values of each layer [T, Hkv * D] with their gradients."""
    rows: list[tuple[torch.Tensor, torch.Tensor]] = []
    width = model.spec.num_kv_heads * model.spec.head_dim
    caught: dict[tuple[int, str], torch.Tensor] = {}

    def catch(index: int, name: str, module: torch.nn.Module) -> torch.utils.hooks.RemovableHandle:
        def hook(_: object, __: object, out: torch.Tensor) -> None:
            out.retain_grad()
            caught[index, name] = out

        return module.register_forward_hook(hook)

    with torch.enable_grad():
        handles = [
            catch(index, *each)
            for index, layer in enumerate(model.hf_model.model.layers)
            for each in projections(layer.self_attn)
        ]
        loss = model.hf_model(input_ids=ids[None], labels=ids[None], use_cache=False).loss
        (loss * (len(ids) - 1)).backward()
    for handle in handles:
        handle.remove()
    for index in range(len(model.hf_model.model.layers)):
        packed = caught.get((index, "qkv"))
        key = packed if packed is not None else caught[index, "key"]
        value = packed if packed is not None else caught[index, "value"]
        assert key.grad is not None
        assert value.grad is not None
        of_keys = slice(-2 * width, -width) if packed is not None else slice(None)
        for out, part in ((key, of_keys), (value, slice(-width, None))):
            flat = [_by_token(x, len(ids))[:, part] for x in (out.detach(), out.grad)]
            rows.append((flat[0], flat[1]))
    return loss.item(), rows


def _by_token(x: torch.Tensor, length: int) -> torch.Tensor:
    """[T, channels] of what a projection or a norm of heads gave, [1, T, ...] or [1, heads, T, D]."""
    x = x[0]
    return (x.transpose(0, 1) if x.shape[0] != length else x).reshape(length, -1)


def _halves(x: torch.Tensor, head_dim: int) -> torch.Tensor:
    """Channels of each head [T, H * D] in the decoder's order."""
    return x.view(len(x), -1, head_dim // 2, 2).transpose(2, 3).reshape(x.shape)


def projections(attention: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Module]]:
    """What gives the keys and values of a layer as the stores hold them."""
    if hasattr(attention, "qkv_proj"):
        yield "qkv", attention.qkv_proj
        return
    norm = getattr(attention, "k_norm", None)
    yield "key", attention.k_proj if norm is None else norm
    yield "value", attention.v_proj


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_those_of_transformers(family: str, tmp_path: Path) -> None:
    model = build_tiny_checkpoint(family, tmp_path)
    ids = random_prompt(model.spec, LENGTH)
    wanted_loss, wanted = oracle(model, ids)
    dense = DenseDecoder(Decoder.load(model.directory, model.spec, "float32", "cpu"))
    loss, rows = dense.rows(ids)
    assert loss == pytest.approx(wanted_loss, rel=1e-5)
    assert len(rows) == len(model.spec.stored_layers)
    for index, layer in zip(model.spec.stored_layers, rows, strict=True):
        key, value = wanted[2 * index : 2 * index + 2]
        if family in INTERLEAVED:
            key = tuple(_halves(x, model.spec.head_dim) for x in key)
        for found, (expected, _) in ((layer.keys, key), (layer.values, value)):
            torch.testing.assert_close(found.flatten(1), expected, rtol=1e-4, atol=1e-4)
        for found, (_, expected) in ((layer.key_gradients, key), (layer.value_gradients, value)):
            assert expected.abs().max() > 0
            torch.testing.assert_close(
                found.flatten(1), expected, rtol=1e-3, atol=1e-4 * float(expected.std())
            )


def test_a_quantised_checkpoint_has_the_gradients_of_its_rounded_weights(tmp_path: Path) -> None:
    model = build_tiny_checkpoint("gpt_oss_mxfp4", tmp_path)
    ids = random_prompt(model.spec, LENGTH)
    wanted_loss, wanted = oracle(model, ids)
    decoder = Decoder.load(model.directory, model.spec, "float32", "cpu")
    assert not isinstance(decoder.weights.layers[0].feed_forward.experts.down, torch.Tensor)
    loss, rows = DenseDecoder(decoder).rows(ids)
    assert loss == pytest.approx(wanted_loss, rel=1e-4)
    index = model.spec.stored_layers[0]
    gradient = wanted[2 * index + 1][1]
    torch.testing.assert_close(
        rows[0].value_gradients.flatten(1), gradient, rtol=1e-2, atol=1e-3 * float(gradient.std())
    )
