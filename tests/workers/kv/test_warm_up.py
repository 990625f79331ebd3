"""The warm-up of a store makes one layer of a model, also where layers have formats of their own."""

from __future__ import annotations

import pytest

from moorage.workers.kv.warm_up import warm_up, warm_up_keys
from moorage.workers.spec import AnchorType, KvLayout, KvType

LAYERS = (KvType.NUQ4, KvType.NUQ2, KvType.NUQ3)


@pytest.mark.parametrize("anchor_type", [AnchorType.QUEST, AnchorType.KEY_CODES])
def test_it_runs_with_formats_by_layer(anchor_type: AnchorType) -> None:
    layout = KvLayout(3, 2, 32, 16, KvType.NUQ3, anchor_type, 1, quantizer=1, layer_kv_types=LAYERS)
    if anchor_type is AnchorType.KEY_CODES:
        warm_up_keys(layout, 2)
    else:
        warm_up(layout)
