"""The files of the page: what is sent, under which policy, and that nothing else is."""

from __future__ import annotations

import re
import tomllib
from fnmatch import fnmatch
from pathlib import Path

import pytest

from moorage.runtime.api.http.page.routes import STATIC, page_files
from moorage.runtime.api.http.server import HttpServer
from moorage.runtime.config.presets import PRESETS
from tests.runtime.api.http.conftest import Http

ROOT = Path(__file__).resolve().parents[5]
POLICY = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "connect-src": "'self'",
    "img-src": "'self' data:",
    "base-uri": "'none'",
    "form-action": "'none'",
    "frame-ancestors": "'none'",
}
REFERENCES = re.compile(r"""(?:src|href)="/page/([^"]+)"|from "\./([^"]+)\"""")


async def test_the_page_is_there_before_the_model_is(http: Http) -> None:
    server = HttpServer()
    url = f"http://{await server.start('127.0.0.1:0')}"
    answer = await http.client.get(url + "/")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
    await server.stop()


@pytest.mark.parametrize("name", ["", *(f"page/{name}" for name in page_files())])
async def test_every_file_has_the_policy_and_its_type(http: Http, name: str) -> None:
    answer = await http.client.get(f"/{name}")
    assert answer.status_code == 200
    sent = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
    assert sent == POLICY
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    types = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
    assert answer.headers["content-type"].startswith(types.get(Path(name).suffix, "text/html"))


async def test_what_a_browser_has_is_not_sent_again(http: Http) -> None:
    first = await http.client.get("/page/app.js")
    again = await http.client.get("/page/app.js", headers={"if-none-match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["content-security-policy"] == first.headers["content-security-policy"]


async def test_the_head_of_the_page_can_be_asked_for(http: Http) -> None:
    answer = await http.client.head("/")
    assert (answer.status_code, answer.content) == (200, b"")


@pytest.mark.parametrize(
    "name", ["none.js", "routes.py", "..%2froutes.py", "%2e%2e/routes.py", "%2fetc%2fpasswd", ""]
)
async def test_no_other_file_can_be_reached(http: Http, name: str) -> None:
    answer = await http.client.get(f"/page/{name}")
    assert answer.status_code == 404
    assert "is no route of this server" in answer.json()["error"]["message"]


def test_every_file_that_the_page_names_is_there_and_none_beside() -> None:
    named = {
        name
        for path in STATIC.iterdir()
        for found in REFERENCES.findall(path.read_text(encoding="utf-8"))
        for name in found
        if name
    }
    assert named == set(page_files()) - {"index.html"}


def test_the_policy_holds_for_all_that_the_page_does() -> None:
    """No script or style stands in the page, no text becomes markup, and nothing comes from another host."""
    index = (STATIC / "index.html").read_text(encoding="utf-8")
    assert not re.findall(r"<script(?![^>]* src=)|<style|\son\w+=|\sstyle=", index)
    for path in STATIC.glob("*.js"):
        text = path.read_text(encoding="utf-8")
        assert not re.findall(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text
        )
    for path in STATIC.iterdir():
        hosts = re.findall(r"https?://([\w.]+)", path.read_text(encoding="utf-8"))
        assert set(hosts) <= {"www.w3.org"}, path.name  # The name of SVG's namespace, which nobody fetches.


def test_every_file_is_part_of_the_package() -> None:
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    patterns = setuptools["package-data"]["moorage.runtime.api.http.page"]
    for path in STATIC.iterdir():
        name = path.relative_to(STATIC.parent).as_posix()
        assert any(fnmatch(name, pattern) for pattern in patterns), name


async def test_presets_that_a_request_may_name_are_listed(http: Http) -> None:
    listed = (await http.client.get("/v1/presets")).json()
    assert [preset["id"] for preset in listed["data"]] == list(PRESETS)
    assert listed["default"] == "full"
    assert all(preset["description"] for preset in listed["data"])
