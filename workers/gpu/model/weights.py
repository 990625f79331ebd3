"""The weights of a decoder: how they are read from the files of a model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from moorage.workers.counting import counted
from moorage.workers.errors import InvalidModel
from moorage.workers.gguf.matrices import kept_names
from moorage.workers.gguf.tensors import MatrixReader
from moorage.workers.gguf.weights import decoder_tensors
from moorage.workers.gpu.model.allocation import allocate
from moorage.workers.gpu.model.checkpoint import read_tensors
from moorage.workers.gpu.model.host_experts import pin_experts
from moorage.workers.gpu.model.matrix_filling import fill_matrices
from moorage.workers.gpu.model.matrix_rows import is_finite
from moorage.workers.gpu.model.naming import slots
from moorage.workers.gpu.model.parameters import DecoderWeights
from moorage.workers.gpu.model.weight_plan import plan_weights
from moorage.workers.gpu.transfer.pinning import CudaHostMemory
from moorage.workers.hf_tensors import present_name
from moorage.workers.hf_weights import check_weights
from moorage.workers.safetensors_header import TensorHeader
from moorage.workers.spec import ExpertsPlace, ModelSpec, WeightKind

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
    kept: WeightKind = WeightKind.AUTO,
    experts: ExpertsPlace = ExpertsPlace.DEVICE,
) -> DecoderWeights:
    """Reads a checkpoint onto `device`, tensor by tensor, and quantises those that `kept` asks for.

    The host never holds a second copy of the model, nor any copy of one that goes to a GPU. Names and shapes are
    checked before anything is read, and values while they are copied: NaN and infinity count as damage. Raises
    InvalidModel with the file and the tensor, and ResourceExhausted when the device has too little memory.
    """
    headers = check_weights(Path(directory), spec)
    wanted = list(headers.values())
    plan, tensors = plan_weights(spec, kept), decoder_tensors(spec, headers)
    weights = allocate(spec, dtype, device, plan, experts)
    filled = slots(spec, weights, tensors)
    total_bytes, done_bytes = sum(header.num_bytes for header in wanted), 0
    if progress is not None:
        progress(0, total_bytes)
    for header, tensor in read_tensors(wanted, dtype, kept_names(plan, tensors, headers)):
        slot = filled[present_name(header.name, spec.family)]
        if isinstance(tensor, Tensor):
            slot.fill(tensor)
        else:
            fill_matrices(slot, tensor)
        if not slot.is_finite():
            raise _not_finite(header, tensor, dtype)
        del tensor  # otherwise this file stays mapped beside the next one
        done_bytes += header.num_bytes
        if progress is not None:
            progress(done_bytes, total_bytes)
    if device.type == "cuda" and experts is ExpertsPlace.HOST:
        pin_experts(weights, CudaHostMemory())
    return weights


def _not_finite(header: TensorHeader, tensor: Tensor | MatrixReader, dtype: torch.dtype) -> InvalidModel:
    where = f"{header.file}: tensor {header.name}"
    if not isinstance(tensor, Tensor):
        return InvalidModel(f"{where} holds NaN or infinity among its scales; download the file again")
    if not tensor.is_floating_point():
        return InvalidModel(
            f"{where} gives weights that are not finite in {str(dtype).removeprefix('torch.')}; set model.dtype to "
            "bfloat16 or float32, or download the weights again"
        )
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
