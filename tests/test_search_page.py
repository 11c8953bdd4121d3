"""The page of a gallery, driven by a real browser; skipped where there is none."""

import os

import pytest
from PIL import Image

pytest_plugins = ["galleries"]

expect = pytest.importorskip("playwright.sync_api").expect


@pytest.fixture(params=[375, 1280])
def page(browser, server, request):  # noqa: F811
    """The page at the width of a phone and of a desk; an error that the browser reports fails the test."""
    context = browser.new_context(viewport={"width": request.param, "height": 800})
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    page, errors = context.new_page(), []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.goto(server())
    yield page
    assert errors == [] and page.evaluate("document.documentElement.scrollWidth") <= request.param
    context.close()


def first_path(page) -> str:
    page.wait_for_selector("#results li")
    return page.text_content("#results li .path")


def test_search_by_text_image_paste_more_like_this_and_classification(page, folder):  # noqa: F811
    page.keyboard.type("红色的圆")  # the field has the focus
    page.keyboard.press("Enter")
    first_path(page)
    page.click("summary")
    page.uncheck("#fold")
    page.fill("#top_k", "100")
    page.press("#text", "Enter")
    expect(page.locator("#results li")).to_have_count(24)
    assert "24 张图片" in page.text_content("#about")

    page.set_input_files("#search [data-file]", folder / "红" / "7.png")
    page.fill("#text", "")
    page.click("#search .main")
    expect(page.locator("#results li .path").first).to_have_text(str(folder / "红" / "7.png"))
    page.click("#search [data-clear]")

    second = page.text_content("#results li:nth-child(2) .path")
    page.evaluate(
        """async (address) => {
            const content = await (await fetch(address)).blob();
            const data = new DataTransfer();
            data.items.add(new File([content], "pasted.png", { type: "image/png" }));
            document.dispatchEvent(new ClipboardEvent("paste", { clipboardData: data, bubbles: true }));
        }""",
        page.get_attribute("#results li:nth-child(2) a", "href"),
    )
    expect(page.locator("#results li .path").first).to_have_text(second)

    page.click("#results li:nth-child(3) [data-like]")
    page.wait_for_selector("#results li")
    page.click("#results li [data-copy]")
    copied = page.evaluate("navigator.clipboard.readText()")
    assert copied == first_path(page) and os.path.isfile(copied)

    page.click("#tab-classify")
    page.set_input_files("#classify [data-file]", folder / "红" / "7.png")
    page.fill("#labels", "红\n蓝\n绿")
    page.click("#classify .main")
    page.wait_for_selector("#bars li")
    assert sorted(page.locator("#bars li span:first-child").all_text_contents()) == sorted("红蓝绿")


def test_a_name_with_markup_is_shown_as_text(page, folder, index):  # noqa: F811
    name = "<img src=x onerror=alert(1)>.png"
    Image.new("RGB", (30, 30), "red").save(folder / name)
    index()
    page.set_input_files("#search [data-file]", folder / name)
    assert first_path(page) == str(folder / name)


def test_what_is_missing_is_said(page):
    page.click("#search .main")
    assert page.text_content("#status") == "请输入文字，或给一张图片。"
    page.click("#tab-classify")
    page.click("#classify .main")
    assert page.text_content("#status") == "请先给一张图片。"
