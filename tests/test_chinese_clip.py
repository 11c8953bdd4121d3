"""BertCLIP with the weights of a ChineseCLIPModel, compared with that model."""

import json
import os

import pytest
import torch
import torch.nn.functional as F
from conftest import CAPTIONS, ROOT, build_trainer
from PIL import Image
from transformers import (
    BertModel,
    BertTokenizerFast,
    ChineseCLIPModel,
    ChineseCLIPVisionModel,
    CLIPProcessor,
    CLIPVisionModel,
)
from transformers.models.chinese_clip.image_processing_pil_chinese_clip import ChineseCLIPImageProcessorPil

from component.argument import load_arguments
from component.checkpoint import load_checkpoint
from component.configuration import BertCLIPConfig
from component.embedding import embed_images, embed_texts
from component.export.formats import export
from component.image.transform import ImageTransform
from component.model import BertCLIPModel, BertCLIPTextModel
from component.processor import load_processor, save_processor
from component.trainer import CLIPTrainer
from component.training.build import load_model


@pytest.fixture
def peer(chinese_clip_path) -> ChineseCLIPModel:
    return ChineseCLIPModel.from_pretrained(chinese_clip_path).eval()


@pytest.fixture
def model(chinese_clip_path) -> BertCLIPModel:
    return BertCLIPModel.from_pretrained(chinese_clip_path).eval()


def batch(texts: int, tokens: int, height: int = 32, width: int = 32) -> dict:
    generator = torch.Generator().manual_seed(texts * tokens)
    lengths = torch.randint(1, tokens + 1, (texts, 1), generator=generator)
    return {
        "input_ids": torch.randint(5, 30, (texts, tokens), generator=generator),
        "attention_mask": (torch.arange(tokens) < lengths).long(),
        "pixel_values": torch.randn(texts, 3, height, width, generator=generator),
    }


@pytest.mark.parametrize("shape", [(1, 1), (3, 9), (5, 24), (2, 7, 48, 64), (4, 2, 64, 32)])
def test_embeddings_logits_and_loss_equal_chinese_clips(model, peer, shape):
    inputs = {**batch(*shape), "return_loss": True, "interpolate_pos_encoding": len(shape) > 2}
    ours, theirs = model(**inputs), peer(**inputs)
    for key in ("loss", "text_embeds", "image_embeds", "logits_per_image", "logits_per_text"):
        torch.testing.assert_close(ours[key], theirs[key], atol=1e-6, rtol=1e-6)


def test_it_has_chinese_clips_weights_key_for_key_and_loads_silently(chinese_clip_path, peer, capfd):
    model, report = BertCLIPModel.from_pretrained(chinese_clip_path, output_loading_info=True)
    assert not any(report.values()) and "[transformers]" not in capfd.readouterr().err
    assert (model.config.model_type, model.config.text_pooling) == ("clip", "cls")
    weights = peer.state_dict()
    assert {key: tuple(value.shape) for key, value in model.state_dict().items()} == {
        key: tuple(value.shape) for key, value in weights.items()
    }


def test_a_pooler_in_an_old_folder_is_ignored(model, peer, tmp_path):
    extra = {
        "text_model.pooler.dense.weight": torch.ones(32, 32),
        "text_model.embeddings.position_ids": torch.arange(24),
    }
    model.save_pretrained(tmp_path, state_dict={**model.state_dict(), **extra})
    for model_class in (BertCLIPModel, BertCLIPTextModel):
        loaded, report = model_class.from_pretrained(tmp_path, output_loading_info=True)
        assert not any(report.values()) and loaded.config.text_pooling == "cls"


@pytest.mark.parametrize("recompute", [False, True])
def test_groups_have_the_embeddings_of_the_whole_batch_and_recomputed_ones_keep_no_activations(model, recompute):
    inputs = batch(3, 9)
    inputs["attention_mask"] = torch.ones_like(inputs["attention_mask"])
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x, lambda x: x):
        grouped = model(**inputs, text_groups=[(1, 9), (2, 9)], recompute=recompute)
    for key in ("text_embeds", "image_embeds"):
        torch.testing.assert_close(grouped[key], model(**inputs)[key], atol=1e-6, rtol=1e-6)
    assert (sum(sizes) < 10_000) == recompute


def test_the_text_tower_alone_gives_the_same_features(chinese_clip_path, model, peer, tmp_path):
    inputs = {key: batch(3, 9)[key] for key in ("input_ids", "attention_mask")}
    expected = peer.text_model(**inputs).last_hidden_state[:, 0]
    tower = BertCLIPTextModel.from_pretrained(chinese_clip_path).eval()
    tower.save_pretrained(tmp_path / "text")
    model.save_pretrained(tmp_path / "whole")
    for path in (tmp_path / "text", tmp_path / "whole"):
        again = BertCLIPTextModel.from_pretrained(path).eval()
        assert not any("pooler" in key for key in again.state_dict())
        torch.testing.assert_close(again(**inputs).pooler_output, expected, atol=1e-6, rtol=1e-6)


def test_a_checkpoint_loads_with_every_class_of_the_contract(chinese_clip_path, model, peer, tmp_path):
    path = str(tmp_path)
    model.save_pretrained(path)
    processor = load_processor(chinese_clip_path, max_length=24)
    save_processor(processor, path)
    with open(os.path.join(path, "config.json")) as file:
        config = json.load(file)
    assert (config["model_type"], config["text_pooling"]) == ("clip", "cls")
    assert (config["text_config"]["model_type"], config["vision_config"]["model_type"]) == (
        "bert",
        "clip_vision_model",
    )

    image = Image.effect_noise((50, 40), 50).convert("RGB")
    inputs = CLIPProcessor.from_pretrained(path)(text=CAPTIONS, images=image, return_tensors="pt", padding=True)
    again, _ = load_checkpoint(path)
    for key, value in peer(**inputs).items():
        if key.endswith("embeds"):
            torch.testing.assert_close(again(**inputs)[key], value, atol=1e-6, rtol=1e-6)
    pixel_values = inputs["pixel_values"]
    torch.testing.assert_close(
        CLIPVisionModel.from_pretrained(path).eval()(pixel_values).pooler_output,
        peer.vision_model(pixel_values).pooler_output,
        atol=1e-6,
        rtol=1e-6,
    )
    assert BertTokenizerFast.from_pretrained(path)(CAPTIONS)["input_ids"] == processor.tokenizer(CAPTIONS)["input_ids"]


@pytest.mark.parametrize("size", [(50, 40), (20, 90), (32, 32)])
def test_images_are_resized_to_a_square_as_chinese_clip_does(chinese_clip_path, tmp_path, size):
    image = Image.effect_noise(size, 50).convert("RGB")
    image.save(tmp_path / "a.png")
    expected = ChineseCLIPImageProcessorPil.from_pretrained(chinese_clip_path)(image, return_tensors="pt").pixel_values
    processor = load_processor(chinese_clip_path).image_processor
    transform = ImageTransform(processor)
    assert expected.shape == (1, 3, 32, 32)
    assert torch.equal(processor(image, return_tensors="pt").pixel_values, expected)
    pixels = transform.read(str(tmp_path / "a.png"))
    assert torch.equal(transform.pixel_values(torch.tensor(pixels)[None]), expected)
    piece = ImageTransform(processor, min_crop_area=0.5)
    assert piece.read(str(tmp_path / "a.png")).shape == pixels.shape


@pytest.fixture
def trainer(train_args, chinese_clip_path):
    """A CLIPTrainer as train_clip.py builds it, from the Chinese-CLIP."""

    def build(**keys) -> CLIPTrainer:
        keys = {"clip_pretrain_path": chinese_clip_path, "load_from_bert_clip": True, "report_to": "none", **keys}
        args = load_arguments(train_args(save_strategy="no", bert_pretrain_path=None, **keys))
        return build_trainer(args)

    return build


def losses(trainer: CLIPTrainer) -> list[float]:
    for module in trainer.model.modules():  # dropout depends on the order of the calls
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def test_ten_steps_with_everything_unlocked_equal_a_plain_loop_over_chinese_clip(trainer, peer):
    keys = dict(freeze_vision=False, lr_scheduler_type="constant", learning_rate=3e-4, max_grad_norm=1e9)
    built = trainer(per_device_train_batch_size=4, train_sampling_strategy="sequential", max_steps=10, **keys)
    halves = [built.train_dataset.__getitems__(range(first, first + 4)) for first in (0, 4)]
    batches = [built._prepare_inputs(built.data_collator(half))["model_inputs"] for half in halves]
    optimizer = torch.optim.AdamW(peer.parameters(), lr=3e-4, weight_decay=0)
    expected = []
    for step in range(10):
        inputs = {key: batches[step % 2][key] for key in ("input_ids", "attention_mask", "pixel_values")}
        loss = peer(**inputs, return_loss=True).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        expected.append(loss.item())
    assert expected[-1] < 0.9 * expected[0]
    assert losses(built) == pytest.approx(expected, abs=2e-5)


@pytest.mark.parametrize(
    "keys", [{"contrastive_chunk_size": 3}, {"image_feature_cache": "off"}, {"loss_type": "siglip"}]
)
def test_locked_tuning_caches_and_chunks_work_as_with_any_model(trainer, keys, peer):
    keys = {"per_device_train_batch_size": 8, "max_steps": 3, "learning_rate": 1e-3, **keys}
    plain = losses(trainer(**{**keys, "contrastive_chunk_size": None, "image_feature_cache": "auto"}))
    built = trainer(**keys)
    assert losses(built) == pytest.approx(plain, abs=1e-4) and len(set(plain)) == 3
    tower = peer.vision_model.state_dict()
    assert all(torch.equal(value, tower[key]) for key, value in built.model.vision_model.state_dict().items())


def test_texts_and_images_are_embedded_from_the_folder(chinese_clip_path, peer, data):
    model, processor = load_checkpoint(chinese_clip_path)
    paths = [str(data / "images" / f"{n}.png") for n in range(8)]
    inputs = processor(text=CAPTIONS, images=[Image.open(path) for path in paths], return_tensors="pt", padding=True)
    theirs = peer(**inputs)
    torch.testing.assert_close(
        embed_texts(model, processor, CAPTIONS).embeds, theirs.text_embeds, atol=1e-6, rtol=1e-6
    )
    torch.testing.assert_close(embed_images(model, processor, paths).embeds, theirs.image_embeds, atol=1e-6, rtol=1e-6)


def test_its_bert_is_saved_without_a_pooler_and_a_warning_says_how_to_load_it(
    chinese_clip_path, peer, tmp_path, caplog
):
    path = str(tmp_path / "bert")
    export(chinese_clip_path, "bert", path)
    assert "add_pooling_layer=False" in caplog.text and caplog.text.count("\n") == 1
    bert, report = BertModel.from_pretrained(path, add_pooling_layer=False, output_loading_info=True)
    assert not any(report.values())
    inputs = batch(3, 9)
    inputs.pop("pixel_values")
    torch.testing.assert_close(bert.eval()(**inputs)[0], peer.text_model(**inputs)[0], atol=1e-6, rtol=1e-6)


def test_text_pooling_chooses_for_a_new_pair_of_towers(train_args, bert_path, chinese_clip_path, caplog):
    args = load_arguments(train_args(text_pooling="cls", clip_pretrain_path=chinese_clip_path))
    model, _ = load_model(args)
    bert, inputs = BertModel.from_pretrained(bert_path).eval(), batch(3, 9)
    pixel_values = inputs.pop("pixel_values")
    expected = F.linear(bert(**inputs).last_hidden_state[:, 0], model.text_projection.weight)
    torch.testing.assert_close(model.eval().get_text_features(**inputs), expected, atol=1e-6, rtol=1e-6)
    assert not any("pooler" in key for key in model.state_dict()) and "new" not in caplog.text
    tower = ChineseCLIPVisionModel.from_pretrained(chinese_clip_path).eval()
    assert torch.equal(model.vision_model(pixel_values).pooler_output, tower(pixel_values).pooler_output)


def test_pooling_that_the_weights_were_not_trained_with_is_refused(train_args, chinese_clip_path, bert_clip_path):
    for path, pooling in ((chinese_clip_path, "pooler"), (bert_clip_path, "cls")):
        keys = dict(clip_pretrain_path=path, load_from_bert_clip=True, text_pooling=pooling)
        with pytest.raises(ValueError, match=f"`text_pooling` is {pooling}, but .* leave text_pooling out"):
            load_model(load_arguments(train_args(**keys)))
    with pytest.raises(ValueError, match="`text_pooling` is 'mean'; expected pooler or cls"):
        load_arguments(train_args(text_pooling="mean"))
    with pytest.raises(ValueError, match="`text_pooling` is 'mean'; expected pooler or cls"):
        BertCLIPConfig(text_pooling="mean")


def test_the_recipe_for_fine_tuning_runs_on_a_folder(train_args, chinese_clip_path, data):
    """Chinese-CLIP's own settings, run_scripts/muge_finetune_vit-b-16_rbt-base.sh there: 1,024 pairs on 8 GPUs."""
    with open(os.path.join(ROOT, "train_args", "finetune_chinese_clip.json")) as file:
        recipe = json.load(file)
    here = json.loads(open(train_args()).read())
    here = {key: here[key] for key in ("output_dir", "train_file", "image_path", "use_cpu", "disable_tqdm")}
    here |= {"clip_pretrain_path": chinese_clip_path, "dataloader_num_workers": 0, "fp16": False, "max_seq_length": 24}
    args = load_arguments(train_args(**{"bert_pretrain_path": None, **recipe, **here}))
    expected = dict(learning_rate=5e-5, warmup_steps=100, weight_decay=1e-3, num_train_epochs=3, adam_beta2=0.98)
    assert {key: getattr(args, key) for key in expected} == expected and recipe["max_seq_length"] == 52
    assert args.per_device_train_batch_size * args.world_size == 128 * 8
    built = build_trainer(args)
    before = {name: value.clone() for name, value in built.model.named_parameters()}
    built.train()
    moved = [name for name, value in built.model.named_parameters() if not torch.equal(value, before[name])]
    assert any(name.startswith("vision_model.") for name in moved) and "text_projection.weight" in moved
