"""Run the snippets of docs/using_the_weights.md that need other packages, unchanged.

(test_docs.py runs the others.)
"""

import functools
import json
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from conftest import CAPTIONS
from test_docs import REPOSITORY
from test_export import embeddings, images, needs_onnx, onnx_path  # noqa: F401

from benchmarks.run_docs import blocks
from component.checkpoint import load_checkpoint
from component.embedding import embed_images, embed_texts

SECTIONS = (REPOSITORY / "docs/using_the_weights.md").read_text(encoding="utf-8").split("\n## ")
TEXTS, FILES = ["一只小猫", "一辆公交车"], ["images/test/fluent_cat.png", "images/test/fluent_bus.png"]


def snippet(heading: str, language: str) -> str:
    """The only snippet in this language in a section."""
    (section,) = (section for section in SECTIONS if section.startswith(heading))
    (block,) = (block for block in blocks(section) if block.language == language)
    return block.code


def run(heading: str) -> dict:
    """Run the Python of a section and return its variables."""
    code, names = snippet(heading, "py"), {}
    for package in re.findall(r"^(?:from|import) (\w+)", code, re.MULTILINE):
        pytest.importorskip(package)
    exec(code, names)
    return names


@pytest.fixture
def here(tmp_path, bert_clip_path, monkeypatch) -> Path:
    """The working directory of the snippets, with the checkpoint and the images that they name."""
    (tmp_path / "output/demo").mkdir(parents=True)
    (tmp_path / "output/demo/checkpoint-final").symlink_to(bert_clip_path)
    (tmp_path / "images").symlink_to(REPOSITORY / "images")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def with_onnx(here, onnx_path) -> Path:  # noqa: F811
    (here / "output/onnx").symlink_to(onnx_path)
    return here


@pytest.fixture
def ours(here) -> tuple[torch.Tensor, torch.Tensor]:
    """Our embeddings of the texts and of the images in the snippets."""
    model, processor = load_checkpoint("output/demo/checkpoint-final")
    return embed_texts(model, processor, TEXTS).embeds, embed_images(model, processor, FILES).embeds


def test_sentence_transformers_embeds_as_we_do(ours):
    names, (texts, images) = run("sentence-transformers"), ours  # noqa: F811
    assert names["texts"] == pytest.approx(texts.numpy(), abs=1e-6)
    assert names["images"] == pytest.approx(images[:1].numpy(), abs=1e-6)


def test_a_vector_database_finds_the_image_that_we_find(ours):
    (found,), (texts, images) = run("向量数据库")["found"], ours  # noqa: F811
    score, row = (images @ texts[1]).max(dim=0)
    assert found[0]["entity"]["path"] == FILES[row]
    assert found[0]["distance"] == pytest.approx(score.item(), abs=1e-5)


def test_peft_trains_adapters_and_the_merged_model_is_a_checkpoint(ours):
    names = run("在别处加 LoRA")
    trained, merged = (model.eval()(**names["inputs"]) for model in (names["model"], names["merged"]))
    torch.testing.assert_close(trained.text_embeds, merged.text_embeds, atol=1e-5, rtol=0)
    model, processor = load_checkpoint("output/merged")
    texts = embed_texts(model, processor, TEXTS).embeds
    torch.testing.assert_close(texts, merged.text_embeds.detach(), atol=1e-5, rtol=0)
    assert (texts - ours[0]).abs().max() > 1e-3
    torch.testing.assert_close(embed_images(model, processor, FILES).embeds, ours[1], atol=1e-6, rtol=0)


@needs_onnx
def test_onnxruntime_embeds_as_we_do(with_onnx, ours):
    assert run("onnxruntime")["texts"] == pytest.approx(ours[0].numpy(), abs=1e-5)


@pytest.fixture(scope="module")
def node_modules(tmp_path_factory) -> Iterator[Path]:
    """The folder where Node finds transformers.js: NODE_PATH, or a fresh installation."""
    npm = shutil.which("npm") or pytest.skip("no npm here")
    given = Path(os.environ.get("NODE_PATH", ""))
    if (given / "@huggingface/transformers").is_dir():
        yield given
        return
    folder = tmp_path_factory.mktemp("npm")
    # The packages' install scripts download files that only a GPU needs.
    options = ["--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline"]
    done = subprocess.run(
        [npm, "install", *options, "@huggingface/transformers@4"], cwd=folder, capture_output=True, text=True
    )
    yield folder / "node_modules" if not done.returncode else pytest.skip(f"npm cannot install: {done.stderr[:200]}")
    shutil.rmtree(folder)  # half a gigabyte


@needs_onnx
def test_transformers_js_embeds_texts_in_node_as_we_do(bert_clip_path, onnx_path, images, node_modules):  # noqa: F811
    code = """
        const { AutoTokenizer, CLIPTextModelWithProjection } = require('@huggingface/transformers');
        (async ([folder, ...texts]) => {
            const tokenizer = await AutoTokenizer.from_pretrained(folder);
            const model = await CLIPTextModelWithProjection.from_pretrained(folder, { dtype: 'fp32' });
            const { text_embeds } = await model(await tokenizer(texts, { padding: true, truncation: true }));
            console.log(JSON.stringify(text_embeds.tolist()));
        })(process.argv.slice(1));
    """
    environment = {**os.environ, "NODE_PATH": str(node_modules)}
    done = subprocess.run(["node", "-e", code, onnx_path, *CAPTIONS], capture_output=True, text=True, env=environment)
    text_embeds, _ = embeddings(bert_clip_path, images)
    torch.testing.assert_close(torch.tensor(json.loads(done.stdout)), text_embeds, atol=1e-5, rtol=0)


@needs_onnx
def test_a_page_in_the_browser_classifies_as_we_do_and_asks_no_other_host(with_onnx, ours, node_modules, browser):
    (with_onnx / "node_modules").symlink_to(node_modules)
    (with_onnx / "clip.html").write_text(snippet("在浏览器里", "html"), encoding="utf-8")
    handler = type("Quiet", (SimpleHTTPRequestHandler,), {"log_message": lambda *_: None})
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(handler, directory=with_onnx))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address, asked = f"http://127.0.0.1:{server.server_port}/", []
    page = browser.new_page()
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"{address}clip.html")
    page.wait_for_function("document.querySelector('pre').textContent")
    found = {one["label"]: one["score"] for one in json.loads(page.text_content("pre"))}
    page.close()
    server.shutdown()
    assert asked and all(url.startswith(address) for url in asked)
    model, processor = load_checkpoint("output/demo/checkpoint-final")
    texts = embed_texts(model, processor, ["一张小猫的图片", "一张公交车的图片"]).embeds
    expected = (model.logit_scale.detach().exp() * ours[1][0] @ texts.T).softmax(dim=0).tolist()
    # A browser resizes images differently.
    assert found == pytest.approx(dict(zip(["小猫", "公交车"], expected, strict=True)), abs=0.02)
