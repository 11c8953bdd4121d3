"""Training with freeze_visual_projection: the gallery that was made before it stays valid."""

import shutil

import pytest
import torch
from conftest import run_python
from safetensors.torch import load_file

from component.argument import load_arguments
from component.checkpoint import load_checkpoint
from component.gallery.reader import VECTORS
from component.search.embed import Loading
from component.search.index import update
from component.search.open import gallery_to_write
from component.search.scan import Sources

pytest_plugins = ["galleries"]
FREEZE = {"freeze_visual_projection": True, "learning_rate": 1e-2, "weight_decay": 0.1}


def weights(folder) -> dict[str, torch.Tensor]:
    return load_file(folder / "checkpoint-final" / "model.safetensors")


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"lora_rank": 2},
        {"contrastive_chunk_size": 3, "loss_type": "siglip"},
        {"random_flip": True, "mask_duplicates": True, "learning_rates": {"logit_scale": 0.1}},
    ],
    ids=lambda keys: "-".join(keys) or "plain",
)
def test_a_gallery_made_before_the_training_is_the_one_made_after_it(
    trainer, index, folder, bert_clip_path, tmp_path, keys
):
    index()
    built = trainer(**FREEZE, **keys)
    built.train()
    built.save_final()
    final = str(tmp_path / "output" / "checkpoint-final")
    with gallery_to_write(str(tmp_path / "after"), final, "cpu") as opened:
        update(*opened, Sources([str(folder)]), Loading(5, 0))
    assert (tmp_path / "after" / VECTORS).read_bytes() == (tmp_path / "gallery" / VECTORS).read_bytes()
    before, after = load_checkpoint(bert_clip_path)[0], load_checkpoint(final)[0]
    for name in ("logit_scale", "text_projection.weight"):
        assert not torch.equal(before.state_dict()[name], after.state_dict()[name])
    done = run_python("search_image.py", "query", "--gallery", tmp_path / "gallery", "--model", final, "--text", "狗")
    assert done.returncode == 0 and "another text half (the weights of the text half)" in done.stderr


def test_a_resumed_run_and_one_of_two_processes_are_the_run(train_args, tmp_path, clip_path):
    outputs = [tmp_path / name for name in ("whole", "resumed", "two")]
    keys = dict(FREEZE, save_steps=1, max_steps=3, report_to="none", ddp_backend="gloo")
    whole, resumed, two = (dict(keys, output_dir=str(output)) for output in outputs)
    resumed["resume_from_checkpoint"] = str(outputs[0] / "checkpoint-2")
    two["per_device_train_batch_size"] = 2
    for arguments, processes in ((whole, 1), (resumed, 1), (two, 2)):
        done = run_python("train_clip.py", "--train_args_file", train_args(**arguments), processes=processes)
        assert done.returncode == 0, done.stderr
    found = [weights(output) for output in outputs]
    start = load_file(f"{clip_path}/model.safetensors")
    for name, value in found[0].items():
        assert torch.equal(found[1][name], value), name
        if name.startswith("vis"):
            assert torch.equal(found[2][name], value) and torch.equal(start[name], value), name
    assert not torch.equal(found[0]["text_projection.weight"], found[2]["text_projection.weight"].neg())


@pytest.mark.parametrize("freeze_vision", [False, "last_n_blocks:1"])
def test_an_image_tower_that_learns_is_refused(train_args, freeze_vision):
    with pytest.raises(ValueError, match="`freeze_visual_projection` is for .* freeze_vision (false|last_n_blocks:1)"):
        load_arguments(train_args(**FREEZE, freeze_vision=freeze_vision))


def test_a_projection_that_would_stay_random_is_refused(train_args, tmp_path, clip_path):
    tower = tmp_path / "tower"
    shutil.copytree(clip_path, tower)
    from transformers import CLIPVisionModel

    CLIPVisionModel.from_pretrained(clip_path).save_pretrained(tower)
    done = run_python("train_clip.py", "--train_args_file", train_args(**FREEZE, clip_pretrain_path=str(tower)))
    assert done.returncode == 2 and "visual_projection.weight is missing" in done.stderr.splitlines()[-1]
