"""What a format of quantised checkpoints is; free of torch, so that files are checked and sized without it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from moorage.workers.gpu.model.matrix_kind import MatrixKind
from moorage.workers.hf_fields import Fields

if TYPE_CHECKING:
    from torch import Tensor

    from moorage.workers.gpu.model.quantized import Matrix

Shape = tuple[int, ...]

FLOATS = ("F16", "BF16", "F32")
WORDS = ("I32",)


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One of the tensors that stand for a quantised weight."""

    shape: Shape
    dtypes: tuple[str, ...]
    """Types that it may have, as safetensors names them."""
    optional: bool = False


class WeightFormat(Protocol):
    """How the quantised weights of one checkpoint are stored. A file of this package makes one of config.json."""

    @property
    def marks(self) -> tuple[str, ...]:
        """Ends of names of which each quantised weight has one, and no plain float weight."""

    def tensors(self, shape: tuple[int, int]) -> Mapping[str, StoredTensor]:
        """The tensors of a weight [out, in], by what follows the module's name. Raises ValueError where none fit."""

    def kind(self, shape: tuple[int, int]) -> MatrixKind:
        """What the weight takes once it is loaded."""

    def matrix(self, stored: Mapping[str, Tensor], shape: tuple[int, int]) -> Matrix:
        """The weight, from its tensors by the names of `tensors`; its values are those that the format defines."""


class FormatReader(Protocol):
    """Reads `quantization_config`. Raises InvalidModel for what this program does not compute."""

    def __call__(self, config: Fields) -> WeightFormat: ...


def group_size_of(config: Fields) -> int | None:
    """Channels that share a scale; None is a whole row, which is written -1."""
    if config.get("group_size") in (-1, None):
        return None
    return config.positive_int("group_size")


def groups_of(width: int, group_size: int | None) -> int:
    """Groups of a row. Raises ValueError where they don't divide it."""
    size = group_size or width
    if width % size:
        raise ValueError(f"rows of {width} can't be divided into groups of {size}")
    return width // size
