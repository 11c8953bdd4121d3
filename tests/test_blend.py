"""blend_checkpoints.py and what it uses: blends of two checkpoints, and their evaluation."""

import json
import os
import shutil
import sys

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoModel

import blend_checkpoints
import train_clip
from component.argument import load_arguments
from component.blend import blend, load_ends
from component.checkpoint import load_checkpoint, load_model, read_ancestors
from component.evaluation.blend import MeasuredBlend, MeasuredBlends, measure_blends, num_items
from component.evaluation.retrieval import evaluate_retrieval
from component.evaluation.retrieval_data import read_retrieval_data
from component.ground.command import run_script
from component.model import BertCLIPModel
from component.processor import load_processor, save_processor


@pytest.fixture
def tune(train_args, bert_clip_path, tmp_path):
    """Fine-tune the BertCLIP for a few steps, with these keys of the recipe; returns checkpoint-final."""

    def tuned(name: str = "tuned", **keys) -> str:
        start = {"clip_pretrain_path": bert_clip_path, "bert_pretrain_path": None, "load_from_bert_clip": True}
        output = str(tmp_path / name)
        keys = {**start, "output_dir": output, "save_strategy": "no", "report_to": "none", "max_steps": 4, **keys}
        train_clip.train(load_arguments(train_args(**keys)))
        return os.path.join(output, "checkpoint-final")

    return tuned


@pytest.fixture
def edited(bert_clip_path, tmp_path):
    """A copy of the BertCLIP, changed by a function of the model, without a record of its ancestors."""

    def write(change=lambda model: None, name: str = "edited", path: str = bert_clip_path, dtype=None) -> str:
        model = load_model(path)
        change(model)
        folder = str(tmp_path / name)
        model.to(dtype or model.dtype).save_pretrained(folder)
        save_processor(load_processor(path, max_length=24), folder)
        return folder

    return write


@pytest.fixture
def script(monkeypatch, bert_clip_path, data, tmp_path, capsys):
    """Run blend_checkpoints.py in this process: exit status, stdout and stderr. Later options have priority."""

    def start(after: str, *options: str) -> tuple[int, str, str]:
        command = ["blend_checkpoints.py", "--before", bert_clip_path, "--after", after]
        command += ["--test_file", str(data / "train.csv"), "--image_path", str(data / "images")]
        monkeypatch.setattr(sys, "argv", [*command, "--output", str(tmp_path / "blend"), *options])
        capsys.readouterr()
        try:
            status = run_script(blend_checkpoints.main)
        except SystemExit as end:  # argparse
            status = end.code
        return status, *capsys.readouterr()

    return start


@torch.no_grad()
def move(model, share: float = 0.1):
    """Change every weight a little, as tuning does."""
    torch.manual_seed(5)
    for parameter in model.parameters():
        parameter.add_(share * parameter.abs().mean() * torch.randn_like(parameter))


def bits(weights: dict) -> dict[str, bytes]:
    return {name: value.numpy().tobytes() for name, value in weights.items()}


# ---- weights ----


def test_the_ends_are_returned_bit_for_bit_and_the_middle_is_their_mean():
    """Also -0 and numbers whose difference overflows, which arithmetic alone would change."""
    before = {"w": torch.tensor([-0.0, 3e38, 0.1, 1.0]), "n": torch.tensor(7)}
    after = {"w": torch.tensor([0.0, -3e38, 0.3, -0.0]), "n": torch.tensor(7)}
    assert bits(blend(before, after, 0)) == bits(before) and bits(blend(before, after, 1)) == bits(after)
    assert torch.allclose(blend(before, after, 0.25)["w"][2:], torch.tensor([0.15, 0.75]))


def test_half_precision_is_blended_in_fp32():
    before, after = {"w": torch.tensor([1.0], dtype=torch.bfloat16)}, {"w": torch.tensor([2.0], dtype=torch.bfloat16)}
    found = blend(before, after, 0.3)["w"]
    assert found.dtype == torch.bfloat16 and found.item() == torch.tensor(1.3).bfloat16().item()


@pytest.mark.parametrize("alpha", [-0.1, 1.1, float("nan"), float("inf")])
def test_an_alpha_outside_is_an_error(alpha):
    with pytest.raises(ValueError, match="expected a number from 0"):
        blend({"w": torch.ones(1)}, {"w": torch.ones(1)}, alpha)


@pytest.mark.parametrize(
    "after, message",
    [
        ({}, "w is .* before, is missing after"),
        ({"w": torch.ones(2), "v": torch.ones(1)}, "v is missing before"),
        ({"w": torch.ones(3)}, r"w is \(2,\) in float32 before, is \(3,\) in float32 after"),
        ({"w": torch.ones(2).half()}, "in float32 before, .* in float16 after"),
    ],
)
def test_weights_of_another_layout_are_an_error(after, message):
    with pytest.raises(ValueError, match=message):
        blend({"w": torch.ones(2)}, after, 0.5)


# ---- what can be blended ----


def test_training_records_what_it_started_from_over_several_stages_and_with_lora(tune, train_args, bert_clip_path):
    first = tune("first")
    second = tune("second", clip_pretrain_path=first, lora_rank=4)
    assert load_ends(bert_clip_path, first).model.ancestors == load_ends(bert_clip_path, second).model.ancestors[:1]
    assert len(load_ends(first, second).model.ancestors) == 2
    with pytest.raises(ValueError, match="swap the two"):
        load_ends(second, bert_clip_path)


def test_what_was_trained_from_a_clip_and_a_bert_is_refused(tune, train_args, clip_path, bert_path):
    """Although it starts from the same towers and seed as the other, and is close to it."""
    pair = {"load_from_bert_clip": False, "clip_pretrain_path": clip_path, "bert_pretrain_path": bert_path}
    before, after = tune("a", **pair), tune("b", **pair, learning_rate=1e-5)
    with pytest.raises(ValueError, match="from a CLIP and a BERT, not from a BertCLIP"):
        load_ends(before, after)


def test_siblings_are_refused(tune):
    before, after = tune("a"), tune("b", seed=7)
    with pytest.raises(ValueError, match="was not trained from .*, but from other weights"):
        load_ends(before, after)


def test_without_a_record_close_weights_are_accepted_with_a_warning(edited, bert_clip_path, caplog):
    ends = load_ends(bert_clip_path, edited(move))
    assert "has no record of what it was trained from" in caplog.text
    assert "the lowest cosine of a matrix is 0.99" in caplog.text
    assert 0.01 < ends.distance < 0.2


def test_without_a_record_one_new_random_matrix_is_refused(edited, bert_clip_path):
    def draw(model):
        move(model)
        torch.nn.init.kaiming_uniform_(model.text_projection.weight)

    with pytest.raises(ValueError, match="the cosine of text_projection.weight before and after is"):
        load_ends(bert_clip_path, edited(draw))


def test_different_models_are_refused(edited, bert_clip_path, chinese_clip_path):
    def set_nan(model):
        model.text_projection.weight.data[0, 0] = float("nan")

    def set_heads(model):
        move(model)
        model.config.text_config.num_attention_heads = 4

    for after, message in (
        (edited(lambda model: model.set_loss("siglip"), "siglip"), "logit_bias is missing before"),
        (edited(set_heads, "heads"), "different models: num_attention_heads of the text tower was 2, is 4"),
        (edited(set_nan, "nan"), r"nan has NaN or infinite weights \(the first: text_projection.weight\)"),
        (edited(name="same"), "have the same weights"),
        (chinese_clip_path, "different layouts"),
    ):
        with pytest.raises(ValueError, match=message):
            load_ends(bert_clip_path, after)


def test_an_fp16_checkpoint_and_what_was_tuned_from_it_in_fp32_are_blended_in_fp32(edited, tune):
    before = edited(name="half", dtype=torch.float16)
    ends = load_ends(before, tune(clip_pretrain_path=before))
    assert {value.dtype for value in blend(ends.before, ends.after, 0.5).values()} == {torch.float32}
    assert ends.model.ancestors


def test_another_tokenizer_or_image_processor_is_refused(edited, bert_clip_path):
    after = edited(move)
    with open(os.path.join(after, "preprocessor_config.json"), encoding="utf-8") as file:
        settings = json.load(file)
    for name in ("preprocessor_config.json", "processor_config.json"):
        shutil.copy(os.path.join(bert_clip_path, name), os.path.join(after, name))
    tokens = json.loads(open(os.path.join(after, "tokenizer.json"), encoding="utf-8").read())
    vocabulary = tokens["model"]["vocab"]
    vocabulary["红"], vocabulary["蓝"] = vocabulary["蓝"], vocabulary["红"]
    with open(os.path.join(after, "tokenizer.json"), "w", encoding="utf-8") as file:
        json.dump(tokens, file)
    with pytest.raises(ValueError, match="different models: the tokenizer"):
        load_ends(bert_clip_path, after)

    after = edited(move, "other")
    os.unlink(os.path.join(after, "processor_config.json"))
    with open(os.path.join(after, "preprocessor_config.json"), "w", encoding="utf-8") as file:
        json.dump({**settings, "image_mean": [0.5, 0.5, 0.5]}, file)
    with pytest.raises(ValueError, match="image_mean of the image processor was"):
        load_ends(bert_clip_path, after)


# ---- evaluation ----


@pytest.mark.parametrize("freeze_vision, passes", [(True, 1), ("last_n_blocks:1", 3)])
def test_blends_are_measured_like_checkpoints_and_a_locked_tower_encodes_an_image_once(
    tune, bert_clip_path, data, freeze_vision, passes
):
    ends = load_ends(bert_clip_path, tune(freeze_vision=freeze_vision, image_feature_cache="off"))
    own = read_retrieval_data(str(data / "train.csv"), str(data / "images"))
    (data / "kept.csv").write_text(
        "text,filename\n绿色的树,3.png\n红色的圆,gone.png\n白色的云,0.png\n", encoding="utf-8"
    )
    kept = read_retrieval_data(str(data / "kept.csv"), str(data / "images"))
    seen, done = [], []
    ends.model.vision_model.register_forward_hook(lambda *call: seen.append(len(call[2].pooler_output)))
    alphas = [0.0, 0.5, 1.0]
    found = measure_blends(ends, own, kept, alphas, batch_size=3, on_batch=done.append)
    assert sum(seen) == passes * (8 + 2) and sum(done) == num_items(ends, own, kept, alphas)
    assert list(found.bad_images) == ["gone.png"]
    for one in found.blends:
        for data_set, metrics in ((own, one.own), (kept, one.kept)):
            assert metrics == evaluate_retrieval(ends.at(one.alpha), ends.processor, data_set, batch_size=3).metrics


def test_the_best_has_the_highest_mean_recall_and_among_equals_the_lowest_alpha():
    def recalls(*rows):
        blends = [MeasuredBlend(alpha, *({"mean_recall": r} if r else None for r in row)) for alpha, *row in rows]
        return MeasuredBlends(blends, {})

    assert recalls((0.0, 0.2, 0.9), (0.4, 0.6, 0.8), (0.8, 0.7, 0.7), (1.0, 0.9, 0.3)).best.alpha == 0.4
    assert recalls((0.0, 0.2, None), (0.5, 0.7, None), (1.0, 0.9, None)).best.alpha == 1


# ---- the script ----


def test_the_best_blend_is_a_complete_checkpoint_with_its_measurements(tune, script, data, tmp_path):
    after = tune(model_license="apache-2.0", test_file=str(data / "train.csv"))
    (data / "kept.csv").write_text("text,filename\n绿色的树,3.png\n白色的云,0.png\n", encoding="utf-8")
    keep = ["--keep_file", str(data / "kept.csv"), "--keep_path", str(data / "images")]
    status, out, err = script(after, *keep, "--alphas", "0:1:0.25")
    assert (status, err) == (0, "") and out.count("\n| ") == 1 + 5 and out.count("(best)") == 1
    output = tmp_path / "blend"
    found = json.loads((output / "blend.json").read_text())
    assert [one["alpha"] for one in found["blends"]] == [0, 0.25, 0.5, 0.75, 1]
    card = ModelCard.load(str(output / "README.md"))
    assert card.data.license == "apache-2.0" and card.data.eval_results[0].dataset_name == "train.csv"
    assert out.split("\n\n")[0].strip().removesuffix(f"\nSaved to {output}") in card.text and "kept.csv" in card.text
    assert str(tmp_path) not in card.content and (output / "blend.png").read_bytes().startswith(b"\x89PNG")
    model, processor = load_checkpoint(str(output))
    measured = next(one for one in found["blends"] if one["alpha"] == found["best"])
    data_set = read_retrieval_data(str(data / "train.csv"), str(data / "images"))
    assert evaluate_retrieval(model, processor, data_set).metrics == pytest.approx(measured["own"])
    alone = AutoModel.from_pretrained(output, trust_remote_code=True)
    assert torch.equal(alone.text_projection.weight, model.text_projection.weight)
    assert read_ancestors(str(output)) == read_ancestors(after)


@pytest.mark.parametrize("alpha", [0, 1])
def test_the_ends_are_saved_bit_for_bit(tune, script, bert_clip_path, tmp_path, alpha):
    after = tune()
    assert script(after, "--alphas", str(alpha))[0] == 0
    end = BertCLIPModel.from_pretrained((bert_clip_path, after)[alpha]).state_dict()
    assert bits(BertCLIPModel.from_pretrained(tmp_path / "blend").state_dict()) == bits(end)


def test_without_matplotlib_only_the_curves_are_missing(edited, script, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    status, _, err = script(edited(move), "--alphas", "0.5")
    assert status == 0 and "The curves are not drawn: a figure needs matplotlib: pip install matplotlib" in err
    assert (tmp_path / "blend/README.md").exists() and not (tmp_path / "blend/blend.png").exists()


def test_an_image_that_cannot_be_read_is_named_and_gives_status_1(edited, script, data):
    (data / "images" / "3.png").write_bytes(b"not an image")
    status, out, err = script(edited(move), "--alphas", "0,1")
    assert status == 1 and "left out: 3.png: " in err and "Saved to" in out


@pytest.mark.parametrize(
    "alphas",
    [
        *("", ",", ":", "0:1", "0:1:0.1:1", "a", "0,b", "nan", "0,nan", "0:nan:0.1", "inf", "0:1:inf", "0:1:nan"),
        *("-0.1", "1.1", "0:1.1:0.1", "-0.5:1:0.5", "1e999", "0:1:0", "0:1:-0.1", "0:1:1e-9", "0:1:1e-999999"),
        *("1:0:0.1", "1:0:-0.1", "0.5,0.2", "0.5,0.5", "0,0.5:1:0.1", "0:1:2", ",".join(["0"] * 2000)),
    ],
)
def test_invalid_alphas_are_refused_in_one_line(script, alphas):
    status, out, err = script("unused", f"--alphas={alphas}")
    assert (
        (status, out) == (2, "")
        and err.count("\n") == 1
        and "expected at most 1000 increasing numbers from 0 to 1" in err
    )


@pytest.mark.parametrize(
    "text, expected",
    [
        ("0:1:0.1", [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1]),
        ("0:1:0.3", [0, 0.3, 0.6, 0.9]),
        ("-0,0.25,1", [0, 0.25, 1]),
        ("0.6", [0.6]),
        ("0.5:0.5:0.1", [0.5]),
    ],
)
def test_alphas_are_a_range_or_a_list(text, expected):
    assert blend_checkpoints.alphas(text) == expected and str(blend_checkpoints.alphas(text)[0])[0] != "-"


def test_wrong_folders_are_refused_in_one_line_and_nothing_is_written(edited, script, tmp_path, bert_clip_path):
    after = edited(move)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    for options, message in (
        ([after, "--output", str(tmp_path / "full")], "full is not empty"),
        ([after, "--output", after], "is the model itself"),
        ([after, "--output", bert_clip_path], "is not empty"),
        ([str(tmp_path / "gone")], "gone is not a model folder"),
        ([after, "--test_file", "gone.csv"], "gone.csv"),
        ([after, "--keep_path", str(tmp_path)], "--keep_path is for --keep_file"),
        ([bert_clip_path], "have the same weights"),
    ):
        status, out, err = script(*options)
        assert status == 2 and not out and err.count("\n") == 1 and message in err, err
    assert os.listdir(tmp_path / "full") == ["notes.txt"] and not (tmp_path / "blend").exists()
