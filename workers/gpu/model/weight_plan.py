"""What each matrix of a decoder becomes in memory; free of torch, so that `runtime size` counts what is allocated.

The rule of `model.weights`: `int4` gives the matrices of attention and feed-forward parts 4 bits, with a scale and a
minimum for 32 channels, and the embeddings and the head 8 bits, with a scale for 32 channels; `int8` gives 8 bits to
all. Routers and the gate of a shared expert stay float, as does a matrix whose rows can't be divided into groups.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod

from moorage.kernels.code_kinds import PANEL, CodeKind
from moorage.workers.gpu.model.parts import DENSE, EXPERT, SHARED, Part, Shape, biased_parts, part_shapes
from moorage.workers.hf_tensors import MXFP4_GROUP, weights_bytes
from moorage.workers.spec import LayerSpec, ModelSpec, StoredMatrix, WeightKind

GROUP_SIZES = (32, 16)
"""Channels that share a scale where this program quantises; the first that divides a row is taken."""
OUTSIDE = (Part.EMBED, Part.LM_HEAD)
IN_LAYERS = (Part.QUERY, Part.KEY, Part.VALUE, Part.OUTPUT, *DENSE, *EXPERT, *SHARED)


@dataclass(frozen=True, slots=True)
class MatrixKind:
    """What a quantised matrix takes in memory."""

    code: CodeKind
    group_size: int
    """Channels of a row that share a scale."""
    scale_bytes: int = 2
    """2 for float16, 4 for float32."""
    has_minima: bool = False
    has_order: bool = False
    """Whether columns stand in another order than input channels do."""

    def num_bytes(self, shape: Shape) -> int:
        """Bytes of a matrix [out, in] without its table."""
        rows, width = -(-shape[0] // PANEL) * PANEL, shape[1]
        scales = width // self.group_size * self.scale_bytes * (2 if self.has_minima else 1)
        order = 8 * width if self.has_order else 0
        return rows * (width * self.code.bits // 8 + scales) + order


WeightPlan = Mapping[tuple[int | None, Part], MatrixKind]
"""By layer, None for what lies outside of them, and part: matrices that are quantised. All others are float."""


def plan_weights(spec: ModelSpec, weights: WeightKind) -> WeightPlan:
    """The plan for `model.weights`."""
    if weights is WeightKind.FLOAT:
        return {}
    found = {**_of_mxfp4(spec), **_as_stored(spec)}
    if weights is WeightKind.AUTO:
        return found
    for key, shape in matrices(spec):
        if key in found or (len(shape) == 3 and shape[1] % PANEL):
            continue
        kind = _kind(4 if weights is WeightKind.INT4 and key[1] not in OUTSIDE else 8, shape[-1])
        if kind is not None:
            found[key] = kind
    return found


def matrices(spec: ModelSpec) -> Iterator[tuple[tuple[int | None, Part], Shape]]:
    """The matrices that may be quantised, [out, in] or, of all experts, [experts, out, in], by layer and part."""
    outside = part_shapes(spec, LayerSpec())
    for part in OUTSIDE:
        if part in outside:
            yield (None, part), outside[part]
    for index in range(spec.num_layers):
        shapes = part_shapes(spec, spec.layer(index))
        for part in IN_LAYERS:
            if part in shapes:
                yield (index, part), shapes[part]


def planned_bytes(spec: ModelSpec, plan: WeightPlan, float_bytes: int) -> int:
    """Bytes of all weights; float matrices and biases take `float_bytes` an element."""
    total = weights_bytes(spec, float_bytes)
    for key, shape in matrices(spec):
        kind = plan.get(key)
        if kind is not None:
            total += kind.num_bytes((prod(shape[:-1]), shape[-1])) - prod(shape) * float_bytes
    return total


def expert_bytes(spec: ModelSpec, plan: WeightPlan, float_bytes: int) -> int:
    """Bytes of the experts among which tokens choose; float matrices and biases take `float_bytes` an element."""
    biased = biased_parts(spec)
    total = 0
    for key, shape in matrices(spec):
        if key[1] in EXPERT:
            kind = plan.get(key)
            rows = prod(shape[:-1])
            total += prod(shape) * float_bytes if kind is None else kind.num_bytes((rows, shape[-1]))
            total += rows * float_bytes if key[1] in biased else 0
    return total


def group_size_for(width: int) -> int | None:
    """Channels that share a scale in rows of `width`; None where rows can't be divided and so stay float."""
    return next((size for size in GROUP_SIZES if width % size == 0), None)


def integers(bits: int) -> CodeKind:
    """Codes of 4 or 8 bits that are numbers."""
    return {4: CodeKind.INT4, 8: CodeKind.INT8}[bits]


def stored_matrix(layer: int | None, part: Part, kind: MatrixKind) -> StoredMatrix:
    """What `ModelSpec.stored_matrices` has for a matrix of this kind."""
    return StoredMatrix(
        layer,
        part.value,
        kind.code.value,
        kind.group_size,
        kind.scale_bytes,
        kind.has_minima,
        kind.has_order,
    )


def _as_stored(spec: ModelSpec) -> dict[tuple[int | None, Part], MatrixKind]:
    """The kinds of what the checkpoint holds quantised."""
    return {
        (each.layer, Part(each.part)): MatrixKind(
            CodeKind(each.code), each.group_size, each.scale_bytes, each.has_minima, each.has_order
        )
        for each in spec.stored_matrices
    }


def _of_mxfp4(spec: ModelSpec) -> dict[tuple[int | None, Part], MatrixKind]:
    """Experts that the checkpoint holds as MXFP4, with their own codes and, in float32, scales."""
    if spec.experts is None or not spec.experts.is_mxfp4:
        return {}
    return {
        key: MatrixKind(CodeKind.TABLE4, MXFP4_GROUP, scale_bytes=4)
        for key, shape in matrices(spec)
        if key[1] in EXPERT and shape[1] % PANEL == 0
    }


def _kind(bits: int, width: int) -> MatrixKind | None:
    group_size = group_size_for(width)
    if group_size is None:
        return None
    return MatrixKind(integers(bits), group_size, has_minima=bits == 4)
