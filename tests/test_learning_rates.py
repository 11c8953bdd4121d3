"""Learning rates by prefix of the weights' names and by depth."""

import logging
import re

import pytest
import torch

from component.argument import load_arguments
from component.model import BertCLIPModel
from component.training.learning_rates import rates_of, set_rates
from component.training.lora import add_lora


@pytest.fixture
def rates(train_args, bert_clip_path):
    """The rate of each trainable weight under a recipe, after `lock` was applied to the model."""

    def compute(lock=lambda model: model.lock_vision(), **keys) -> dict[str, float]:
        model = BertCLIPModel.from_pretrained(bert_clip_path)
        lock(model)
        return rates_of(model, load_arguments(train_args(learning_rate=1, **keys)))

    return compute


def only(rates: dict[str, float], *parts: str) -> set[float]:
    """The rates of the weights whose names contain one of `parts`."""
    return {rate for name, rate in rates.items() if any(part in name for part in parts)}


def test_the_longest_prefix_of_whole_components_decides(rates):
    found = rates(learning_rates={"text_model": 0.5, "text_model.encoder.layer.1": 0.25, "logit_scale": "2"})
    assert only(found, "text_model.encoder.layer.1.") == {0.25}
    assert only(found, "text_model.encoder.layer.0.", "text_model.embeddings", "text_model.pooler") == {0.5}
    assert found["logit_scale"] == 2 and only(found, "_projection") == {1}


def test_layers_farther_from_the_output_of_their_tower_learn_less(rates):
    found = rates(lambda model: None, layer_decay=0.5, learning_rates={"vision_model": 4})
    assert only(found, "_projection", "logit_scale", "pooler") == {1} and only(found, "post_layernorm") == {4}
    assert only(found, "text_model.encoder.layer.1.") == {0.5} and only(found, "vision_model.encoder.layers.1.") == {2}
    assert only(found, "text_model.encoder.layer.0.") == {0.25} and only(found, "encoder.layers.0.") == {1}
    assert only(found, "text_model.embeddings") == {0.125} and only(found, "vision_model.emb", "pre_lay") == {0.5}


def test_each_tower_can_have_its_own_decay(rates):
    found = rates(lambda model: None, layer_decay={"text_model": 0.5})
    assert only(found, "text_model.encoder.layer.1.") == {0.5} and only(found, "vision_model") == {1}


def test_lora_matrices_have_the_rate_of_their_layer(rates):
    def with_lora(model):
        model.lock_vision()
        add_lora(model, 2, None, 0, None)

    found = rates(with_lora, lora_rank=2, layer_decay=0.5, learning_rates={"text_model": 4})
    assert only(found, "layer.1.attention.self.query.lora_A") == {2} and only(found, "layer.0.") == {1}
    with pytest.raises(ValueError, match="`learning_rates`: all .* with text_model.embeddings are locked"):
        rates(with_lora, lora_rank=2, learning_rates={"text_model.embeddings": 1})
    with pytest.raises(ValueError, match="begin with text_model.encoder.layer.0.output.dense.weight are locked"):
        rates(with_lora, lora_rank=2, learning_rates={"text_model.encoder.layer.0.output.dense.weight": 1})


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"learning_rates": {"text": 1}}, "`learning_rates`: no .* with text; the model has .*"),
        (
            {"learning_rates": {"logit_scale": 1, "text_model.encoder.layer.9": 1}},
            "begins with .*layer.9; the model has",
        ),
        ({"learning_rates": {"": 1}}, "no weight begins with ; the model has"),
        (
            {"learning_rates": {"vision_model": 1}},
            "`learning_rates`: all .* with vision_model are locked",
        ),
        ({"learning_rates": {"logit_bias": 1}}, "no weight begins with logit_bias"),
        ({"layer_decay": {"vision_model": 0.5}}, "`layer_decay`: all weights that begin with vision_model are locked"),
    ],
)
def test_a_rate_that_matches_no_trainable_weight_is_refused(rates, keys, message):
    with pytest.raises(ValueError, match=message) as error:
        rates(**keys)
    assert "\n" not in str(error.value)


def test_the_error_lists_the_existing_prefixes(rates):
    with pytest.raises(ValueError) as error:
        rates(learning_rates={"text": 1})
    listed = re.search("the model has (.*)\\.$", str(error.value))[1].split(", ")
    assert listed == [
        *("logit_scale", "text_model.embeddings", "text_model.encoder.layer.<n>", "text_model.pooler"),
        *("vision_model.embeddings", "vision_model.pre_layrnorm", "vision_model.encoder.layers.<n>"),
        *("vision_model.post_layernorm", "text_projection", "visual_projection"),
    ]


def test_the_optimizer_moves_each_weight_at_its_rate(train_args, bert_clip_path, caplog):
    model = BertCLIPModel.from_pretrained(bert_clip_path)
    model.lock_vision()
    args = load_arguments(train_args(learning_rate=0.5, learning_rates={"text_projection": 2, "text_model": 0.25}))
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    optimizer = torch.optim.SGD([{"params": list(trained.values()), "weight_decay": 0}], lr=9)
    with caplog.at_level(logging.INFO):
        set_rates(optimizer, model, args)
    assert optimizer.param_groups[0]["lr"] == 0.5  # the Trainer logs this one
    before = {name: parameter.detach().clone() for name, parameter in trained.items()}
    sum(parameter.sum() for parameter in trained.values()).backward()
    optimizer.step()
    for name, parameter in trained.items():
        assert (before[name] - parameter).mean().item() == pytest.approx(rates_of(model, args)[name], abs=1e-4), name
    assert "use each): 0.25 (39), 0.5 (2), 2 (1)" in caplog.text
