"""Windows of a text and their losses, with an engine whose log-probabilities are known."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from moorage.client import Client
from moorage.runtime.evals.perplexity import Perplexity, TokenText
from moorage.runtime.evals.runner import run
from moorage.runtime.evals.targets import ServerTargets
from moorage.runtime.evals.tasks import Metric, Suite
from moorage.workers.errors import InvalidRequest
from tests.toy_engine import VOCAB_SIZE
from tests.toy_server import toy_server


@pytest.fixture(scope="module")
def targets() -> Iterator[ServerTargets]:
    with toy_server() as running, Client(running.address) as client:
        yield ServerTargets(client)


@pytest.fixture
def text(tmp_path: Path) -> TokenText:
    path = tmp_path / "tokens.bin"
    np.arange(200, dtype=np.uint16).tofile(path)
    return TokenText.of(path)


def losses(task: Perplexity, targets: ServerTargets) -> list[float]:
    """Times the vocabulary: the toy's loss of token n is n / VOCAB_SIZE."""
    summary = run(Suite("perplexity", (task,)), targets)
    return [record.outcome.score * VOCAB_SIZE for record in summary.records]


def test_windows_are_spread_over_the_text(text: TokenText, targets: ServerTargets) -> None:
    # A window of 21 is BOS and 20 tokens, all of them scored; it ends at 50, 110 and 170.
    assert losses(Perplexity(text, (21,), 3), targets) == pytest.approx([39.5, 99.5, 159.5])
    assert losses(Perplexity(text, (21,), 1), targets) == pytest.approx([99.5])


def test_windows_slide(text: TokenText, targets: ServerTargets) -> None:
    assert losses(Perplexity(text, (21,), 4, stride=60), targets) == pytest.approx([9.5, 69.5, 129.5, 189.5])


def test_only_the_last_tokens_count(text: TokenText, targets: ServerTargets) -> None:
    """They are the same ones at every length."""
    assert losses(Perplexity(text, (21, 101), 1, last=2), targets) == pytest.approx([148.5, 148.5])
    assert losses(Perplexity(text, (21, 201), 1, last=2), targets) == pytest.approx([198.5, 198.5])


@pytest.mark.parametrize("dtype", ["uint16", "uint32"])
def test_ids_of_both_sizes_are_read(tmp_path: Path, targets: ServerTargets, dtype: str) -> None:
    path = tmp_path / "tokens.bin"
    np.full(50, 130, dtype=dtype).tofile(path)
    assert losses(Perplexity(TokenText.of(path, dtype), (11,), 2), targets) == pytest.approx([130, 130])


def test_rows_name_loss_and_perplexity(text: TokenText, targets: ServerTargets) -> None:
    summary = run(Suite("perplexity", (Perplexity(text, (21,), 3),)), targets)
    (row,) = summary.as_json()["rows"]
    assert row["loss"] == pytest.approx(99.5 / VOCAB_SIZE)
    assert row["perplexity"] == pytest.approx(math.exp(row["loss"]))
    assert "accuracy" not in row
    assert summary.rows[0].metric is Metric.LOSS
    assert summary.as_json()["mean"] == pytest.approx(row["loss"])


def test_files_of_a_folder_are_one_text(tmp_path: Path, targets: ServerTargets) -> None:
    (tmp_path / "b.md").write_text("b" * 10)
    (tmp_path / "a.txt").write_text("a" * 10)
    assert losses(Perplexity(TokenText.of(tmp_path), (21,), 1), targets) == pytest.approx([97.5])


@pytest.mark.parametrize(
    ("lengths", "samples", "stride"), [((202,), 1, None), ((101,), 3, 60), ((2,), 1, None)]
)
def test_too_short_a_text_is_refused(
    text: TokenText, targets: ServerTargets, lengths: tuple[int, ...], samples: int, stride: int | None
) -> None:
    with pytest.raises(InvalidRequest, match="the text has 200 tokens"):
        losses(Perplexity(text, lengths, samples, stride), targets)


def test_fitted_to_what_the_text_holds(text: TokenText, targets: ServerTargets) -> None:
    """200 ids and BOS: a window of 201 still fits."""
    target = targets.at(targets.labels[0], None)
    fitted = Perplexity(text, (21, 201, 202, 4096), 1, last=2).fitted(target)
    assert fitted.lengths == (21, 201)
    assert losses(fitted, targets) == pytest.approx([198.5, 198.5])
    with pytest.raises(InvalidRequest, match="200 tokens and the shortest length asked is 300"):
        Perplexity(text, (300, 500), 1).fitted(target)


def test_what_is_no_text_is_refused(tmp_path: Path) -> None:
    odd = tmp_path / "odd.bin"
    odd.write_bytes(b"abc")
    with pytest.raises(InvalidRequest, match="whole number of uint16"):
        TokenText.of(odd)
    with pytest.raises(InvalidRequest, match="no such file"):
        TokenText.of(tmp_path / "missing.txt")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidRequest, match="no text in it"):
        TokenText.of(tmp_path / "empty")
