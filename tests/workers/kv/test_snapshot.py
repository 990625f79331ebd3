"""Blocks in files: what comes back is what was saved, to the last bit, and nothing else is taken for it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moorage.workers.errors import InvalidRequest, NotFound, Unavailable
from moorage.workers.kv.snapshot import load_session, save_session
from moorage.workers.kv.store import KvStore
from moorage.workers.safetensors_header import read_header
from moorage.workers.spec import AnchorType, KvLayout, KvType

LAYOUT = KvLayout(num_layers=2, num_kv_heads=2, head_dim=16, block_size=8)
LAYOUTS = [
    LAYOUT,
    replace(LAYOUT, kv_type=KvType.FP32),
    replace(LAYOUT, block_size=32, anchor_type=AnchorType.KEY_CODES),
    replace(LAYOUT, block_size=32, anchor_type=AnchorType.KEY_CODES, keeps_centres=True),
    replace(LAYOUT, block_size=32, kv_type=KvType.INT8),
]


def filled(layout: KvLayout, num_blocks: int = 5) -> KvStore:
    """A store in which session 1 has some full blocks, on pages that are not in order."""
    store, rng = KvStore(layout, 16), np.random.default_rng(0)
    store.open(9, 2)
    store.open(1, 2)
    store.open(8, 1)
    store.drop(9)
    store.resize(1, num_blocks)
    tokens = num_blocks * layout.block_size
    for layer in range(layout.num_layers):
        rows = rng.standard_normal((2, tokens, layout.num_kv_heads, layout.head_dim), np.float32)
        store.append(1, layer, 0, rows[0], rows[1])
    return store


def contents(store: KvStore, session_id: int) -> list[bytes]:
    """Blocks and index of a session, and its first tokens where they lie apart."""
    table, arena = store.shard.session(session_id).table, store.arena
    held = (*arena.stored, *arena.anchors, *arena.codes, *arena.centres)
    sinks = [layer[table.raw.sink_pages].tobytes() for layer in arena.stored]
    return [*(layer[table.pages].tobytes() for layer in held), *sinks]


def received(layout: KvLayout, num_blocks: int = 5) -> KvStore:
    """A store that waits for the blocks of session 4."""
    store = KvStore(layout, 16)
    store.open(4, num_blocks, is_written=False)
    store.restore(4, num_blocks)
    return store


@pytest.mark.parametrize("layout", LAYOUTS, ids=["fp16", "fp32", "key codes", "centres", "packed"])
def test_blocks_anchors_and_codes_come_back_as_they_were(layout: KvLayout, tmp_path: Path) -> None:
    store, other, file = filled(layout), received(layout), tmp_path / "blocks"
    checksum = save_session(store, 1, file)
    load_session(other, 4, file, checksum)
    assert contents(other, 4) == contents(store, 1)
    other.check_integrity()
    attached = other.attach(4)
    assert attached.num_tokens.tolist() == [5 * layout.block_size] * 2
    assert attached.num_sealed.tolist() == [5, 5]


def test_the_file_is_private_and_as_small_as_what_is_stored(tmp_path: Path) -> None:
    file = tmp_path / "blocks"
    save_session(filled(LAYOUT), 1, file)
    assert file.stat().st_mode & 0o777 == 0o600
    header = json.loads(file.read_bytes()[8:].split(b"}}")[0] + b"}}")
    assert {one.name for one in read_header(file)} == header.keys() - {"__metadata__"}
    assert 0 <= file.stat().st_size - 5 * LAYOUT.page_bytes < 1024


@pytest.mark.parametrize("place", [20, 900, -1])
def test_a_file_of_which_one_bit_has_changed_is_refused(place: int, tmp_path: Path) -> None:
    file = tmp_path / "blocks"
    checksum = save_session(filled(LAYOUT), 1, file)
    content = bytearray(file.read_bytes())
    content[place] ^= 1
    file.write_bytes(content)
    with pytest.raises(InvalidRequest, match=r"blocks: (checksum|is damaged|layers)"):
        load_session(received(LAYOUT), 4, file, checksum)


@pytest.mark.parametrize("kept", [0, 7, 100, -1])
def test_a_file_that_was_cut_off_is_refused(kept: int, tmp_path: Path) -> None:
    file = tmp_path / "blocks"
    checksum = save_session(filled(LAYOUT), 1, file)
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(InvalidRequest, match="is damaged"):
        load_session(received(LAYOUT), 4, file, checksum)


@pytest.mark.parametrize(
    ("changes", "tensor"),
    [
        ({"block_size": 16}, "layers.0.blocks"),
        ({"num_layers": 3}, "layers.2.blocks"),
        ({"anchor_num": 2}, "anchors"),
    ],
    ids=str,
)
def test_blocks_of_another_shape_are_refused_with_the_tensor(
    changes: dict[str, Any], tensor: str, tmp_path: Path
) -> None:
    file = tmp_path / "blocks"
    checksum = save_session(filled(LAYOUT), 1, file)
    with pytest.raises(InvalidRequest, match=tensor):
        load_session(received(replace(LAYOUT, **changes)), 4, file, checksum)


def test_fewer_or_more_blocks_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "blocks"
    checksum = save_session(filled(LAYOUT), 1, file)
    for count in (4, 6):
        with pytest.raises(InvalidRequest, match=r"layers\.0\.blocks: shape"):
            load_session(received(LAYOUT, count), 4, file, checksum)


def test_what_can_not_be_written_or_is_not_there_is_told(tmp_path: Path) -> None:
    store = filled(LAYOUT)
    with pytest.raises(Unavailable, match="can't be written"):
        save_session(store, 1, tmp_path / "absent" / "blocks")
    with pytest.raises(NotFound):
        save_session(store, 5, tmp_path / "blocks")
    with pytest.raises(InvalidRequest, match="is damaged"):
        load_session(received(LAYOUT), 4, tmp_path / "absent", "")


def test_a_last_block_that_is_not_full_comes_back_too(tmp_path: Path) -> None:
    store, file = filled(LAYOUT), tmp_path / "blocks"
    store.truncate(1, 4 * LAYOUT.block_size + 3)
    store.fork(1, 2, 4, 3)
    copied = store.shard.session(2).table
    assert copied.pages[:4].tolist() == store.shard.session(1).table.pages[:4].tolist()
    assert copied.pages[4] != store.shard.session(1).table.pages[4]
    checksum = save_session(store, 2, file)
    other = KvStore(LAYOUT, 16)
    other.open(4, 5, is_written=False)
    other.restore(4, 4, 3)
    load_session(other, 4, file, checksum)
    assert contents(other, 4) == contents(store, 2)
    other.check_integrity()
    attached = other.attach(4)
    assert (attached.num_tokens.tolist(), attached.num_sealed.tolist()) == ([35, 35], [4, 4])
    store.drop(2)
    store.check_integrity()


def test_pages_in_any_order_and_many_pieces_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("moorage.workers.kv.snapshot._PIECE_BYTES", 3 * LAYOUT.block_bytes)
    monkeypatch.setattr("moorage.workers.kv.snapshot._MOST_PARTS", 2)
    store, other, file = filled(LAYOUT, 9), received(LAYOUT, 9), tmp_path / "blocks"
    for one, session_id in ((store, 1), (other, 4)):
        table = one.shard.session(session_id).table
        table.pages = table.pages[np.random.default_rng(session_id).permutation(9)]
    load_session(other, 4, file, save_session(store, 1, file))
    assert contents(other, 4) == contents(store, 1)
