"""The board as the page of `taskorch http`, in a browser."""

import re
from collections.abc import AsyncIterator, Iterator

import anyio
import pytest
from browsers import Tab
from playwright.async_api import Browser, Locator, expect
from servers import Place
from sites import Site


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    place = Place(tmp_path_factory.mktemp("board"))
    site = Site(place, concurrency="8")
    yield site
    site.close()
    place.close()


@pytest.fixture
async def tab(browser: Browser) -> AsyncIterator[Tab]:
    """A window of its own; nothing may have gone wrong in it."""
    async with await browser.new_context() as context:
        tab = Tab(await context.new_page())
        yield tab
        assert tab.errors == []


async def add(site: Site, name: str, **more: object) -> str:
    wish = {"kind": "sleep", "payload": {"seconds": 600}, "name": name, **more}
    return (await anyio.to_thread.run_sync(lambda: site.facts("create_task", **wish)))["id"]


def row(tab: Tab, name: str) -> Locator:
    rows = tab.page.locator("#view-board .rows [role=row]")
    return rows.filter(has=tab.page.locator(".name", has_text=re.compile(f"^{name}$")))


def opened(site: Site) -> str:
    """The address as it is printed."""
    return f"{site.url}?token={site.token}"


def calls(tab: Tab) -> int:
    return len([url for url in tab.requests if url.endswith("/mcp")])


async def until_asked(tab: Tab, times: int) -> None:
    with anyio.fail_after(15):
        while calls(tab) < times:
            await tab.page.clock.run_for(1_000)


async def test_the_page_is_told_of_changes_and_asks_only_then(site: Site, tab: Tab) -> None:
    one = await add(site, "one", delay_seconds=900)
    await tab.page.clock.install()
    await tab.page.goto(opened(site))
    await expect(row(tab, "one")).to_contain_text("starts")
    assert tab.page.url == site.url  # the token is in a cookie now
    await until_asked(tab, 2)  # the stream begins with a change: something may have happened meanwhile
    await tab.page.clock.run_for(30_000)
    assert calls(tab) == 2
    await add(site, "two", delay_seconds=900)
    await until_asked(tab, 3)
    await expect(row(tab, "two")).to_be_visible()
    await row(tab, "one").get_by_role("button", name="Cancel").click()
    await tab.page.clock.run_for(1_000)
    await tab.page.get_by_role("button", name="Yes, cancel one").click()
    await expect(row(tab, "one")).to_contain_text("cancelled")
    assert site.facts("get_task", task_id=one)["status"] == "cancelled"
    assert not [url for url in tab.requests if not url.startswith((site.url, "data:"))]


async def test_without_the_stream_it_asks_by_itself(site: Site, tab: Tab) -> None:
    await add(site, "three")
    await tab.page.clock.install()
    await tab.page.route("**/api/events", lambda route: route.fulfill(status=204))  # which a browser does not ask again
    await tab.page.goto(opened(site))
    await tab.page.clock.run_for(1_000)  # its first look is a timer's too
    await expect(row(tab, "three")).to_be_visible(timeout=15_000)
    await add(site, "four")
    await tab.page.clock.run_for(3_000)
    await expect(row(tab, "four")).to_be_visible(timeout=15_000)


async def test_a_task_has_an_address(site: Site, tab: Tab) -> None:
    five = await add(site, "five")
    await tab.page.goto(f"{opened(site)}#task={five}")
    await expect(tab.page.get_by_role("heading", name="five")).to_be_visible()
    await expect(tab.page).to_have_title(re.compile(r"^\d working · taskorch$"))
    await tab.page.get_by_role("tab", name="Timeline").click()
    await expect(tab.page).to_have_url(re.compile("#timeline$"))
    await tab.page.go_back()
    await expect(tab.page.get_by_role("heading", name="five")).to_be_visible()
    await tab.page.goto(f"{site.url}#task=t0000000000000000")
    await expect(tab.page.get_by_text("No task 't0000000000000000'")).to_be_visible()
