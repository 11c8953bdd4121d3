"""export_model.py: each export is loaded by the library that it is for."""

import argparse
import importlib.util
import json
import os
import pathlib
import re
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
import transformers
from conftest import CAPTIONS, ENVIRONMENT, EVERY_TRANSFORMERS, write_csv
from PIL import Image
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import (
    AutoModel,
    AutoProcessor,
    BertModel,
    ChineseCLIPModel,
    ChineseCLIPProcessor,
    CLIPVisionModelWithProjection,
    VisionTextDualEncoderModel,
    VisionTextDualEncoderProcessor,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

import export_model
from component.checkpoint import load_checkpoint, save_checkpoint
from component.embedding import embed_images, embed_texts
from component.evaluation.retrieval import evaluate_retrieval
from component.evaluation.retrieval_data import read_retrieval_data
from component.export.formats import FORMATS, export
from component.export.onnx import load_graphs
from component.export.samples import embed_samples
from component.ground.command import run_script
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


HAS_ONNX = all(importlib.util.find_spec(package) for package in ("onnx", "onnxscript", "onnxruntime"))
needs_onnx = pytest.mark.skipif(not HAS_ONNX, reason="requirements-export.txt is not installed")
EVERY_FORMAT = [pytest.param(name, marks=[needs_onnx] if name in ("onnx", "immich") else []) for name in FORMATS]


@pytest.fixture(scope="session")
def onnx_path(bert_clip_path, tmp_path_factory) -> str:
    folder = str(tmp_path_factory.mktemp("onnx") / "folder")
    export(bert_clip_path, "onnx", folder, int8=True)
    return folder


@pytest.fixture
def command(monkeypatch):
    """The exit status of export_model.py with these options."""

    def start(*options) -> int:
        monkeypatch.setattr(sys, "argv", ["export_model.py", *map(str, options)])
        return run_script(export_model.main)

    return start


def embeddings(path: str, images: list) -> tuple[torch.Tensor, torch.Tensor]:
    model, processor = load_checkpoint(path)
    return embed_texts(model, processor, CAPTIONS).embeds, embed_images(model, processor, images).embeds


def python_elsewhere(code: str, *arguments: str, **environment: str) -> str:
    """The output of a program that runs without this repository on its path."""
    command, environment = [sys.executable, "-c", code, *arguments], {**ENVIRONMENT, **environment}
    done = subprocess.run(command, capture_output=True, text=True, cwd="/", env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", [format for format in EVERY_FORMAT if "immich" not in format.values])
def test_no_export_tells_where_the_model_and_its_towers_were(
    name, exported, request, bert_clip_path, cls_path, bert_path, clip_path
):
    path = cls_path if name == "chinese-clip" else bert_clip_path
    folder = request.getfixturevalue("onnx_path") if name == "onnx" else exported(path, name)
    for file in pathlib.Path(folder).rglob("*.json"):
        content = file.read_text(encoding="utf-8")
        assert not [folder for folder in (path, bert_path, clip_path) if folder in content], file.name


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


def test_a_dual_encoder_has_the_weight_names_of_transformers_4(bert_clip_path, exported):
    weights = load_file(os.path.join(exported(bert_clip_path, "vision-text-dual-encoder"), "model.safetensors"))
    model = BertCLIPModel.from_pretrained(bert_clip_path).state_dict()
    assert {
        name.replace("vision_model.vision_model.", "vision_model."): name for name in weights
    }.keys() == model.keys()
    assert not any(re.match(r"vision_model\.(?!vision_model\.)", name) for name in weights)


@pytest.mark.parametrize("environment", EVERY_TRANSFORMERS)
def test_a_dual_encoder_is_loaded_whole_without_this_repository(environment, bert_clip_path, exported, images):
    code = (
        "import json, sys\nfrom transformers import AutoModel, AutoTokenizer\n"
        "model, info = AutoModel.from_pretrained(sys.argv[1], output_loading_info=True)\n"
        "texts = AutoTokenizer.from_pretrained(sys.argv[1])(sys.argv[2:], padding=True, return_tensors='pt')\n"
        "features = model.eval().get_text_features(**texts)\n"
        "features = getattr(features, 'pooler_output', features)\n"
        "print(json.dumps([type(model).__name__, *map(list, info.values()), features.tolist()]))"
    )
    folder = exported(bert_clip_path, "vision-text-dual-encoder")
    name, *faults, features = json.loads(python_elsewhere(code, folder, *CAPTIONS, **environment))
    assert name == "VisionTextDualEncoderModel" and faults and not any(faults)
    text_embeds, _ = embeddings(bert_clip_path, images)
    torch.testing.assert_close(F.normalize(torch.tensor(features), dim=-1), text_embeds, atol=1e-6, rtol=0)


@pytest.mark.parametrize("environment", EVERY_TRANSFORMERS)
@pytest.mark.parametrize("start", ["cls_path", "chinese_clip_path"])
def test_a_chinese_clip_is_loaded_without_this_repository(environment, start, request, exported, images, tmp_path):
    """Cropped images and squeezed ones. get_text_features of transformers 4.57 fails for every Chinese-CLIP."""
    if not environment and transformers.__version__.startswith("5.17."):
        pytest.skip("AutoImageProcessor of transformers 5.17 needs torchvision")
    path = request.getfixturevalue(start)
    images[0].save(tmp_path / "a.png")
    code = (
        "import json, sys\nfrom PIL import Image\n"
        "from transformers import AutoImageProcessor, AutoModel, AutoTokenizer\n"
        "folder, image, *texts = sys.argv[1:]\n"
        "inputs = AutoTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors='pt')\n"
        "inputs |= AutoImageProcessor.from_pretrained(folder)(Image.open(image), return_tensors='pt')\n"
        "outputs = AutoModel.from_pretrained(folder).eval()(**inputs)\n"
        "print(json.dumps([outputs.text_embeds.tolist(), outputs.image_embeds.tolist()]))"
    )
    folder = exported(path, "chinese-clip")
    printed = python_elsewhere(code, folder, str(tmp_path / "a.png"), *CAPTIONS, **environment)
    for found, wanted in zip(json.loads(printed), embeddings(path, images[:1]), strict=True):
        torch.testing.assert_close(torch.tensor(found), wanted, atol=1e-6, rtol=0)


@pytest.mark.parametrize("start, name", [case[:2] for case in NATIVE])
def test_the_methods_named_for_sentence_transformers_give_the_embeddings(start, name, request, exported, images):
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


def test_sentence_transformers_encodes_a_checkpoint_as_we_do_and_normalises(bert_clip_path, images, tmp_path):
    package = pytest.importorskip("sentence_transformers", minversion="5.4")
    save_checkpoint(*load_checkpoint(bert_clip_path), str(tmp_path))
    model = package.SentenceTransformer(str(tmp_path), device="cpu", trust_remote_code=True)
    text_embeds, image_embeds = embeddings(bert_clip_path, images)
    assert model.encode(CAPTIONS) == pytest.approx(text_embeds.numpy(), abs=1e-6)
    assert model.encode(images) == pytest.approx(image_embeds.numpy(), abs=1e-6)


def test_the_weights_of_a_chinese_clip_are_exported_bit_for_bit(chinese_clip_path, exported):
    again = ChineseCLIPModel.from_pretrained(exported(chinese_clip_path, "chinese-clip")).state_dict()
    weights = ChineseCLIPModel.from_pretrained(chinese_clip_path).state_dict()
    assert weights.keys() == again.keys() and all(torch.equal(value, again[name]) for name, value in weights.items())


def test_a_pipeline_without_this_repository_classifies_with_the_folder_alone(cls_path, exported, images, tmp_path):
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


def test_half_precision_is_kept_and_a_learned_bias_is_named(cls_path, tmp_path, caplog):
    half, output = str(tmp_path / "half"), str(tmp_path / "out")
    model = BertCLIPModel.from_pretrained(cls_path).half()
    model.set_loss("siglip")
    model.save_pretrained(half)
    save_processor(load_processor(cls_path), half)
    export(half, "chinese-clip", output)
    assert "ChineseCLIPModel has no logit_bias (here -10.0000)" in caplog.text
    again = ChineseCLIPModel.from_pretrained(output, dtype="auto").state_dict()
    weights = model.state_dict()
    assert {value.dtype for value in again.values()} == {torch.float16}
    assert weights.keys() - again.keys() == {"logit_bias"}
    assert all(torch.equal(value, weights[name]) for name, value in again.items())


@pytest.mark.parametrize("start", ["bert_clip_path", "chinese_clip_path"])
def test_a_checkpoint_has_the_weights_of_the_model_and_is_complete(start, request, exported):
    folder = exported(request.getfixturevalue(start), "checkpoint")
    before, after = (BertCLIPModel.from_pretrained(path) for path in (request.getfixturevalue(start), folder))
    assert all(torch.equal(value, before.state_dict()[name]) for name, value in after.state_dict().items())
    assert {"modeling_bertclip.py", "modules.json", "vocab.txt"} <= set(os.listdir(folder))


@pytest.mark.parametrize("start", ["bert_clip_path", "chinese_clip_path"])
def test_a_shorter_checkpoint_holds_the_main_dimensions_of_the_model(start, request, images, data, tmp_path, command):
    path = request.getfixturevalue(start)
    cosines = {}
    for dim in (16, 4):
        options = ("--train_file", data / "train.csv", "--image_path", data / "images")
        assert not command(
            "--model", path, "--format", "checkpoint", "--output", tmp_path / str(dim), "--dim", dim, *options
        )
        texts, pictures = embeddings(str(tmp_path / str(dim)), images)
        cosines[dim] = texts @ pictures.T
        assert texts.shape[1] == pictures.shape[1] == dim
    whole, turned = embeddings(path, images), embeddings(str(tmp_path / "16"), images)
    torch.testing.assert_close(cosines[16], whole[0] @ whole[1].T, atol=1e-5, rtol=0)
    cut = [F.normalize(embeds[:, :4], dim=-1) for embeds in turned]
    torch.testing.assert_close(cosines[4], cut[0] @ cut[1].T, atol=1e-5, rtol=0)
    assert turned[0][:, :4].norm() > whole[0][:, :4].norm()
    vision, info = CLIPVisionModelWithProjection.from_pretrained(tmp_path / "4", output_loading_info=True)
    assert vision.visual_projection.weight.shape == (4, 48) and not info["missing_keys"]


def test_a_checkpoint_with_more_dimensions_than_the_model_is_refused(cls_path, data, tmp_path, command, capsys):
    options = ("--model", cls_path, "--format", "checkpoint", "--dim", 17, "--train_file", data / "train.csv")
    options += ("--image_path", data / "images")
    assert "has vectors of 16 dimensions: give --dim 1 to 16, not 17" in refused(
        command, capsys, tmp_path / "out", *options
    )


@pytest.mark.parametrize("start", ["bert_clip_path", "chinese_clip_path"])
def test_the_exported_bert_has_the_weights_of_the_text_tower(start, request, exported):
    path = request.getfixturevalue(start)
    bert, info = BertModel.from_pretrained(exported(path, "bert"), output_loading_info=True)
    weights = BertCLIPModel.from_pretrained(path).text_model.state_dict()
    assert {name for name in info["missing_keys"] if not name.startswith("pooler.")} == set()
    assert all(torch.equal(bert.state_dict()[name], value) for name, value in weights.items())


def open_graph(path: str, name: str):
    """A graph by name, as a function of named tensors that gives named tensors."""
    import onnxruntime

    session = onnxruntime.InferenceSession(os.path.join(path, name))
    names = [node.name for node in session.get_outputs()]

    def compute(**inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        found = session.run(None, {node.name: inputs[node.name].numpy() for node in session.get_inputs()})
        return dict(zip(names, map(torch.from_numpy, found), strict=True))

    return compute


def inputs_of(batch: int, length: int) -> dict[str, torch.Tensor]:
    lengths = torch.randint(2, length + 1, (batch, 1))
    return {
        "input_ids": torch.randint(5, 30, (batch, length)),
        "attention_mask": (torch.arange(length) < lengths).long(),
        "pixel_values": torch.randn(34 - batch, 3, 32, 32),
    }


@needs_onnx
def test_onnx_graphs_equal_the_model_for_any_batch_and_length(bert_clip_path, onnx_path):
    model = BertCLIPModel.from_pretrained(bert_clip_path).eval()
    graphs = [open_graph(onnx_path, f"onnx/{name}.onnx") for name in ("model", "text_model", "vision_model")]
    shapes = [(batch, length) for batch in (1, 33) for length in (2, 24)]
    for batch, length in [*shapes, *((1 + 7 * length % 33, length) for length in range(2, 25))]:
        inputs = inputs_of(batch, length)
        with torch.no_grad():
            expected = model(**inputs)
        for key, value in (item for graph in graphs for item in graph(**inputs).items()):
            scale = model.logit_scale.exp().item() if key.startswith("logits") else 1
            torch.testing.assert_close(value / scale, expected[key] / scale, atol=1e-5, rtol=0)


@needs_onnx
def test_onnx_graphs_have_the_names_that_transformers_js_expects(onnx_path):
    import onnxruntime

    def names(name: str) -> tuple[set, set]:
        session = onnxruntime.InferenceSession(os.path.join(onnx_path, "onnx", name))
        return {node.name for node in session.get_inputs()}, {node.name for node in session.get_outputs()}

    tokens, embeds = {"input_ids", "attention_mask"}, {"text_embeds", "image_embeds"}
    for ending in ("", "_quantized"):
        assert names(f"text_model{ending}.onnx") == (tokens, {"text_embeds"})
        assert names(f"vision_model{ending}.onnx") == ({"pixel_values"}, {"image_embeds"})
        logits = {"logits_per_image", "logits_per_text"}
        assert names(f"model{ending}.onnx") == (tokens | {"pixel_values"}, embeds | logits)


@needs_onnx
def test_int8_graphs_are_close_to_the_model_and_their_loss_of_recall_is_printed(
    bert_clip_path, onnx_path, images, data
):
    _, processor = load_checkpoint(bert_clip_path)
    graphs = load_graphs(onnx_path, "_quantized")
    found = embed_texts(graphs, processor, CAPTIONS).embeds, embed_images(graphs, processor, images).embeds
    for near, exact in zip(found, embeddings(bert_clip_path, images), strict=True):
        assert 1e-5 < (near - exact).abs().max() < 0.1
    (data / "images" / "7.png").write_bytes(b"no image")
    args = argparse.Namespace(output=onnx_path, int8=True)
    pairs = read_retrieval_data(str(data / "train.csv"), str(data / "images"))
    models = load_checkpoint(bert_clip_path)[0], export_model.load_smaller(args)
    metrics = [evaluate_retrieval(model, processor, pairs).metrics for model in models]
    assert re.fullmatch(
        r"Mean recall with int8: [0-9.]+, [+-][0-9.]+ points against the model's [0-9.]+, on 7 texts and "
        r"7 images \(1 could not be read\)\.",
        export_model.recall_lost(args, *metrics),
    )


def test_pairs_that_cannot_measure_the_loss_are_refused_before_anything_is_written(
    bert_clip_path, data, tmp_path, command, capsys
):
    gone = write_csv(tmp_path / "gone.csv", [("gone.png", "x")], header=("filename", "text"))
    train = ("--train_file", data / "train.csv", "--image_path", data / "images")
    options = ("--model", bert_clip_path, "--format", "checkpoint", "--dim", "4", *train, "--test_file", gone)
    assert "No image with a text can be read" in refused(command, capsys, tmp_path / "out", *options)
    assert not (tmp_path / "out").exists()
    assert "is not empty" in refused(command, capsys, tmp_path, *options)  # before it evaluates anything


@needs_onnx
def test_immich_embeds_texts_and_images_from_the_folder_as_we_do(bert_clip_path, tmp_path, images, caplog):
    folder = str(tmp_path / "immich")
    export(bert_clip_path, "immich", folder)
    assert "no M-CLIP model with embeddings of width 16" in caplog.text

    def read(*names: str) -> dict:
        with open(os.path.join(folder, *names), encoding="utf-8") as file:
            return json.load(file)

    # As Immich does it, one text or image at a time.
    tokenizer = Tokenizer.from_file(os.path.join(folder, "textual", "tokenizer.json"))
    length = read("config.json")["text_cfg"]["context_length"]
    pad_token = read("textual", "tokenizer_config.json")["pad_token"]
    tokenizer.enable_padding(length=length, pad_token=pad_token, pad_id=tokenizer.token_to_id(pad_token))
    tokenizer.enable_truncation(max_length=length)
    embed_text, embed_image = (open_graph(folder, f"{kind}/model.onnx") for kind in ("textual", "visual"))
    text_embeds, image_embeds = embeddings(bert_clip_path, images)
    for text, expected in zip(CAPTIONS, text_embeds, strict=True):
        tokens = tokenizer.encode(text)
        ids, mask = (torch.tensor([row], dtype=torch.int32) for row in (tokens.ids, tokens.attention_mask))
        found = embed_text(input_ids=ids, attention_mask=mask)["text_embeds"][0]
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)

    settings = read("visual", "preprocess_cfg.json")
    assert (settings["size"], settings["interpolation"], settings["resize_mode"]) == ([32, 32], "bicubic", "shortest")
    transform = CLIPImageProcessorPil(
        size={"shortest_edge": 32}, crop_size=32, image_mean=settings["mean"], image_std=settings["std"]
    )
    for image, expected in zip(images, image_embeds, strict=True):
        found = embed_image(image=transform(image, return_tensors="pt")["pixel_values"])["image_embeds"][0]
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


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
            "BERT's pooler, which ChineseCLIPModel lacks",
            "vision-text-dual-encoder",
        ),
        ("chinese_clip_path", "vision-text-dual-encoder", "has no pooler, through which", "--format chinese-clip"),
    ],
)
def test_a_pooling_that_a_format_cannot_express_is_refused_with_an_alternative(
    start, name, reason, instead, request, tmp_path, command, capsys
):
    options = ("--model", request.getfixturevalue(start), "--format", name)
    error = refused(command, capsys, tmp_path / "out", *options)
    assert reason in error and instead in error and not os.listdir(tmp_path)


@pytest.mark.parametrize("name", EVERY_FORMAT)
@pytest.mark.parametrize("bad", ["clip_path", "half_written", "no_config", "nowhere/at/all"])
def test_an_incomplete_bertclip_gives_one_line(name, bad, clip_path, cls_path, tmp_path, command, capsys):
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
def test_an_output_that_is_not_empty_is_refused_and_stays_as_it_is(name, cls_path, tmp_path, command, capsys):
    (tmp_path / "mine.txt").write_text("mine")
    error = refused(command, capsys, tmp_path, "--model", cls_path, "--format", name)
    assert f"{tmp_path} is not empty. Choose another folder.\n" in error
    assert os.listdir(tmp_path) == ["mine.txt"]


@pytest.mark.parametrize("kind", ["text", "image"])
@pytest.mark.parametrize("error", [2e-5, torch.nan])
def test_an_export_with_other_embeddings_is_refused(kind, error, cls_path):
    samples = embed_samples(*load_checkpoint(cls_path))
    found = replace(samples, text_embeds=samples.text_embeds.clone(), image_embeds=samples.image_embeds.clone())
    samples.require_same(found)
    getattr(found, f"{kind}_embeds")[-1, 0] += error
    with pytest.raises(ValueError, match=f"embeddings of {kind}s differ from the model's"):
        samples.require_same(found)


def test_an_export_of_a_model_of_nans_leaves_no_folder(cls_path, tmp_path, command, capsys):
    model = BertCLIPModel.from_pretrained(cls_path)
    model.text_projection.weight.data[0, 0] = torch.nan
    model.save_pretrained(tmp_path / "nan")
    save_processor(load_processor(cls_path), str(tmp_path / "nan"))
    options = ("--model", tmp_path / "nan", "--format", "chinese-clip")
    assert "embeds texts as NaN" in refused(command, capsys, tmp_path / "out", *options)
    assert os.listdir(tmp_path) == ["nan"]


@pytest.mark.parametrize(
    "package", ["onnx", *(pytest.param(name, marks=needs_onnx) for name in ("onnxscript", "onnxruntime"))]
)
def test_a_missing_package_is_named_before_any_work(package, cls_path, tmp_path, monkeypatch, command, capsys):
    monkeypatch.setitem(sys.modules, package, None)
    error = refused(command, capsys, tmp_path / "out", "--model", cls_path, "--format", "onnx")
    assert f"ONNX needs {package}: pip install {package}" in error and not os.listdir(tmp_path)


@pytest.mark.parametrize(
    "options, reason",
    [
        (("--format", "bert", "--int8"), "--int8 works with --format onnx only, not with bert"),
        (("--format", "onnx", "--test_file", "a.csv"), "--test_file works with --int8 or --dim only"),
        (("--format", "onnx", "--image_path", "images"), "--image_path works with --test_file or --train_file only"),
        (("--format", "onnx", "--dim", "8", "--train_file", "a.csv"), "--dim works with --format checkpoint only"),
        (("--format", "checkpoint", "--dim", "8"), "give --dim and --train_file together, or neither"),
        (("--format", "gguf"), "invalid choice: 'gguf'"),
    ],
)
def test_options_without_effect_are_refused(options, reason, tmp_path, command, capsys):
    with pytest.raises(SystemExit):
        command("--model", "nowhere/at/all", "--output", tmp_path, *options)
    assert reason in capsys.readouterr().err
