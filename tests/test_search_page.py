"""The page of a gallery, driven by a real browser; skipped where there is none."""

import json
import os
import zipfile

import numpy as np
import pytest
import requests
from PIL import Image

expect = pytest.importorskip("playwright.sync_api").expect
pytest_plugins = ["galleries"]


@pytest.fixture(params=[375, 1280])
def page(browser, server, request):
    """The page at the width of a phone and of a desk; an error that the browser reports fails the test."""
    context = browser.new_context(viewport={"width": request.param, "height": 800}, color_scheme="dark")
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    page, errors = context.new_page(), []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.goto(f"{server()}/?fold=0")  # the tiny model calls many images the same
    page.wait_for_selector("#results li")  # some images of the gallery
    yield page
    unexpected = [error for error in errors if "Failed to load resource" not in error]  # the browser's own line
    assert unexpected == [] and page.evaluate("document.documentElement.scrollWidth") <= request.param
    context.close()


def names(page) -> list[str]:
    return page.locator("#results li .name").all_text_contents()


def search(page, text: str) -> None:
    page.fill("#text", text)
    page.press("#text", "Enter")
    expect(page.locator("#status")).to_contain_text(text)


def test_search_by_text_image_paste_more_like_this_and_classification(page, folder):
    assert page.evaluate("document.activeElement.id") == "text"
    search(page, "红色的圆")
    expect(page.locator("#results li")).to_have_count(24)
    assert "24 张图片" in page.text_content("#about")

    page.set_input_files("#search [data-file]", folder / "红" / "7.png")
    page.fill("#text", "")
    page.click("#search .main")
    expect(page.locator("#results li .name").first).to_have_text("7.png")
    page.click("#search [data-clear]")

    second = names(page)[1]
    page.evaluate(
        """async (address) => {
            const content = await (await fetch(address)).blob();
            const data = new DataTransfer();
            data.items.add(new File([content], "pasted.png", { type: "image/png" }));
            document.dispatchEvent(new ClipboardEvent("paste", { clipboardData: data, bubbles: true }));
        }""",
        page.get_attribute("#results li:nth-child(2) img", "src").replace("thumbnail", "image"),
    )
    expect(page.locator("#results li .name").first).to_have_text(second)

    third = names(page)[2]
    page.click("#results li:nth-child(3) [data-like]")
    expect(page.locator("#status")).to_contain_text(f"与“{third}”相似")
    expect(page.locator("#like")).to_be_visible()
    page.click("#results li [data-copy]")
    assert os.path.isfile(page.evaluate("navigator.clipboard.readText()"))

    page.click("#tab-classify")
    page.set_input_files("#classify [data-file]", folder / "红" / "7.png")
    page.fill("#labels", "红\n蓝\n绿")
    page.click("#classify .main")
    page.wait_for_selector("#bars li")
    assert sorted(page.locator("#bars li span:first-child").all_text_contents()) == sorted("红蓝绿")


def test_the_url_contains_the_search(page, folder):
    search(page, "红色的圆")
    page.click("summary")
    page.select_option("#folder", str(folder / "红"))
    page.click("#search .main")
    expect(page.locator("#results li")).to_have_count(12)
    found = names(page)
    page.reload()
    expect(page.locator("#results li")).to_have_count(12)
    assert names(page) == found and page.input_value("#text") == "红色的圆"
    assert "1 项在用" in page.text_content("summary")
    page.go_back()
    expect(page.locator("#results li")).to_have_count(24)
    page.go_back()
    expect(page.locator("#status")).to_contain_text("输入想找的内容")


def test_more_results_are_loaded_on_scroll(page, index, folder):
    for number in range(60):
        pixels = np.random.default_rng(100 + number).integers(0, 255, (20, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"more{number}.png")
    index()
    search(page, "红色的圆")
    page.fill("#text", "蓝色的方块")  # typed, but not yet searched for
    page.evaluate("window.scrollTo(0, document.body.scrollHeight)")
    expect(page.locator("#results li")).to_have_count(84)
    assert "“红色的圆”：84 个结果" in page.text_content("#status")
    body = json.dumps({"texts": ["红色的圆"], "top_k": 84}).encode() + b"\n"
    hits = requests.post(f"{page.url.partition('?')[0]}api/search", body).json()["hits"]
    assert names(page) == [os.path.basename(hit["path"]) for hit in hits]


def test_the_viewer_steps_zooms_and_shows_a_tiff_in_full(page, index, folder):
    Image.new("RGB", (1500, 900), "red").save(folder / "large.tif")
    index()
    page.set_input_files("#search [data-file]", folder / "large.tif")
    expect(page.locator("#results li .name").first).to_have_text("large.tif")
    page.click("#results li .open")
    expect(page.locator("#viewer img")).to_have_js_property("naturalWidth", 1500)
    width = page.evaluate("document.querySelector('#viewer img').clientWidth")
    page.keyboard.press("+")
    assert page.evaluate("document.querySelector('#viewer img').clientWidth") == pytest.approx(1.5 * width, abs=2)
    page.keyboard.press("ArrowRight")
    expect(page.locator("#viewer .name")).to_have_text(names(page)[1])
    page.keyboard.press("ArrowLeft")
    expect(page.locator("#viewer .name")).to_have_text("large.tif")
    assert page.text_content("#viewer .path") == str(folder / "large.tif")
    page.keyboard.press("Escape")
    expect(page.locator("#viewer")).to_be_hidden()


def test_several_images_are_selected_copied_and_downloaded(page, folder):
    search(page, "红色的圆")
    for number in (1, 3):
        page.check(f"#results li:nth-child({number}) .pick input")
    page.click("[data-copy-all]")
    paths = page.evaluate("navigator.clipboard.readText()").split("\n")
    assert len(paths) == 2 and all(os.path.isfile(path) for path in paths)
    with page.expect_download() as download:
        page.click("#selection a")
    names_in_zip = zipfile.ZipFile(download.value.path()).namelist()
    assert names_in_zip == [os.path.basename(path) for path in paths]


def test_a_folded_group_opens(page, index, folder):
    Image.open(folder / "blue" / "0.png").save(folder / "copy.bmp")
    index()
    page.click("summary")
    page.check("#fold")
    page.set_input_files("#search [data-file]", folder / "copy.bmp")
    expect(page.locator("#results li [data-more]").first).to_contain_text("张几乎相同")
    before = len(names(page))
    page.locator("#results li [data-more]").first.click()
    expect(page.locator("#results li.duplicate").first).to_be_visible()
    assert len(names(page)) > before and {"0.png", "copy.bmp"} <= set(names(page))


@pytest.mark.parametrize("name", ["<img src=x onerror=alert(1)>.png", "a  b\u3000c\u202e.png"])
def test_a_name_is_shown_as_text_and_copied_exactly(page, folder, index, name):
    Image.new("RGB", (30, 30), "red").save(folder / name)
    index()
    page.set_input_files("#search [data-file]", folder / name)
    shown = name.replace("\u3000", "\\u3000").replace("\u202e", "\\u202e")
    expect(page.locator("#results li .name").first).to_have_text(shown)
    page.click("#results li [data-copy]")
    expect(page.locator("#results li [data-copy]").first).to_have_text("已复制")
    assert page.evaluate("navigator.clipboard.readText()") == str(folder / name)


def contrast(page, selector: str) -> float:
    colours = page.evaluate(
        """(selector) => [getComputedStyle(document.querySelector(selector)).color,
                          getComputedStyle(document.body).backgroundColor]""",
        selector,
    )
    light = []
    for colour in colours:
        channels = np.array([int(c) for c in colour[4:-1].split(",")[:3]]) / 255
        linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
        light.append(linear @ [0.2126, 0.7152, 0.0722] + 0.05)
    return max(light) / min(light)


def test_errors_are_in_chinese_and_legible(page, folder, tmp_path):
    page.click("#search .main")
    assert page.text_content("#status") == "请输入文字，或给一张图片。"
    assert contrast(page, "#status") >= 4.5
    page.click("#tab-classify")
    page.click("#classify .main")
    assert page.text_content("#status") == "请先给一张图片。"
    page.click("#tab-search")
    (tmp_path / "photo.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))
    page.set_input_files("#search [data-file]", tmp_path / "photo.heic")
    expect(page.locator("#status")).to_contain_text("请先转成 JPEG")
    page.context.set_offline(True)
    page.click("#search .main")
    expect(page.locator("#status")).to_contain_text("连不上服务器")
