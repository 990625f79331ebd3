"""The page in Chromium, over the toy engine, which answers with the conversation itself."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from moorage.runtime.api.access.keys import KeyFile, Keys
from moorage.runtime.api.http.server import HttpServer
from moorage.runtime.serving.protocol import GenerateParams
from tests.pdf_files import pdf_of
from tests.runtime.api.http.conftest import Http
from tests.toy_engine import ToyEngine

playwright = pytest.importorskip(
    "playwright.async_api", reason="playwright is not installed; it drives the browser"
)
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed; it shows the page")

HOSTILE = "<img src=x onerror=alert(1)> [a](javascript:alert(1)) **bold** `code`"


@pytest.fixture
async def page(http: Http) -> AsyncIterator[Any]:
    """A page of the server in a window of a phone's width; nothing may fail in it."""
    failures: list[str] = []
    async with playwright.async_playwright() as driver:
        browser = await driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        opened = await browser.new_page(viewport={"width": 360, "height": 740})
        opened.on("pageerror", lambda error: failures.append(str(error)))
        opened.on(
            "console", lambda said: failures.append(said.text) if "Content Security" in said.text else None
        )
        opened.on("dialog", lambda dialog: dialog.accept())
        await opened.goto(str(http.client.base_url))
        await playwright.expect(opened.locator("#model")).to_have_text("toy, up to 4,096 tokens")
        yield opened
        await browser.close()
    assert failures == []


async def ask(page: Any, text: str) -> None:
    """Asks, and waits for the end of the answer."""
    await page.locator("#question").fill(text)
    await page.locator("#question").press("Enter")
    await playwright.expect(page.locator("article.answer .tools button").last).to_be_visible()
    await playwright.expect(page.locator("#send")).to_be_visible()


def asked(http: Http) -> list[GenerateParams]:
    return [one for one in http.engine.seen if isinstance(one, GenerateParams)]


async def test_a_pdf_is_asked_about_and_a_question_becomes_a_branch(
    http: Http, page: Any, tmp_path: Path
) -> None:
    (tmp_path / "report.pdf").write_bytes(pdf_of("The pass key is 48213."))
    await page.locator("#files").set_input_files(tmp_path / "report.pdf")
    await playwright.expect(page.locator("#attachments")).to_contain_text("report.pdf")
    await ask(page, "What is the pass key?")
    await playwright.expect(page.locator("article.answer .markdown")).to_contain_text(
        "The pass key is 48213."
    )
    await playwright.expect(page.locator("article.answer .status")).to_contain_text("prompt tokens")
    await ask(page, "Why?")
    first, second = asked(http)
    assert first.session == second.session

    await page.locator("article.question").nth(1).get_by_label("Edit this question").click()
    await page.locator(".editor textarea").fill("Who says so?")
    await page.locator(".editor textarea").press("Enter")
    await playwright.expect(page.locator("article.question").nth(1)).to_contain_text("2 of 2")
    await playwright.expect(page.locator("#send")).to_be_visible()
    assert asked(http)[2].session not in (None, first.session)
    await page.get_by_label("Version before").click()
    await playwright.expect(page.locator("article.question").nth(1)).to_contain_text("Why?")

    await page.reload()
    await playwright.expect(page.locator("article.question").nth(1)).to_contain_text("Why?")
    assert await page.evaluate("document.documentElement.scrollWidth") == 360


async def test_escape_ends_the_work_and_what_came_stays(http: Http, page: Any) -> None:
    http.engine.step_s = 0.05
    await page.locator("#question").fill("word " * 200)
    await page.locator("#question").press("Enter")
    await playwright.expect(page.locator("article.answer .markdown")).to_contain_text("word")
    await page.keyboard.press("Escape")
    await playwright.expect(page.locator("article.answer .status")).to_contain_text("Stopped.")
    await http.engine.ended.wait()
    await playwright.expect(page.locator("article.answer .markdown")).to_contain_text("word")


async def test_hostile_text_is_shown_and_does_nothing(page: Any) -> None:
    await ask(page, HOSTILE)
    answer = page.locator("article.answer .markdown")
    await playwright.expect(answer).to_contain_text("<img src=x onerror=alert(1)>")
    await playwright.expect(answer.locator("strong")).to_have_text("bold")
    assert await answer.locator("img, script, a").count() == 0


async def test_settings_are_sent_and_kept(http: Http, page: Any) -> None:
    await page.get_by_role("button", name="Settings").click()
    await page.locator("[name=preset]").select_option("full")
    await page.locator("[name=topkKeys]").fill("512")
    await page.locator("[name=maxTokens]").fill("7")
    await page.locator("[name=theme]").select_option("dark")
    await page.locator("[name=inspect]").check()
    await page.get_by_role("button", name="Done").click()
    await ask(page, "hello there")
    (sent,) = asked(http)
    assert (sent.preset, dict(sent.memory), sent.max_new_tokens) == ("full", {"topk_keys": "512"}, 7)
    await page.get_by_text("Where this answer looked").click()
    await playwright.expect(page.locator(".inspector figcaption")).to_contain_text("% of the attention")
    await playwright.expect(page.locator(".inspector pre")).to_contain_text("<user>hello")
    await page.reload()
    assert await page.evaluate("document.documentElement.dataset.theme") == "dark"


async def test_a_deleted_conversation_is_gone_here_and_on_the_server(http: Http, page: Any) -> None:
    await ask(page, "forget this")
    (sent,) = asked(http)
    assert sent.session is not None
    http.engine.sessions.held[sent.session] = http.engine.sessions.held["talk"]
    await page.get_by_role("button", name="Conversations").click()
    await page.locator("#conversations li").hover()
    await page.get_by_label("Delete forget this").click()
    await playwright.expect(page.locator("#conversations li")).to_have_count(0)
    await playwright.expect(page.locator("#held")).to_contain_text("2 sessions")
    assert sent.session not in http.engine.sessions.held


async def test_the_page_asks_for_the_key_of_a_server_that_wants_one(tmp_path: Path) -> None:
    key = KeyFile(tmp_path / "keys.json").add("laptop")
    server = HttpServer(keys=Keys(tmp_path / "keys.json"))
    address = await server.start("127.0.0.1:0")
    server.serve(ToyEngine())
    async with playwright.async_playwright() as driver:
        browser = await driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = await browser.new_page()
        await page.goto(f"http://{address}/")
        for given in ("mk-wrong", key):
            await page.get_by_label("API key").fill(given)
            await page.get_by_label("API key").press("Enter")
        await playwright.expect(page.locator("#model")).to_have_text("toy, up to 4,096 tokens")
        await page.reload()
        await playwright.expect(page.locator("#model")).to_have_text("toy, up to 4,096 tokens")
        await browser.close()
    await server.stop()
