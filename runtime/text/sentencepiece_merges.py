"""The merges that SentencePiece makes by the scores of its pieces."""

from __future__ import annotations

from collections.abc import Mapping


def merges_by_score(scores: Mapping[str, float]) -> list[tuple[str, str]]:
    """Every pair of pieces that is a piece together, the better score of the whole first.

    SentencePiece's byte-pair models have no list of merges: of all neighbours it joins those whose piece has the best
    score.
    """
    pieces = sorted(scores, key=lambda piece: -scores[piece])
    return [
        (piece[:at], piece[at:])
        for piece in pieces
        for at in range(1, len(piece))
        if piece[:at] in scores and piece[at:] in scores
    ]
