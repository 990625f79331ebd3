"""The sizes of rings, against rings whose rows are written one after the other."""

from __future__ import annotations

from dataclasses import replace

import pytest

from moorage.runtime.planning.known_models import MODEL_PRESETS
from moorage.workers.spec import RING_BLOCK, KvLayout, KvType, LayerSpec, WindowLayout

MODEL = MODEL_PRESETS["llama-3-8b"]


def rings(*windows: int | None) -> WindowLayout:
    spec = replace(MODEL, num_layers=len(windows), layers=tuple(LayerSpec(window=each) for each in windows))
    return WindowLayout.of(spec, KvLayout(1, spec.num_kv_heads, spec.head_dim, kv_type=KvType.FP16))


@pytest.mark.parametrize("window", [1, 2, RING_BLOCK - 1, RING_BLOCK, RING_BLOCK + 1, 300])
@pytest.mark.parametrize("margin", [0, 1, 100])
def test_a_ring_holds_the_window_of_the_next_token(
    window: int, margin: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moorage.workers.spec.window.RING_MARGIN", margin)
    layout, held = rings(window), {}
    for token in range(1000):
        block, row = divmod(token, RING_BLOCK)
        page = block % layout.num_blocks
        if row == 0:  # the first row of a block clears the others
            held = {place: kept for place, kept in held.items() if place[0] != page}
        held[page, row] = token
        first = layout.first_held(token + 1)
        assert set(range(first, token + 1)) <= set(held.values())
        assert first <= max(0, token + 1 - window - margin + 1)
        assert layout.continues_at(token + 1, first)
        assert layout.continues_at(max(0, token + 1 - margin), first)


def test_a_ring_takes_the_bytes_of_its_layers_alone() -> None:
    layout = rings(None, 100, None, 40)
    assert (layout.num_layers, layout.window) == (2, 100)
    assert layout.token_bytes == 2 * 2 * MODEL.num_kv_heads * MODEL.head_dim * 2
    assert layout.ring_bytes == layout.token_bytes * layout.num_blocks * RING_BLOCK


def test_without_window_layers_there_is_nothing_to_hold() -> None:
    layout = rings(None, None)
    assert layout.ring_bytes == 0
    assert layout.continues_at(5, 10**6)
