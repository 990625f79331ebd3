"""The folder of saved sessions: what is found in it, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from moorage.runtime.serving.sessions.cut_answers import Draw
from moorage.runtime.serving.sessions.snapshots import (
    BlockFile,
    Manifest,
    Snapshots,
    Store,
    check_same,
    layout_fields,
    read_manifest,
)
from moorage.workers.errors import InvalidRequest, ResourceExhausted, Unavailable
from moorage.workers.spec import KvLayout, KvType, Positions, RopeSpec, SamplingSpec
from tests.engine_driver import memory

LAYOUT = KvLayout(num_layers=2, num_kv_heads=1, head_dim=16, block_size=4)
STORE = Store("abc", layout_fields(LAYOUT), 8, 2)
MEMORY = memory(scheme=Positions.DCA, pretraining_length=60, topk=3, rope=RopeSpec("dynamic", factor=2.0))

DRAW = Draw(SamplingSpec(temperature=0.7, top_p=0.9, seed=2**63 - 1), 77)


def manifest(name: str = "talk", num_bytes: int = 100, tenant: str = "") -> Manifest:
    files = (BlockFile("blocks-0.safetensors", num_bytes, "77"), BlockFile("blocks-1.safetensors", 0, "88"))
    return Manifest(name, tenant, 5.5, "toy", STORE, 1, 9, MEMORY, tuple(range(8)), files, DRAW)


def saved(snapshots: Snapshots, one: Manifest) -> Path:
    place = snapshots.begin()
    snapshots.publish(place, one)
    return snapshots.held[one.name][0]


def test_a_restart_finds_what_was_saved(tmp_path: Path) -> None:
    snapshots = Snapshots(tmp_path / "new" / "folder", None)
    one, other = manifest("é/talk"), manifest("talk", tenant="ann")
    for each in (one, other):
        snapshots.publish(snapshots.begin(), each)
    again = Snapshots(tmp_path / "new" / "folder", None)
    assert [held for _, held in again.held.values()] == [one, other]
    assert again.held.keys() == {"é/talk", "ann\0talk"}


def test_folders_and_files_are_private(tmp_path: Path) -> None:
    place = saved(Snapshots(tmp_path / "sessions", None), manifest())
    assert [path.stat().st_mode & 0o777 for path in (place.parent, place, place / "manifest.json")] == [
        0o700,
        0o700,
        0o600,
    ]


def test_what_a_crash_left_half_way_is_no_session(tmp_path: Path) -> None:
    snapshots = Snapshots(tmp_path, None)
    (snapshots.begin() / "blocks-0.safetensors").write_bytes(b"part")
    (tmp_path / "of somebody else").mkdir()
    assert Snapshots(tmp_path, None).held == {}
    assert [place.name for place in tmp_path.iterdir()] == ["of somebody else"]


def test_a_second_save_takes_the_place_of_the_first(tmp_path: Path) -> None:
    snapshots = Snapshots(tmp_path, None)
    first, second = saved(snapshots, manifest()), saved(snapshots, replace(manifest(), saved_s=9.0))
    assert not first.exists()
    assert read_manifest(second).saved_s == 9.0
    assert list(tmp_path.iterdir()) == [second]


def test_names_change_and_sessions_end_on_the_disk_as_well(tmp_path: Path) -> None:
    snapshots = Snapshots(tmp_path, None)
    saved(snapshots, manifest("old"))
    snapshots.rename("old", "", "new")
    assert Snapshots(tmp_path, None).held.keys() == {"new"}
    assert (snapshots.remove("new"), snapshots.remove("new")) == (True, False)
    assert list(tmp_path.iterdir()) == []


def test_those_that_were_saved_first_make_room_for_others(tmp_path: Path) -> None:
    snapshots = Snapshots(tmp_path, 250)
    for name in ("a", "b", "a", "c"):
        saved(snapshots, manifest(name))
    assert snapshots.held.keys() == {"a", "c"}
    place = snapshots.begin()
    with pytest.raises(ResourceExhausted, match=r"takes 251 B and sessions\.max_bytes allows 250 B"):
        snapshots.publish(place, manifest("d", 251))
    assert snapshots.held.keys() == {"a", "c"}


def changed(fields: dict[str, Any]) -> dict[str, Any]:
    return fields | {"token_ids": [7, *fields["token_ids"][1:]]}


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (changed, "checksum: the manifest was changed"),
        (lambda fields: fields | {"version": 3}, "version: 3, and this server reads 2"),
        (lambda fields: {k: v for k, v in fields.items() if k != "memory"}, "checksum"),
        (lambda _: [], "can't be read"),
    ],
)
def test_a_manifest_that_is_not_as_it_was_written_is_refused(
    damage: Callable[[dict[str, Any]], Any], says: str, tmp_path: Path
) -> None:
    place = saved(Snapshots(tmp_path, None), manifest())
    file = place / "manifest.json"
    file.write_text(json.dumps(damage(json.loads(file.read_text()))))
    with pytest.raises(InvalidRequest, match=says):
        read_manifest(place)
    assert Snapshots(tmp_path, None).held == {}
    assert place.exists(), "it is left for people to look at"


@pytest.mark.parametrize(
    ("served", "says"),
    [
        (
            replace(STORE, fingerprint="def"),
            "of another model: fingerprint is 'abc' in its manifest and 'def' here",
        ),
        (replace(STORE, actors=3), "of other settings: actors is 2"),
        (replace(STORE, stripe_blocks=4), "stripe_blocks is 8"),
        (
            replace(STORE, layout=layout_fields(replace(LAYOUT, kv_type=KvType.FP32))),
            r"layout\.kv_type is 'FP16'",
        ),
        (replace(STORE, layout=layout_fields(replace(LAYOUT, block_size=8))), r"layout\.block_size is 4"),
    ],
)
def test_a_session_of_another_model_or_other_settings_is_refused_with_the_field(
    served: Store, says: str
) -> None:
    check_same(STORE, STORE)
    with pytest.raises(InvalidRequest, match=says):
        check_same(STORE, served)


def test_a_folder_that_can_not_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Unavailable, match=r"sessions\.path"):
        Snapshots(tmp_path / "file" / "sessions", None)
