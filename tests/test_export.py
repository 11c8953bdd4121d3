"""export_model.py: a checkpoint in the formats of others, loaded by their own classes."""

import json
import os
import re
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from conftest import CAPTIONS, ENVIRONMENT
from PIL import Image
from safetensors.torch import load_file
from transformers import (
    AutoModel,
    AutoProcessor,
    BertModel,
    ChineseCLIPModel,
    ChineseCLIPProcessor,
    VisionTextDualEncoderModel,
    VisionTextDualEncoderProcessor,
)

import export_model
from component.checkpoint import load_checkpoint
from component.command import run
from component.embedding import embed_images, embed_texts
from component.export.formats import FORMATS, export
from component.model import BertCLIPModel
from component.processor import load_processor, save_processor


@pytest.fixture(scope="session")
def images() -> list[Image.Image]:
    return [Image.effect_noise(size, 60).convert("RGB") for size in ((50, 40), (20, 90), (32, 32))]


@pytest.fixture(scope="session")
def cls_path(tmp_path_factory, clip_path, bert_path) -> str:
    """A BertCLIP folder that was trained with "cls" pooling from a CLIP, whose images are cropped."""
    path = str(tmp_path_factory.mktemp("cls"))
    torch.manual_seed(4)
    BertCLIPModel.from_vision_text_pretrained(clip_path, bert_path, text_pooling="cls").save_pretrained(path)
    save_processor(load_processor(clip_path, bert_path, max_length=24), path)
    return path


@pytest.fixture(scope="session")
def exported(tmp_path_factory):
    """The folder of an export; each is made once."""
    made = {}

    def give(model_path: str, name: str) -> str:
        if (model_path, name) not in made:
            made[model_path, name] = str(tmp_path_factory.mktemp("export") / "folder")
            export(model_path, name, made[model_path, name])
        return made[model_path, name]

    return give


@pytest.fixture
def command(monkeypatch):
    """The exit status of export_model.py with these options."""

    def start(*options) -> int:
        monkeypatch.setattr(sys, "argv", ["export_model.py", *map(str, options)])
        return run(export_model.main)

    return start


def embeddings(path: str, images: list) -> tuple[torch.Tensor, torch.Tensor]:
    model, processor = load_checkpoint(path)
    return embed_texts(model, processor, CAPTIONS).embeds, embed_images(model, processor, images).embeds


def python_elsewhere(code: str, *arguments: str) -> str:
    """What a program prints that has this repository not on its path."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd="/", env=ENVIRONMENT
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


NATIVE = [
    ("cls_path", "chinese-clip", ChineseCLIPModel, ChineseCLIPProcessor),
    ("chinese_clip_path", "chinese-clip", ChineseCLIPModel, ChineseCLIPProcessor),
    ("bert_clip_path", "vision-text-dual-encoder", VisionTextDualEncoderModel, VisionTextDualEncoderProcessor),
]


@pytest.mark.parametrize("start, name, model_class, processor_class", NATIVE)
def test_a_native_folder_is_loaded_whole_by_transformers_and_embeds_the_same(
    start, name, model_class, processor_class, request, exported, images
):
    path = request.getfixturevalue(start)
    folder = exported(path, name)
    model, info = AutoModel.from_pretrained(folder, output_loading_info=True)
    assert isinstance(model, model_class) and not any(info.values())
    assert isinstance(AutoProcessor.from_pretrained(folder), processor_class)
    processor = processor_class.from_pretrained(folder)
    outputs = model.eval()(**processor(text=CAPTIONS, images=images, padding=True, return_tensors="pt"))
    text_embeds, image_embeds = embeddings(path, images)
    torch.testing.assert_close(outputs.text_embeds, text_embeds, atol=1e-6, rtol=0)
    torch.testing.assert_close(outputs.image_embeds, image_embeds, atol=1e-6, rtol=0)


def test_a_dual_encoder_has_the_names_of_transformers_4_too(bert_clip_path, exported):
    weights = load_file(os.path.join(exported(bert_clip_path, "vision-text-dual-encoder"), "model.safetensors"))
    model = BertCLIPModel.from_pretrained(bert_clip_path).state_dict()
    assert {
        name.replace("vision_model.vision_model.", "vision_model."): name for name in weights
    }.keys() == model.keys()
    assert not any(re.match(r"vision_model\.(?!vision_model\.)", name) for name in weights)


@pytest.mark.parametrize("start, name", [case[:2] for case in NATIVE])
def test_what_sentence_transformers_is_told_to_call_gives_the_embeddings(start, name, request, exported, images):
    path = request.getfixturevalue(start)
    folder = exported(path, name)
    with open(os.path.join(folder, "sentence_bert_config.json")) as file:
        calls = json.load(file)["modality_config"]
    model, processor = AutoModel.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)
    inputs = processor(text=CAPTIONS, padding=True, return_tensors="pt"), processor(images=images, return_tensors="pt")
    for kind, given, expected in zip(("text", "image"), inputs, embeddings(path, images), strict=True):
        found = getattr(getattr(model, calls[kind]["method"])(**given), calls[kind]["method_output_name"])
        torch.testing.assert_close(F.normalize(found, dim=-1), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("start, name", [case[:2] for case in NATIVE])
def test_sentence_transformers_encodes_texts_and_images_as_we_do(start, name, request, exported, images):
    package = pytest.importorskip("sentence_transformers", minversion="5.4")
    path = request.getfixturevalue(start)
    model = package.SentenceTransformer(exported(path, name), device="cpu")
    text_embeds, image_embeds = embeddings(path, images)
    assert model.encode(CAPTIONS) == pytest.approx(text_embeds.numpy(), abs=1e-6)
    assert model.encode(images) == pytest.approx(image_embeds.numpy(), abs=1e-6)


def test_chinese_clips_own_weights_come_back_bit_for_bit(chinese_clip_path, exported):
    again = ChineseCLIPModel.from_pretrained(exported(chinese_clip_path, "chinese-clip")).state_dict()
    weights = ChineseCLIPModel.from_pretrained(chinese_clip_path).state_dict()
    assert weights.keys() == again.keys() and all(torch.equal(value, again[name]) for name, value in weights.items())


def test_a_pipeline_elsewhere_classifies_with_the_folder_alone(cls_path, exported, images, tmp_path):
    images[0].save(tmp_path / "a.png")
    code = (
        "import json, sys\nfrom PIL import Image\nfrom transformers import pipeline\n"
        "classify = pipeline('zero-shot-image-classification', model=sys.argv[1])\n"
        "found = classify(Image.open(sys.argv[2]), candidate_labels=sys.argv[3:], hypothesis_template='{}')\n"
        "print(json.dumps({one['label']: one['score'] for one in found}))"
    )
    printed = python_elsewhere(code, exported(cls_path, "chinese-clip"), str(tmp_path / "a.png"), *CAPTIONS)
    model, _ = load_checkpoint(cls_path)
    text_embeds, image_embeds = embeddings(cls_path, images)
    expected = (model.logit_scale.detach().exp() * image_embeds[0] @ text_embeds.T).softmax(dim=-1).tolist()
    assert json.loads(printed) == pytest.approx(dict(zip(CAPTIONS, expected, strict=True)), abs=1e-5)


def test_half_precision_and_a_learned_bias_are_kept_or_named(cls_path, tmp_path, caplog):
    half, output = str(tmp_path / "half"), str(tmp_path / "out")
    model = BertCLIPModel.from_pretrained(cls_path).half()
    model.set_loss("siglip")
    model.save_pretrained(half)
    save_processor(load_processor(cls_path), half)
    export(half, "chinese-clip", output)
    assert "no place for logit_bias (here -10.0000)" in caplog.text
    again = ChineseCLIPModel.from_pretrained(output, dtype="auto").state_dict()
    weights = model.state_dict()
    assert {value.dtype for value in again.values()} == {torch.float16}
    assert weights.keys() - again.keys() == {"logit_bias"}
    assert all(torch.equal(value, weights[name]) for name, value in again.items())


@pytest.mark.parametrize("start", ["bert_clip_path", "chinese_clip_path"])
def test_the_bert_is_that_of_save_bert_checkpoint(start, request, exported):
    path = request.getfixturevalue(start)
    bert, info = BertModel.from_pretrained(exported(path, "bert"), output_loading_info=True)
    weights = BertCLIPModel.from_pretrained(path).text_model.state_dict()
    assert {name for name in info["missing_keys"] if not name.startswith("pooler.")} == set()
    assert all(torch.equal(bert.state_dict()[name], value) for name, value in weights.items())


def refused(command, capsys, output, *options) -> str:
    capsys.readouterr()
    assert command("--output", output, *options) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith("export_model.py: ")
    return error


@pytest.mark.parametrize(
    "start, name, reason, instead",
    [
        (
            "bert_clip_path",
            "chinese-clip",
            "BERT's pooler, which ChineseCLIPModel has not",
            "vision-text-dual-encoder",
        ),
        ("chinese_clip_path", "vision-text-dual-encoder", "has no pooler, through which", "--format chinese-clip"),
    ],
)
def test_pooling_that_a_format_cannot_express_is_refused_with_the_reason_and_the_other_format(
    start, name, reason, instead, request, tmp_path, command, capsys
):
    options = ("--model", request.getfixturevalue(start), "--format", name)
    error = refused(command, capsys, tmp_path / "out", *options)
    assert reason in error and instead in error and not os.listdir(tmp_path)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("bad", ["clip_path", "half_written", "no_config", "nowhere/at/all"])
def test_what_is_no_whole_bertclip_is_one_line(name, bad, clip_path, cls_path, tmp_path, command, capsys):
    paths = {"clip_path": clip_path, "half_written": tmp_path / "cut", "no_config": tmp_path / "empty"}
    (tmp_path / "cut").mkdir()
    (tmp_path / "empty").mkdir()
    for file in os.listdir(cls_path):
        with open(os.path.join(cls_path, file), "rb") as content:
            (tmp_path / "cut" / file).write_bytes(content.read()[: 5000 if file == "model.safetensors" else None])
    path = str(paths.get(bad, bad))
    assert path in refused(command, capsys, tmp_path / "out", "--model", path, "--format", name)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", FORMATS)
def test_an_output_that_is_not_empty_is_refused_and_left_alone(name, cls_path, tmp_path, command, capsys):
    (tmp_path / "mine.txt").write_text("mine")
    error = refused(command, capsys, tmp_path, "--model", cls_path, "--format", name)
    assert f"{tmp_path} is not empty. Choose another folder.\n" in error
    assert os.listdir(tmp_path) == ["mine.txt"]


def test_an_export_that_does_not_compute_as_the_model_leaves_nothing(cls_path, tmp_path, command, capsys):
    model = BertCLIPModel.from_pretrained(cls_path)
    model.text_projection.weight.data[0, 0] = torch.nan
    model.save_pretrained(tmp_path / "nan")
    save_processor(load_processor(cls_path), str(tmp_path / "nan"))
    options = ("--model", tmp_path / "nan", "--format", "chinese-clip")
    assert "embeds texts as NaN" in refused(command, capsys, tmp_path / "out", *options)
    assert os.listdir(tmp_path) == ["nan"]
