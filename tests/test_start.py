"""A command loads only the large libraries that it needs: they decide how long people wait for its first answer."""

import json
import subprocess
import sys

import pytest
from conftest import ENVIRONMENT, ROOT, run_python

from component.checkpoint import load_checkpoint
from component.similarity import text_text_similarity

pytest_plugins = ["galleries"]

LARGE = ["accelerate", "faiss", "matplotlib", "pandas", "pyarrow", "scipy", "sklearn", "torch", "transformers"]
RUN = f"""
import json, runpy, sys
sys.path.insert(0, {ROOT!r})
sys.argv = sys.argv[1:]
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as end:
    assert not end.code, end.code
print(json.dumps([name for name in {LARGE} if name in sys.modules]))
"""


def loaded_by(script: str, *arguments) -> list[str]:
    """The large libraries that a new process has loaded when the script ends."""
    command = [sys.executable, "-c", RUN, script, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


SCRIPTS = ["train_clip", "evaluate_clip", "predict_similarity", "search_image", "export_model", "blend_checkpoints"]


@pytest.mark.parametrize("script", [*SCRIPTS, "save_bert_checkpoint", "download_image", "filter_data"])
def test_help_loads_none(script):
    assert loaded_by(f"{script}.py", "--help") == []


@pytest.fixture
def gallery(index, tmp_path):
    index()
    return tmp_path / "gallery"


def test_a_query_for_texts_loads_none(gallery, folder):
    ask = [
        "search_image.py",
        "query",
        "--gallery",
        gallery,
        "--text",
        "红色的圆",
        "狗",
        "--minus",
        "蓝",
        "--fold",
        "0.99",
    ]
    assert loaded_by(*ask, "--json", gallery.parent / "quick.json") == []
    done = run_python(*ask, "--json", gallery.parent / "model.json", "--device", "cpu")
    assert done.returncode == 0, done.stderr
    quick, model = (json.loads((gallery.parent / f"{name}.json").read_text()) for name in ("quick", "model"))
    for text in quick | model:
        hits, expected = quick[text]["hits"], model[text]["hits"]
        assert [hit["path"] for hit in hits] == [hit["path"] for hit in expected]
        assert [hit["score"] for hit in hits] == pytest.approx([hit["score"] for hit in expected], abs=2e-6)


def test_a_comparison_of_texts_loads_torch_alone(gallery, bert_clip_path, tmp_path):
    texts, path = ["红色的圆", "一只小狗"], tmp_path / "matches.json"
    ask = ["predict_similarity.py", "--model", bert_clip_path, "--texts", *texts, "--json", path]
    assert loaded_by(*ask) == ["torch"]
    expected = text_text_similarity(*load_checkpoint(bert_clip_path), texts)
    found = json.loads(path.read_text())[0]["cosine"]
    assert found == pytest.approx(expected.cosines()[0, 1].item(), abs=2e-6)


def test_a_gallery_is_exported_without_torch(gallery, tmp_path):
    export = [
        "search_image.py",
        "export",
        "--gallery",
        gallery,
        "--format",
        "npy",
        "--output",
        tmp_path / "vectors.npy",
    ]
    assert not {"torch", "transformers"} & {*loaded_by(*export)}
