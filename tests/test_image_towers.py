"""Image towers other than CLIP's: each is compared with transformers' own class and image processor."""

import importlib.util
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
import transformers
from conftest import CAPTIONS, ENVIRONMENT, EVERY_TRANSFORMERS
from PIL import Image
from safetensors.torch import load_file

from component.checkpoint import load_checkpoint, save_checkpoint
from component.embedding import embed_images, embed_texts
from component.evaluation.retrieval import evaluate_retrieval
from component.evaluation.retrieval_data import read_retrieval_data
from component.export.formats import export
from component.export.graph import ImageGraph, export_graph, open_graph, pixel_inputs
from component.export.smaller import save_smaller
from component.hub.quiet import quiet_transformers
from component.hub.use import IMAGE_HALF
from component.image.transform import ImageTransform
from component.model import BertCLIPModel
from component.processor import image_size, load_processor, load_processor_of
from component.search.embed import Loading
from component.search.index import update
from component.search.open import gallery_to_write, open_searcher
from component.search.query import Query
from component.search.scan import Sources
from component.tower_parts import tower_parts

SMALL = dict(hidden_size=48, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=16)
WITH_MLP = dict(**SMALL, intermediate_size=96)
TEXT = dict(hidden_size=24, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2, vocab_size=9)
TEXT |= dict(bos_token_id=1, eos_token_id=2, pad_token_id=1)
TRAINED_LARGER = dict(SMALL, image_size=64)  # as DINOv2, whose positions are scaled to smaller images
SQUARE = {"height": 32, "width": 32}
CROPPED = dict(size={"shortest_edge": 36}, crop_size=SQUARE)
# name → class, settings of its config, image processor, settings of that
TOWERS = {
    "siglip": ("Siglip", dict(text_config=TEXT, vision_config=WITH_MLP), "Siglip", dict(size=SQUARE)),
    "siglip_tower": ("SiglipVision", WITH_MLP, "Siglip", dict(size=SQUARE)),
    "dinov2": ("Dinov2", TRAINED_LARGER, "Bit", CROPPED),
    "dinov2_swiglu": ("Dinov2", dict(TRAINED_LARGER, use_swiglu_ffn=True), "Bit", CROPPED),
    "dinov2_with_registers": ("Dinov2WithRegisters", TRAINED_LARGER, "Bit", CROPPED),
    "dinov3_vit": ("DINOv3ViT", dict(WITH_MLP, num_register_tokens=2), "DINOv3ViT", dict(size=SQUARE)),
    "vit": ("ViT", WITH_MLP, "ViT", dict(size=SQUARE)),
    "metaclip_2": ("MetaClip2", dict(vision_config=WITH_MLP, text_config=TEXT, projection_dim=16), "CLIP", CROPPED),
}
HAS_ONNX = all(importlib.util.find_spec(package) for package in ("onnx", "onnxscript", "onnxruntime"))


@pytest.fixture(scope="session")
def tower_path(tmp_path_factory):
    """The folder of a tower as on the Hub: weights, config.json and preprocessor_config.json."""
    made = {}

    def give(name: str) -> str:
        if name not in made:
            kind, settings, processor, inputs = TOWERS[name]
            made[name] = str(tmp_path_factory.mktemp("tower") / name)
            config = getattr(transformers, f"{kind}Config")(**settings)
            torch.manual_seed(0)
            with quiet_transformers():
                getattr(transformers, f"{kind}Model")(config).save_pretrained(made[name])
            if processor == "DINOv3ViT":  # its class needs torchvision
                inputs = dict(inputs, do_resize=True, do_rescale=True, do_normalize=True, rescale_factor=1 / 255)
                inputs |= dict(resample=2, do_center_crop=None, image_mean=[0.48] * 3, image_std=[0.23] * 3)
                inputs |= dict(image_processor_type="DINOv3ViTImageProcessorFast")
                with open(f"{made[name]}/preprocessor_config.json", "w") as file:
                    json.dump(inputs, file)
            else:
                getattr(transformers, f"{processor}ImageProcessorPil")(**inputs).save_pretrained(made[name])
        return made[name]

    return give


def own_tower(path: str) -> torch.nn.Module:
    with quiet_transformers():
        model = transformers.AutoModel.from_pretrained(path).eval()
    return getattr(model, "vision_model", model)


@pytest.fixture
def images() -> list[Image.Image]:
    return [Image.effect_noise(size, 60).convert("RGB") for size in ((50, 40), (20, 90), (32, 32))]


# ---- the towers themselves ----


@pytest.mark.parametrize("name", TOWERS)
def test_the_pooled_output_is_that_of_transformers_own_class(name, tower_path, bert_path, tmp_path, caplog):
    path = tower_path(name)
    model = BertCLIPModel.from_vision_text_pretrained(path, bert_path).eval()
    pixel_values = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        expected = own_tower(path)(pixel_values=pixel_values).pooler_output
        torch.testing.assert_close(
            model.vision_model(pixel_values=pixel_values).pooler_output, expected, atol=1e-6, rtol=0
        )
    has_projection = "clip" in name
    assert model.visual_projection.weight.shape == (16 if has_projection else 512, 48)
    new = [record.getMessage() for record in caplog.records if "visual_projection" in record.getMessage()]
    said = f"{path} has no visual_projection: a new one is trained, with a new logit_scale."
    assert new == ([] if has_projection else [said])
    model.save_pretrained(tmp_path)
    again = BertCLIPModel.from_pretrained(tmp_path).state_dict()
    assert all(torch.equal(value, again[key]) for key, value in model.state_dict().items())
    # Files have the names of the Hub, which every version of transformers reads.
    published = load_file(f"{path}/model.safetensors")
    prefix = "" if any(key.startswith("vision_model.") for key in published) else "vision_model."
    kept = load_file(f"{tmp_path}/model.safetensors")
    assert all(
        torch.equal(kept[prefix + key], value)
        for key, value in published.items()
        if not key.startswith(("text_", "logit_"))
    )


@pytest.mark.parametrize("name", TOWERS)
def test_the_pixels_are_those_of_the_towers_own_image_processor(name, tower_path, bert_path, images, tmp_path):
    path, paths = tower_path(name), []
    for number, image in enumerate(images):
        paths.append(str(tmp_path / f"{number}.png"))
        image.save(paths[-1])
    kind = TOWERS[name][2].replace("DINOv3", "")
    own = getattr(transformers, f"{kind}ImageProcessorPil").from_pretrained(path)
    expected = own(images, do_center_crop=bool(own.do_center_crop), return_tensors="pt")["pixel_values"]
    processor = load_processor(path, bert_path)
    transform = ImageTransform(processor.image_processor)
    assert torch.equal(
        transform.pixel_values(torch.from_numpy(np.stack([transform.read(path) for path in paths]))), expected
    )
    processor.save_pretrained(tmp_path / "saved")
    again = transformers.CLIPProcessor.from_pretrained(tmp_path / "saved")
    assert torch.equal(again(images=images, return_tensors="pt")["pixel_values"], expected)


@pytest.mark.parametrize("name", TOWERS)
def test_the_last_blocks_are_unlocked_with_what_computes_after_them(name, tower_path, bert_path):
    model = BertCLIPModel.from_vision_text_pretrained(tower_path(name), bert_path)
    model.lock_vision(1)
    trained = {key for key, value in model.vision_model.named_parameters() if value.requires_grad}
    (block,) = {key.split(".1.")[0] + ".1" for key in trained if ".1." in key}
    others = trained - {key for key in trained if key.startswith(f"{block}.")}
    assert len(trained) > len(others) > 0
    assert all(key.split(".")[0] in ("post_layernorm", "layernorm", "norm", "head", "pooler") for key in others)
    modes = {key: module.training for key, module in model.train().vision_model.named_modules()}
    assert modes[block] and not modes[f"{block[:-1]}0"] and not modes["embeddings"]
    assert model._no_split_modules == {"BertLayer", type(model.vision_model.get_submodule(block)).__name__}


# ---- the whole road ----


@pytest.mark.parametrize("name", ["siglip", "dinov2"])
def test_a_run_that_trains_the_last_block_resumes_bit_for_bit(name, tower_path, train_here, tmp_path):
    keys = dict(clip_pretrain_path=tower_path(name), freeze_vision="last_n_blocks:1", contrastive_chunk_size=3)
    keys |= dict(save_steps=2, layer_decay=0.5, lr_scheduler_type="constant")
    assert not train_here(**keys)
    output = tmp_path / "output"
    whole = load_file(output / "checkpoint-final" / "model.safetensors")
    first = load_file(output / "checkpoint-2" / "model.safetensors")
    moved = {key for key, value in whole.items() if not torch.equal(value, first[key])}
    assert any(key.startswith("vision_model.encoder.layer") for key in moved)
    assert not any(".0." in key or "vision_model.embeddings" in key for key in moved if key.startswith("vision_model"))
    for folder in ("checkpoint-4", "checkpoint-final"):
        shutil.rmtree(output / folder)
    assert not train_here(**keys, resume_from_checkpoint=True)
    again = load_file(output / "checkpoint-final" / "model.safetensors")
    assert whole.keys() == again.keys() and all(torch.equal(value, again[key]) for key, value in whole.items())


@pytest.mark.parametrize("name", ["siglip", "dinov2"])
def test_a_locked_tower_is_cached_evaluated_and_searched(name, tower_path, train_here, data, tmp_path):
    keys = dict(clip_pretrain_path=tower_path(name), test_file=str(data / "train.csv"), save_strategy="no")
    assert not train_here(**keys)
    assert not train_here(**keys, image_feature_cache="off", output_dir=str(tmp_path / "uncached"))
    path = str(tmp_path / "output" / "checkpoint-final")
    losses = []
    for folder in ("output", "uncached"):
        with open(tmp_path / folder / "train_results.json") as file:
            losses.append(json.load(file)["train_loss"])
    assert losses[0] == pytest.approx(losses[1], abs=2e-3)
    model, processor = load_checkpoint(path)
    own = own_tower(tower_path(name)).state_dict()
    assert all(torch.equal(value, own[key]) for key, value in model.vision_model.state_dict().items())
    with open(tmp_path / "output" / "test_results.json") as file:
        expected = json.load(file)
    pairs = read_retrieval_data(str(data / "train.csv"), str(data / "images"))
    assert evaluate_retrieval(model, processor, pairs).metrics["mean_recall"] == expected["eval_mean_recall"]
    with gallery_to_write(str(tmp_path / "gallery"), path, "cpu") as opened:
        update(*opened, Sources([str(data / "images")]), Loading(3, num_workers=0))
    searcher = open_searcher(str(tmp_path / "gallery"), device="cpu")
    (answer,) = [hit.score for hit in searcher.search(searcher.embed(Query(texts=[CAPTIONS[2]])), 1)]
    image_embeds = embed_images(model, processor, pairs.images).embeds
    assert answer == pytest.approx(
        (image_embeds @ embed_texts(model, processor, [CAPTIONS[2]]).embeds.T).max().item(), abs=1e-4
    )


# ---- exports ----

ELSEWHERE = """
import sys
import torch
from PIL import Image
from transformers import AutoModel, CLIPProcessor, VisionTextDualEncoderProcessor
for folder in sys.argv[2:]:
    native = folder.endswith("native")
    model, info = AutoModel.from_pretrained(folder, trust_remote_code=not native, output_loading_info=True)
    assert not any(info.values()), info
    processor = (VisionTextDualEncoderProcessor if native else CLIPProcessor).from_pretrained(folder)
    image = Image.linear_gradient("L").convert("RGB").resize((50, 40))
    inputs = processor(text=["红色的圆", "白色的云"], images=[image], padding=True, return_tensors="pt")
    with torch.no_grad():
        outputs = model.eval()(**inputs)
    torch.save([outputs.text_embeds, outputs.image_embeds], folder + ".pt")
assert "component" not in sys.modules
"""
EXPORTED = [name for name in TOWERS if name != "siglip"]


@pytest.fixture(scope="module")
def saved(tower_path, bert_path, tmp_path_factory):
    """A folder with a checkpoint of each tower, and as `<name>-native` its VisionTextDualEncoderModel."""
    root = tmp_path_factory.mktemp("saved")
    for name in EXPORTED:
        model = BertCLIPModel.from_vision_text_pretrained(tower_path(name), bert_path)
        save_checkpoint(model, load_processor(tower_path(name), bert_path, max_length=24), str(root / name))
        export(str(root / name), "vision-text-dual-encoder", str(root / f"{name}-native"))
    return root


@pytest.mark.parametrize("transformers_path", EVERY_TRANSFORMERS)
def test_checkpoints_and_exports_load_without_this_repository(saved, transformers_path, tmp_path):
    names = [f"{name}{end}" for name in EXPORTED for end in ("", "-native")]
    command = [sys.executable, "-c", ELSEWHERE, "", *(str(saved / name) for name in names)]
    environment = {**ENVIRONMENT, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", **transformers_path}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    image = Image.linear_gradient("L").convert("RGB").resize((50, 40))
    for name in names:
        model, processor = load_checkpoint(str(saved / name.removesuffix("-native")))
        text_embeds, image_embeds = torch.load(saved / f"{name}.pt")
        expected = embed_texts(model, processor, ["红色的圆", "白色的云"]).embeds
        torch.testing.assert_close(text_embeds, expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(image_embeds, embed_images(model, processor, [image]).embeds, atol=1e-5, rtol=0)


ONNX_TOWERS = [name if name == "dinov2" else pytest.param(name, marks=pytest.mark.slow) for name in EXPORTED]


@pytest.mark.skipif(not HAS_ONNX, reason="requirements-export.txt is not installed")
@pytest.mark.parametrize("name", ONNX_TOWERS)
def test_the_onnx_graph_takes_the_size_of_the_images_not_that_of_the_positions(name, saved, tmp_path, images):
    model, processor = load_checkpoint(str(saved / name))
    export_graph(ImageGraph(model), pixel_inputs(processor), ["image_embeds"], str(tmp_path / "graph.onnx"))
    pixel_values = processor(images=images, return_tensors="np")["pixel_values"]
    found = open_graph(str(tmp_path / "graph.onnx")).run(None, {"pixel_values": pixel_values})[0]
    torch.testing.assert_close(
        torch.from_numpy(found), embed_images(model, processor, images).embeds, atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("name", ["siglip_tower", "dinov2", "vit"])
def test_a_tower_with_fewer_blocks_loads_again(name, saved, tmp_path):
    save_smaller(str(saved / name), str(tmp_path / "smaller"), image_layers=[1])
    before, after = (load_checkpoint(str(path))[0].vision_model for path in (saved / name, tmp_path / "smaller"))
    (block,) = tower_parts(after).blocks.values()
    expected = list(tower_parts(before).blocks.values())[1].state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in block.state_dict().items())


# ---- what is refused ----


def refused(match: str, path: str, bert_path: str, **options) -> None:
    with pytest.raises(ValueError, match=match) as error:
        BertCLIPModel.from_vision_text_pretrained(path, bert_path, **options)
        load_processor(path, bert_path)
    assert "\n" not in str(error.value)


@pytest.fixture
def edited(tower_path, tmp_path):
    """A copy of a tower with other settings in a file."""

    def edit(name: str, file: str, **settings) -> str:
        path = shutil.copytree(tower_path(name), tmp_path / name)
        content = json.loads((path / file).read_text())
        (path / file).write_text(json.dumps(content | settings))
        return str(path)

    return edit


def test_towers_without_a_pooled_output_are_refused(edited, bert_path, tmp_path):
    path = edited("siglip_tower", "config.json", vision_use_head=False)
    refused("vision_use_head False, which gives no pooled output", path, bert_path)
    path = str(tmp_path / "without pooler")
    with quiet_transformers():
        transformers.ViTModel(transformers.ViTConfig(**WITH_MLP), add_pooling_layer=False).save_pretrained(path)
    refused("is not an image tower: 2 of its weights are missing .*pooler.dense.bias is missing", path, bert_path)


def test_a_tower_of_any_image_size_is_refused_with_the_kind_that_works(edited, bert_path):
    refused(
        "its model_type is siglip2. .*SigLIP 2 works", edited("siglip", "config.json", model_type="siglip2"), bert_path
    )


def test_new_image_vectors_cannot_stay_the_same(tower_path, bert_path):
    refused(
        "image vectors can stay the same .* model_type is dinov2",
        tower_path("dinov2"),
        bert_path,
        image_use=IMAGE_HALF,
    )


def test_an_image_processor_of_another_kind_is_refused(edited, bert_path):
    path = edited("vit", "preprocessor_config.json", image_processor_type="ConvNextImageProcessor")
    refused("makes pixel values with ConvNextImageProcessor; expected CLIPImageProcessor", path, bert_path)


def test_images_of_another_size_are_refused_unless_the_tower_takes_any(edited, bert_path):
    sizes = dict(size={"height": 48, "width": 48}, crop_size={"height": 48, "width": 48})
    for name in ("siglip", "dinov2"):
        path = edited(name, "preprocessor_config.json", **sizes)
        model = BertCLIPModel.from_vision_text_pretrained(path, bert_path)
        if name == "siglip":
            with pytest.raises(ValueError, match="makes images of 48 × 48 pixels, but its image tower takes 32 × 32"):
                load_processor_of(model.config, path, bert_path)
        else:
            processor = load_processor_of(model.config, path, bert_path)
            assert model.get_image_features(torch.zeros(1, 3, *image_size(processor.image_processor))).isfinite().all()


def test_a_chinese_clip_has_clips_image_tower(tower_path, bert_path, tmp_path):
    model = BertCLIPModel.from_vision_text_pretrained(tower_path("dinov2"), bert_path, text_pooling="cls")
    save_checkpoint(model, load_processor(tower_path("dinov2"), bert_path), str(tmp_path / "cls"))
    with pytest.raises(ValueError, match="has the image tower dinov2, but ChineseCLIPModel has CLIP's"):
        export(str(tmp_path / "cls"), "chinese-clip", str(tmp_path / "out"))
