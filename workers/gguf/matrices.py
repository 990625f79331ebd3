"""What the blocks of each GGUF type become as a quantised matrix in memory; free of torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from moorage.kernels.code_kinds import PANEL, CodeKind
from moorage.workers.gguf.model import GgufModel
from moorage.workers.gguf.weights import GgufTensor
from moorage.workers.gpu.model.matrix_kind import MatrixKind
from moorage.workers.gpu.model.weight_plan import WeightPlan, matrices, stored_matrix
from moorage.workers.hf_tensors import CheckpointTensor, checkpoint_tensors
from moorage.workers.safetensors_header import TensorHeader
from moorage.workers.spec import ModelSpec, StoredMatrix

KINDS: Mapping[str, MatrixKind] = {
    "Q8_0": MatrixKind(CodeKind.INT8, 32),
    "Q4_0": MatrixKind(CodeKind.INT4, 32),
    "Q4_1": MatrixKind(CodeKind.INT4, 32, has_minima=True),
    "Q5_0": MatrixKind(CodeKind.INT8, 32),
    "Q5_1": MatrixKind(CodeKind.INT8, 32, has_minima=True),
    "Q2_K": MatrixKind(CodeKind.INT4, 16, has_minima=True),
    "Q3_K": MatrixKind(CodeKind.INT4, 16),
    "Q4_K": MatrixKind(CodeKind.INT4, 32, has_minima=True),
    "Q5_K": MatrixKind(CodeKind.INT8, 32, has_minima=True),
    "Q6_K": MatrixKind(CodeKind.INT8, 16),
    "IQ4_NL": MatrixKind(CodeKind.TABLE4, 32),
    "IQ4_XS": MatrixKind(CodeKind.TABLE4, 32),
    "MXFP4": MatrixKind(CodeKind.TABLE4, 32, scale_bytes=4),
}
"""The matrix of each type. Codes are those of the file. Scales and minima are float16: exact in types of one level,
and in the types with common scales of 256 elements (K, IQ4_XS) their products rounded to float16."""


def stored_matrices(model: GgufModel, spec: ModelSpec) -> tuple[StoredMatrix, ...]:
    """What the file holds quantised; the others become float."""
    may_be, found = dict(matrices(spec)), []
    for tensor in checkpoint_tensors(spec, model.tensors):
        header = model.tensors.get(tensor.name)
        kind = None if header is None or tensor.kind != "weight" else KINDS.get(header.dtype)
        for part in tensor.parts if kind is not None else ():
            shape = may_be.get((tensor.layer, part))
            if kind is not None and shape is not None and (len(shape) == 2 or shape[1] % PANEL == 0):
                found.append(stored_matrix(tensor.layer, part, kind))
    return tuple(found)


def kept_names(
    plan: WeightPlan, tensors: Iterable[CheckpointTensor], headers: Mapping[str, TensorHeader]
) -> frozenset[str]:
    """The tensors whose codes become those of a decoder as they are: `plan` has the kind of their type."""
    found = []
    for tensor in tensors:
        header = headers.get(tensor.name)
        kind = KINDS.get(header.dtype) if isinstance(header, GgufTensor) and tensor.kind == "weight" else None
        if kind is not None and all(plan.get((tensor.layer, part)) == kind for part in tensor.parts):
            found.append(tensor.name)
    return frozenset(found)
