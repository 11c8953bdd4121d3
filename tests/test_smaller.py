"""A checkpoint with fewer layers than another, or a narrower text tower."""

import pytest
import torch
from transformers import CLIPVisionModel

import shrink_checkpoint
from component.checkpoint import load_checkpoint
from component.export.smaller import save_smaller


def test_the_layers_kept_are_those_asked_for_and_the_rest_is_the_same(bert_clip_path, tmp_path):
    save_smaller(bert_clip_path, str(tmp_path / "text"), text_layers=[1])
    save_smaller(bert_clip_path, str(tmp_path / "both"), text_layers=[0, 1], image_layers=[0])
    (model, _), (text, processor), (both, _) = map(
        load_checkpoint, (bert_clip_path, tmp_path / "text", tmp_path / "both")
    )
    inputs = processor(text=["一只小狗"], return_tensors="pt")
    pixels = torch.rand(1, 3, 32, 32)
    assert torch.equal(both.get_text_features(**inputs), model.get_text_features(**inputs))
    assert torch.equal(text.get_image_features(pixels), model.get_image_features(pixels))
    model.text_model.encoder.layer = model.text_model.encoder.layer[1:]
    model.vision_model.encoder.layers = model.vision_model.encoder.layers[:1]
    assert torch.equal(text.get_text_features(**inputs), model.get_text_features(**inputs))
    assert torch.equal(both.get_image_features(pixels), model.get_image_features(pixels))
    tower = CLIPVisionModel.from_pretrained(tmp_path / "both").eval()
    assert torch.equal(both.vision_model(pixels).pooler_output, tower(pixels).pooler_output)


def test_a_narrower_text_tower_keeps_the_main_directions_of_the_words(bert_clip_path, tmp_path):
    save_smaller(bert_clip_path, str(tmp_path / "narrow"), text_layers=[1], text_width=24)
    (model, _), (narrow, processor) = map(load_checkpoint, (bert_clip_path, tmp_path / "narrow"))
    words, fewer = (one.get_input_embeddings().weight for one in (model, narrow))
    left = torch.linalg.svdvals(words)[24:].square().sum()
    assert (words.square().sum() - fewer.square().sum()).item() == pytest.approx(left.item(), rel=1e-3)
    assert len(narrow.text_model.encoder.layer) == 1
    assert {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)} == {0.1}
    assert {module.p for module in narrow.modules() if isinstance(module, torch.nn.Dropout)} == {0.0}
    assert narrow.get_text_features(**processor(text=["一只小狗"], return_tensors="pt")).shape == (1, 16)
    pixels = torch.rand(1, 3, 32, 32)
    assert torch.allclose(narrow.get_image_features(pixels), model.get_image_features(pixels), atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--text_layers", "0", "2"], "layers 0, 2 of the text tower: expected rising numbers from 0 to 1."),
        (["--text_width", "32"], "a text tower of width 32: expected 1 to 31."),
        (["--image_layers", "1", "0"], "layers 1, 0 of the image tower: expected rising numbers from 0 to 1."),
    ],
)
def test_layers_that_are_not_there_are_refused(bert_clip_path, tmp_path, monkeypatch, options, message):
    output = tmp_path / "student"
    monkeypatch.setattr("sys.argv", ["x", "--model", bert_clip_path, "--output", str(output), *options])
    with pytest.raises(ValueError, match=message):
        shrink_checkpoint.main()
    assert not output.exists()
