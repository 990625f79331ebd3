"""Recall of a prompt's own continuation: by layer, step and head, with the oracle beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from moorage.workers.errors import InvalidRequest

if TYPE_CHECKING:
    from moorage.workers.gpu.attention.recall_probe import RecallSample


@dataclass(frozen=True, slots=True)
class RecallTable:
    """Shares of the exact attention mass, [layers, steps, query heads]."""

    steps: tuple[int, ...]
    recall: np.ndarray[Any, np.dtype[np.float32]]
    oracle: np.ndarray[Any, np.dtype[np.float32]]

    def as_json(self) -> dict[str, Any]:
        """Means over everything, by layer, by layer and head, and by layer and step."""
        return {
            "steps": list(self.steps),
            "recall": float(self.recall.mean()),
            "oracle": float(self.oracle.mean()),
            "layers": [
                {
                    "layer": layer,
                    "recall": float(recall.mean()),
                    "oracle": float(oracle.mean()),
                    "recall_by_head": recall.mean(axis=0).tolist(),
                    "oracle_by_head": oracle.mean(axis=0).tolist(),
                    "recall_by_step": recall.mean(axis=1).tolist(),
                    "oracle_by_step": oracle.mean(axis=1).tolist(),
                }
                for layer, (recall, oracle) in enumerate(zip(self.recall, self.oracle, strict=True))
            ],
        }


def table_of(samples: Sequence[RecallSample]) -> RecallTable:
    """The samples of whole steps. Raises InvalidRequest when there is none."""
    if not samples:
        raise InvalidRequest(
            "recall: no decode step was sampled; ask for more tokens, and for other positions than rolling, "
            "which leave keys beyond the window no place in an exact pass"
        )
    steps = sorted({sample.step for sample in samples})
    num_layers, num_heads = max(sample.layer for sample in samples) + 1, len(samples[0].recall)
    recall, oracle = np.zeros((2, num_layers, len(steps), num_heads), np.float32)
    for sample in samples:
        at = steps.index(sample.step)
        recall[sample.layer, at], oracle[sample.layer, at] = sample.recall, sample.oracle
    return RecallTable(tuple(steps), recall, oracle)


def draw_heatmap(table: RecallTable, path: Path, title: str) -> None:
    """Layers x steps of recall and of the oracle as a PNG. Raises InvalidRequest without matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise InvalidRequest(
            "--output draws with matplotlib, which is not installed; pip install 'moorage[eval]'"
        ) from None
    figure = Figure(figsize=(10, 5), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    axes = figure.subplots(1, 2, sharey=True)
    shares = (("recall", table.recall), ("oracle", table.oracle))
    for axis, (name, values) in zip(axes, shares, strict=True):
        image = axis.imshow(values.mean(axis=2), vmin=0, vmax=1, aspect="auto", origin="lower")
        axis.set_title(f"{name}: mean {values.mean():.3f}")
        axis.set_xlabel("decode step")
        axis.set_xticks(range(len(table.steps)), [str(step) for step in table.steps])
    axes[0].set_ylabel("layer")
    figure.colorbar(image, ax=axes, label="share of the exact attention mass")
    figure.savefig(path, dpi=120)
