"""Draw the screenshots of the README from the demo's checkpoint: search_page.png and demo_similarity.png.

python images/draw_pages.py [--model output/demo/checkpoint-final]

Needs requirements-dev.txt and an installed Chromium.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile

from playwright.sync_api import Page, sync_playwright

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(HERE)
WIDTH = 900  # px
PORT = 8765
QUERY = "自行车"


def run(*arguments: str) -> None:
    subprocess.run([sys.executable, *arguments], cwd=ROOT, check=True)


def draw_search(page: Page, model: str, folder: str) -> None:
    """The results of one query, cropped below the first row of cards."""
    gallery = os.path.join(folder, "gallery")
    run("search_image.py", "index", "--model", model, "--images", "data/demo/images", "--gallery", gallery)
    server = [sys.executable, "-u", "search_image.py", "serve", "--gallery", gallery, "--port", str(PORT)]
    with subprocess.Popen(server, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            url = next(line for line in process.stdout if line.startswith("Open ")).split()[1]
            page.goto(url)
            page.get_by_role("searchbox").fill(QUERY)
            page.keyboard.press("Enter")
            page.get_by_role("img").nth(3).wait_for()
            page.wait_for_load_state("networkidle")
            page.screenshot(path=os.path.join(HERE, "search_page.png"), clip=clip(640))
        finally:
            process.terminate()


def draw_similarity(page: Page, model: str, folder: str) -> None:
    """The whole first table of predict_similarity.py's page."""
    path = os.path.join(folder, "demo.html")
    run("predict_similarity.py", "--model", model, "--top_k", "3", "--html", path)
    page.goto(f"file://{path}")
    page.locator("table").first.screenshot(path=os.path.join(HERE, "demo_similarity.png"))


def clip(height: int) -> dict[str, int]:
    return {"x": 0, "y": 0, "width": WIDTH, "height": height}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="output/demo/checkpoint-final", help="(%(default)s)")
    model = parser.parse_args().model
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as folder:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": WIDTH, "height": 900})
        draw_search(page, model, folder)
        draw_similarity(page, model, folder)
        browser.close()


if __name__ == "__main__":
    main()
