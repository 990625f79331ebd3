"""What each matrix of a decoder becomes in memory; free of torch, so that `runtime size` counts what is allocated.

The rule of `model.weights`: `int4` gives the matrices of attention and feed-forward parts 4 bits, with a scale and a
minimum for 32 channels, and the embeddings and the head 8 bits, with a scale for 32 channels; `int8` gives 8 bits to
all. Routers and the gate of a shared expert stay float, as does a matrix whose rows can't be divided into groups.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from math import prod

from moorage.kernels.code_kinds import PANEL, CodeKind
from moorage.workers.errors import InvalidModel
from moorage.workers.gpu.model.matrix_kind import MatrixKind, integers
from moorage.workers.gpu.model.parts import DENSE, EXPERT, SHARED, Part, Shape, biased_parts, part_shapes
from moorage.workers.hf_tensors import MXFP4_GROUP, CheckpointTensor, weight_format_of, weights_bytes
from moorage.workers.spec import LayerSpec, ModelSpec, StoredMatrix, WeightKind

GROUP_SIZES = (32, 16)
"""Channels that share a scale where this program quantises; the first that divides a row is taken."""
OUTSIDE = (Part.EMBED, Part.LM_HEAD)
IN_LAYERS = (Part.QUERY, Part.KEY, Part.VALUE, Part.OUTPUT, *DENSE, *EXPERT, *SHARED)


WeightPlan = Mapping[tuple[int | None, Part], MatrixKind]
"""The matrices that are quantised, by layer (None for what lies outside of them) and part. All others are float."""


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


def quantized_matrices(spec: ModelSpec, tensors: Iterable[CheckpointTensor]) -> tuple[StoredMatrix, ...]:
    """What a checkpoint with these tensors holds quantised by its quantization_config.

    Raises InvalidModel for a part of experts that not all have quantised alike.
    """
    format, found = weight_format_of(spec), dict[tuple[int | None, Part], list[MatrixKind]]()
    for tensor in tensors:
        if tensor.stored is not None and format is not None:
            kind = format.kind((tensor.shape[0], tensor.shape[1]))
            for part in tensor.parts:
                found.setdefault((tensor.layer, part), []).append(kind)
    for (layer, part), kinds in found.items():
        number = spec.experts.num_experts if spec.experts is not None and part in EXPERT else 1
        if number > 1 and part_shapes(spec, spec.layer(layer or 0))[part][1] % PANEL:
            raise InvalidModel(
                f"layer {layer}: the {part} of an expert is quantised and has no multiple of {PANEL} rows, which is "
                "not supported; use a checkpoint with plain float weights"
            )
        if len(kinds) != number or len(set(kinds)) > 1:
            raise InvalidModel(
                f"layer {layer}: {len(kinds)} of {number} experts have a quantised {part}; download the weights again"
            )
    return tuple(stored_matrix(layer, part, kinds[0]) for (layer, part), kinds in found.items())


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
            total += kind.num_bytes(shape) - prod(shape) * float_bytes
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
