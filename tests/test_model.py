"""BertCLIPModel compared with transformers' own classes and the same weights."""

import pytest
import torch
from transformers import BertModel, CLIPModel, CLIPVisionModel, VisionTextDualEncoderConfig, VisionTextDualEncoderModel

from component.configuration import BertCLIPConfig
from component.loss import clip_loss, siglip_loss
from component.model import BertCLIPModel, BertCLIPTextModel


@pytest.fixture
def model(bert_clip_path) -> BertCLIPModel:
    return BertCLIPModel.from_pretrained(bert_clip_path).eval()


@pytest.fixture
def batch() -> dict:
    generator = torch.Generator().manual_seed(0)
    attention_mask = torch.ones(3, 9, dtype=torch.long)
    attention_mask[1, 5:] = 0
    return {
        "input_ids": torch.randint(5, 30, (3, 9), generator=generator),
        "attention_mask": attention_mask,
        "pixel_values": torch.randn(3, 3, 32, 32, generator=generator),
    }


def test_same_embeddings_and_loss_as_vision_text_dual_encoder(model, batch):
    config = VisionTextDualEncoderConfig.from_vision_text_configs(
        model.config.vision_config, model.config.text_config, projection_dim=16
    )
    peer = VisionTextDualEncoderModel(config).eval()
    peer.text_model.load_state_dict(model.text_model.state_dict())
    peer.vision_model.load_state_dict(model.vision_model.state_dict())
    for name in ("text_projection", "visual_projection"):
        getattr(peer, name).load_state_dict(getattr(model, name).state_dict())
    peer.logit_scale.data.copy_(model.logit_scale.data)

    ours, theirs = model(**batch, return_loss=True), peer(**batch, return_loss=True)

    for key in ("loss", "text_embeds", "image_embeds", "logits_per_image", "logits_per_text"):
        torch.testing.assert_close(ours[key], theirs[key], atol=1e-5, rtol=1e-5)


def test_same_image_side_as_clip_model(clip_path, bert_path, batch):
    clip = CLIPModel.from_pretrained(clip_path).eval()
    model = BertCLIPModel.from_vision_text_pretrained(clip_path, bert_path).eval()

    theirs = clip.get_image_features(batch["pixel_values"]).pooler_output

    torch.testing.assert_close(model.get_image_features(batch["pixel_values"]), theirs, atol=1e-5, rtol=1e-5)
    assert torch.equal(model.logit_scale, clip.logit_scale)


def test_text_tower_is_the_bert_and_its_projection_starts_like_a_linear_layer(clip_path, bert_path, batch):
    model = BertCLIPModel.from_vision_text_pretrained(clip_path, bert_path).eval()
    bert = BertModel.from_pretrained(bert_path).eval()
    text = {key: batch[key] for key in ("input_ids", "attention_mask")}

    assert torch.equal(model.text_model(**text).pooler_output, bert(**text).pooler_output)
    bound = 32**-0.5
    assert bound * 0.9 < model.text_projection.weight.abs().max() <= bound
    assert abs(model.text_projection.weight.std() / (bound / 3**0.5) - 1) < 0.1


def test_text_projection_of_clip_is_kept_if_it_fits(tmp_path, clip_path, bert_path):
    config = CLIPModel.from_pretrained(clip_path).config
    config.text_config.hidden_size = 32
    clip = CLIPModel(config)
    clip.save_pretrained(tmp_path)
    # the image processor is not needed here
    model = BertCLIPModel.from_vision_text_pretrained(str(tmp_path), bert_path)
    assert torch.equal(model.text_projection.weight, clip.text_projection.weight)


def test_features_are_the_embeddings_before_normalisation(model, batch):
    outputs = model(**batch)
    text = model.get_text_features(batch["input_ids"], batch["attention_mask"])
    image = model.get_image_features(batch["pixel_values"])
    assert text.shape == image.shape == (3, 16)
    torch.testing.assert_close(text / text.norm(dim=-1, keepdim=True), outputs.text_embeds)
    torch.testing.assert_close(image / image.norm(dim=-1, keepdim=True), outputs.image_embeds)


def test_return_dict_false_gives_seven_values_with_the_loss_first(model, batch):
    outputs = model(**batch, return_loss=True)
    values = model(**batch, return_loss=True, return_dict=False)
    assert len(values) == 7
    for value, key in zip(values, ("loss", "logits_per_image", "logits_per_text", "text_embeds"), strict=False):
        assert torch.equal(value, outputs[key])


def test_token_type_ids_are_optional(model, batch):
    zeros = torch.zeros_like(batch["input_ids"])
    assert torch.equal(model(**batch).text_embeds, model(**batch, token_type_ids=zeros).text_embeds)


def test_hidden_states_and_attentions_of_both_towers(bert_clip_path, batch):
    model = BertCLIPModel.from_pretrained(bert_clip_path, attn_implementation="eager")
    outputs = model(**batch, output_hidden_states=True, output_attentions=True)
    for tower in (outputs.text_model_output, outputs.vision_model_output):
        assert len(tower.hidden_states) == 3 and len(tower.attentions) == 2


def test_sdpa_equals_eager(bert_clip_path, batch, model):
    eager = BertCLIPModel.from_pretrained(bert_clip_path, attn_implementation="eager").eval()
    assert model.text_model.config._attn_implementation == "sdpa"
    torch.testing.assert_close(model(**batch).logits_per_image, eager(**batch).logits_per_image, atol=1e-4, rtol=1e-4)


def test_dtype_and_device_map_reach_both_towers(bert_clip_path):
    model = BertCLIPModel.from_pretrained(bert_clip_path, dtype=torch.bfloat16, device_map="cpu")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_gradient_checkpointing_gives_the_same_gradients(model, batch):
    model.train()
    for module in model.modules():  # dropout would differ between the two runs
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if hasattr(module, "dropout_prob"):
            module.dropout_prob = 0.0

    def gradients():
        model.zero_grad()
        model(**batch, return_loss=True).loss.backward()
        return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}

    plain = gradients()
    model.gradient_checkpointing_enable()
    for name, gradient in gradients().items():
        torch.testing.assert_close(gradient, plain[name], atol=1e-6, rtol=1e-4)


@pytest.fixture
def groups(batch) -> dict:
    """The batch in groups of different lengths; the last group has one text."""
    order = [1, 0, 2]
    return {**{key: value[order] for key, value in batch.items()}, "text_groups": [(1, 5), (2, 9)]}


def test_groups_have_the_embeddings_of_the_whole_batch(model, batch, groups):
    whole, grouped = model(**batch), model(**groups)
    for key in ("text_embeds", "image_embeds"):
        torch.testing.assert_close(grouped[key], whole[key][[1, 0, 2]], atol=1e-5, rtol=1e-5)
    assert grouped.logit_scale == model.logit_scale.exp()


@pytest.mark.parametrize("locked", [False, True])
def test_recomputed_groups_have_the_same_gradients_with_dropout(model, groups, locked):
    model.train()
    if locked:
        model.lock_vision()

    def gradients(recompute):
        model.zero_grad()
        torch.manual_seed(0)
        outputs = model(**groups, recompute=recompute)
        loss = clip_loss(outputs.image_embeds, outputs.text_embeds, outputs.logit_scale)
        loss.backward()
        gradients = {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}
        return loss.item(), gradients, torch.get_rng_state()

    plain_loss, plain, state = gradients(False)
    loss, recomputed, state_after = gradients(True)
    assert loss == plain_loss and recomputed.keys() == plain.keys()
    assert torch.equal(state, state_after)
    for name, gradient in recomputed.items():
        torch.testing.assert_close(gradient, plain[name], atol=1e-6, rtol=1e-5)


def test_recomputing_keeps_no_activations_of_the_towers(model, groups):
    model.train()

    def kept(recompute):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: sizes.append(x.numel()) or x, lambda x: x):
            model(**groups, recompute=recompute)
        return sum(sizes)

    assert kept(True) < kept(False) / 10


def test_siglip_adds_a_bias_that_is_saved_and_clip_removes_it(model, batch, tmp_path):
    plain = model(**batch)
    model.set_loss("siglip")
    assert model.logit_bias == -10 and model.logit_scale.exp().item() == pytest.approx(10)
    with torch.no_grad():
        model.logit_bias.fill_(-5.0)
    model.save_pretrained(tmp_path)
    loaded, report = BertCLIPModel.from_pretrained(tmp_path, output_loading_info=True)
    loaded.eval().set_loss("siglip")
    assert not any(report.values()) and loaded.logit_bias == -5
    outputs = loaded(**batch, return_loss=True)
    torch.testing.assert_close(outputs.logits_per_text, 10 * plain.text_embeds @ plain.image_embeds.T - 5)
    wanted = siglip_loss(plain.image_embeds, plain.text_embeds, torch.tensor(10.0), torch.tensor(-5.0))
    torch.testing.assert_close(outputs.loss, wanted)
    BertCLIPTextModel.from_pretrained(tmp_path)

    loaded.set_loss("clip")
    assert "logit_bias" not in loaded.state_dict()
    assert torch.equal(loaded(**batch).logits_per_text, loaded(**batch).logits_per_image.T)


def test_every_parameter_gets_a_gradient_except_in_a_locked_tower(model, batch):
    model.train()
    model(**batch, return_loss=True).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())

    model.zero_grad()
    model.lock_vision()
    model.train()
    outputs = model(**batch, return_loss=True)
    outputs.loss.backward()
    assert not model.vision_model.training and model.text_model.training
    assert not outputs.vision_model_output.pooler_output.requires_grad
    assert all((p.grad is None) == name.startswith("vision_model.") for name, p in model.named_parameters())


@pytest.mark.parametrize("trainable_blocks", [1, 2])
def test_only_unlocked_blocks_get_gradients_and_leave_eval_mode(model, batch, trainable_blocks):
    model.lock_vision(trainable_blocks)
    model.train()
    model(**batch, return_loss=True).loss.backward()
    tower = model.vision_model
    unlocked = [*tower.encoder.layers[-trainable_blocks:], tower.post_layernorm]
    locked = [tower.embeddings, tower.pre_layrnorm, *tower.encoder.layers[:-trainable_blocks]]
    assert all(part.training and all(p.grad is not None for p in part.parameters()) for part in unlocked)
    assert all(not part.training and all(p.grad is None for p in part.parameters()) for part in locked)


def test_more_blocks_than_the_tower_has_are_refused(model):
    for blocks in (3, -1):
        with pytest.raises(ValueError, match="the vision tower has 2"):
            model.lock_vision(blocks)


def test_unequal_numbers_have_logits_but_no_loss(model, batch):
    batch["pixel_values"] = batch["pixel_values"][:1]
    assert model(**batch).logits_per_image.shape == (1, 3)
    with pytest.raises(ValueError, match="3 texts and 1 images"):
        model(**batch, return_loss=True)


def test_one_side_alone_is_a_clear_error(model, batch):
    with pytest.raises(ValueError, match="get_text_features"):
        model(input_ids=batch["input_ids"])


def test_text_longer_than_the_positions_is_cut(bert_clip_path, model, batch):
    long = torch.randint(5, 30, (2, 40))
    tower = BertCLIPTextModel.from_pretrained(bert_clip_path).eval()
    assert torch.equal(model.get_text_features(long), model.get_text_features(long[:, :24]))
    assert torch.equal(
        tower(long, attention_mask=torch.ones_like(long)).pooler_output, tower(long[:, :24]).pooler_output
    )


def test_text_tower_alone(bert_clip_path, model, batch, tmp_path):
    tower = BertCLIPTextModel.from_pretrained(bert_clip_path).eval()
    text = {key: batch[key] for key in ("input_ids", "attention_mask")}
    assert torch.equal(tower(**text).pooler_output, model(**batch).text_model_output.pooler_output)

    tower.save_pretrained(tmp_path)
    again = BertCLIPTextModel.from_pretrained(tmp_path).eval()
    assert torch.equal(again(**text).pooler_output, tower(**text).pooler_output)
    embeddings = torch.nn.Embedding(50, 32)
    tower.set_input_embeddings(embeddings)
    assert tower.get_input_embeddings() is embeddings is tower.text_model.embeddings.word_embeddings


def test_resized_embeddings_reach_the_text_tower(model):
    model.resize_token_embeddings(60)
    assert model.get_input_embeddings() is model.text_model.embeddings.word_embeddings
    model.set_input_embeddings(torch.nn.Embedding(7, 32))
    assert model.text_model.embeddings.word_embeddings.num_embeddings == 7


def test_vision_tower_alone(bert_clip_path, model, batch):
    tower = CLIPVisionModel.from_pretrained(bert_clip_path).eval()
    ours, theirs = model(**batch).vision_model_output, tower(batch["pixel_values"])
    assert torch.equal(ours.last_hidden_state, theirs.last_hidden_state)
    assert torch.equal(ours.pooler_output, theirs.pooler_output)


def test_saving_and_loading_show_no_progress_bars(model, tmp_path, capfd):
    capfd.readouterr()
    model.save_pretrained(tmp_path)
    BertCLIPModel.from_pretrained(tmp_path)
    assert capfd.readouterr() == ("", "")


def test_saving_and_loading_keeps_every_weight(model, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = BertCLIPModel.from_pretrained(tmp_path).state_dict()
    assert loaded.keys() == model.state_dict().keys()
    assert all(torch.equal(value, loaded[key]) for key, value in model.state_dict().items())


def test_config_dicts_of_old_files_have_priority():
    config = BertCLIPConfig(
        text_config={"hidden_size": 32, "num_attention_heads": 2},
        text_config_dict={"hidden_size": 64, "num_attention_heads": 2},
        vision_config={"hidden_size": 48, "num_attention_heads": 2},
        vision_config_dict=None,
    )
    assert config.text_config.hidden_size == 64
    assert config.vision_config.hidden_size == 48
    assert "text_config_dict" not in config.to_dict()
