"""The weights of a decoder: their allocation, and how they are read from safetensors files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from moorage.workers.counting import counted
from moorage.workers.errors import InvalidModel, ResourceExhausted
from moorage.workers.gpu.model.checkpoint import read_tensors
from moorage.workers.gpu.model.naming import is_finite, slots
from moorage.workers.gpu.model.parameters import DecoderWeights, LayerWeights
from moorage.workers.hf_tensors import present_name
from moorage.workers.hf_weights import check_weights
from moorage.workers.safetensors_header import TensorHeader
from moorage.workers.spec import ModelSpec, QkNorm

Progress = Callable[[int, int], None]
"""A function that is called with the bytes that are read so far, and the bytes of all tensors."""

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def resolve_dtype(name: str, spec: ModelSpec) -> torch.dtype:
    """The torch type of float32, bfloat16, float16 or auto, the checkpoint's own. Raises InvalidModel for others."""
    dtype = _DTYPES.get(spec.dtype if name == "auto" else name)
    if dtype is None:
        raise InvalidModel(f"model.dtype is {name!r}; use auto, {', '.join(_DTYPES)}")
    return dtype


def load_weights(
    directory: str | Path,
    spec: ModelSpec,
    dtype: torch.dtype,
    device: torch.device,
    progress: Progress | None = None,
) -> DecoderWeights:
    """Reads a checkpoint's safetensors onto `device`, tensor by tensor.

    The host never holds a second copy of the model, nor any copy of one that goes to a GPU. Names and shapes are
    checked before anything is read, and values while they are copied: NaN and infinity count as damage. Raises
    InvalidModel with the file and the tensor, and ResourceExhausted when the device has too little memory.
    """
    wanted = list(check_weights(Path(directory), spec).values())
    weights = _allocate(spec, dtype, device)
    filled = slots(spec, weights)
    total_bytes, done_bytes = sum(header.num_bytes for header in wanted), 0
    if progress is not None:
        progress(0, total_bytes)
    for header, tensor in read_tensors(wanted):
        slot = filled[present_name(header.name, spec.family)]
        slot.fill(tensor)
        if not slot.is_finite():
            raise _not_finite(header, tensor, dtype)
        del tensor  # otherwise this file stays mapped beside the next one
        done_bytes += header.num_bytes
        if progress is not None:
            progress(done_bytes, total_bytes)
    return weights


def _not_finite(header: TensorHeader, tensor: Tensor, dtype: torch.dtype) -> InvalidModel:
    where = f"{header.file}: tensor {header.name}"
    if is_finite(tensor):
        largest = tensor.abs().max().item()
        return InvalidModel(
            f"{where} has values up to {largest:.3g}, too large for {str(dtype).removeprefix('torch.')}; set "
            "model.dtype to bfloat16 or float32"
        )
    count = int((~torch.isfinite(tensor)).sum())
    return InvalidModel(
        f"{where} holds NaN or infinity in {counted(count, 'element')}; download the weights again, or repair them"
    )


def random_weights(spec: ModelSpec, device: torch.device, seed: int = 0) -> DecoderWeights:
    """Weights for measurements: normal with a deviation of 0.02, norms of 1, in the type of `spec`."""
    weights = _allocate(spec, resolve_dtype("auto", spec), device)
    generator = torch.Generator(device=device).manual_seed(seed)
    for tensor in weights.tensors():
        if tensor.dim() == 1:
            tensor.fill_(1.0)
        else:
            tensor.normal_(0.0, 0.02, generator=generator)
    return weights


def _allocate(spec: ModelSpec, dtype: torch.dtype, device: torch.device) -> DecoderWeights:
    def empty(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=device)

    try:
        embed = empty(spec.vocab_size, spec.hidden_size)
        return DecoderWeights(
            embed=embed,
            layers=tuple(_allocate_layer(spec, empty) for _ in range(spec.num_layers)),
            norm=empty(spec.hidden_size),
            lm_head=embed if spec.tie_word_embeddings else empty(spec.vocab_size, spec.hidden_size),
        )
    except torch.OutOfMemoryError:
        needed = _allocate(spec, dtype, torch.device("meta")).num_bytes
        raise ResourceExhausted(
            f"the weights need {needed / 1e9:.2f} GB, more than {device} has; use a smaller model or dtype"
        ) from None


def _allocate_layer(spec: ModelSpec, empty: Callable[..., Tensor]) -> LayerWeights:
    hidden, head_dim, intermediate = spec.hidden_size, spec.head_dim, spec.intermediate_size
    num_q_rows = spec.num_heads * head_dim
    num_qkv_rows = num_q_rows + 2 * spec.num_kv_heads * head_dim
    return LayerWeights(
        input_norm=empty(hidden),
        qkv=empty(num_qkv_rows, hidden),
        output=empty(hidden, num_q_rows),
        post_norm=empty(hidden),
        gate_up=empty(2 * intermediate, hidden),
        down=empty(hidden, intermediate),
        qkv_bias=empty(num_qkv_rows) if spec.qkv_bias else None,
        output_bias=empty(hidden) if spec.output_bias else None,
        gate_up_bias=empty(2 * intermediate) if spec.mlp_bias else None,
        down_bias=empty(hidden) if spec.mlp_bias else None,
        q_norm=empty(head_dim) if spec.qk_norm is QkNorm.HEAD else None,
        k_norm=empty(head_dim) if spec.qk_norm is QkNorm.HEAD else None,
    )
