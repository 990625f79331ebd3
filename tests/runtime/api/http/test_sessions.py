"""/v1/sessions over a real loopback connection."""

from __future__ import annotations

from urllib.parse import quote

import pytest

from tests.runtime.api.http.conftest import Http

SESSIONS = "/v1/sessions"


async def test_sessions_are_listed_and_shown(http: Http) -> None:
    listed = (await http.client.get(SESSIONS)).json()
    assert [session["name"] for session in listed["data"]] == ["busy", "talk"]
    shown = (await http.client.get(f"{SESSIONS}/talk")).json()
    assert (shown["num_tokens"], shown["dram_bytes"], shown["pinned"]) == (40, 1 << 20, False)
    assert "tenant" not in shown
    assert (await http.client.get(f"{SESSIONS}/none")).status_code == 404


async def test_a_session_is_forked_pinned_renamed_and_deleted(http: Http) -> None:
    forked = await http.client.post(f"{SESSIONS}/talk/fork", json={"name": "branch"})
    assert (forked.json()["name"], forked.json()["shared_bytes"]) == ("branch", 1 << 20)
    changed = await http.client.patch(f"{SESSIONS}/branch", json={"name": "other", "pinned": True})
    assert (changed.json()["name"], changed.json()["pinned"]) == ("other", True)
    assert (await http.client.delete(f"{SESSIONS}/other")).json()["deleted"] is True
    assert [one["name"] for one in (await http.client.get(SESSIONS)).json()["data"]] == ["busy", "talk"]


async def test_a_session_is_saved_and_loaded(http: Http) -> None:
    saved = (await http.client.post(f"{SESSIONS}/talk/save")).json()
    assert (saved["name"], saved["saved_bytes"]) == ("talk", 1 << 21)
    assert (await http.client.post(f"{SESSIONS}/back/load")).json()["num_tokens"] == 50
    damaged = await http.client.post(f"{SESSIONS}/damaged/load")
    assert damaged.status_code == 400
    assert "checksum" in damaged.json()["error"]["message"]


@pytest.mark.parametrize("name", ["a/b", "a/fork", "ä ö", "50%", "a?b#c"])
async def test_a_name_may_have_any_printable_character(http: Http, name: str) -> None:
    assert (await http.client.post(f"{SESSIONS}/talk/fork", json={"name": name})).status_code == 200
    path = f"{SESSIONS}/{quote(name, safe='')}"
    assert (await http.client.get(path)).json()["name"] == name
    assert (await http.client.delete(path)).status_code == 200


async def test_refusals_have_their_status(http: Http) -> None:
    assert (await http.client.delete(f"{SESSIONS}/busy")).status_code == 409
    assert (await http.client.delete(f"{SESSIONS}/none")).status_code == 404
    assert (await http.client.patch(f"{SESSIONS}/talk", json={})).status_code == 400
    assert (await http.client.patch(f"{SESSIONS}/talk", json={"color": 1})).status_code == 400
    assert (await http.client.post(f"{SESSIONS}/talk/fork", json={"name": ""})).status_code == 400
    assert (await http.client.get(f"{SESSIONS}/{'x' * 200}")).status_code == 404
