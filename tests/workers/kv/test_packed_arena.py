from __future__ import annotations

import pytest

from moorage.workers.kv.arena import Arena
from moorage.workers.spec import KvLayout, KvType


@pytest.mark.parametrize("layers", [(), (KvType.NUQ4, KvType.NUQ2, KvType.NUQ3)])
def test_an_arena_whose_quantizer_is_not_given_packs_blocks_of_the_same_sizes(
    layers: tuple[KvType, ...],
) -> None:
    """A warm-up has no quantizer; what it compiles and measures is nevertheless of the layout's blocks."""
    arena = Arena(KvLayout(3, 2, 32, 16, KvType.NUQ3, quantizer=1, layer_kv_types=layers), 2)
    assert arena.codec is not None
    layouts = [arena.codec.layout_of(layer) for layer in range(3)]
    assert tuple(each.block_bytes for each in layouts) == arena.layout.layer_bytes
    assert [each.bits for each in layouts] == ([4, 2, 3] if layers else [3, 3, 3])
