"""Several gloo processes that share a batch train like one process with the whole batch."""

import json
import os
import shutil

import pytest
import torch
from conftest import CAPTIONS, ROOT, run_python, write_csv
from safetensors.torch import load_file
from transformers import BertModel

# One group of processes for all cases, because starting it takes most of the time.
TRAIN_ALL = f"""
import sys
sys.path.insert(0, {ROOT!r})
import train_clip
from component.training.interruption import leave_group

for args_file in sys.argv[1:]:
    sys.argv[1:] = ["--train_args_file", args_file]
    assert not train_clip.main()
leave_group()
"""


@pytest.fixture
def write_args(train_args, bert_path, tmp_path, data):
    """Write a JSON for one SGD step on the first `processes` × `batch` rows."""
    # Without dropout, which draws different numbers in each process.
    calm = str(tmp_path / "bert")
    bert = BertModel.from_pretrained(bert_path)
    bert.config.hidden_dropout_prob = bert.config.attention_probs_dropout_prob = 0.0
    bert.save_pretrained(calm)
    shutil.copy(os.path.join(bert_path, "vocab.txt"), calm)

    def write(name: str, processes: int, bad: list[int], **keys) -> str:
        filenames = ["none.png" if row in bad else f"{row}.png" for row in range(8)]
        filenames[7] = filenames[0]  # an image that two processes have
        args_file = train_args(
            output_dir=str(tmp_path / name),
            bert_pretrain_path=calm,
            train_file=str(
                write_csv(data / f"{name}.csv", zip(CAPTIONS, filenames, strict=True), ("text", "filename"))
            ),
            per_device_train_batch_size=8 // processes,
            train_sampling_strategy="sequential",
            optim="sgd",
            learning_rate=0.1,
            max_grad_norm=1e9,
            max_steps=1,
            save_strategy="no",
            ddp_backend="gloo" if processes > 1 else None,
            **keys,
        )
        return shutil.copy(args_file, tmp_path / f"{name}.json")

    return write


def trained(output) -> tuple[dict[str, torch.Tensor], float]:
    """The weights after the step, and its loss."""
    loss = json.loads((output / "trainer_state.json").read_text())["log_history"][0]["loss"]
    return load_file(output / "checkpoint-final" / "model.safetensors"), loss


@pytest.mark.parametrize(
    ("processes", "cases"),
    [
        (
            2,
            {
                "plain": dict(bad=[]),
                "unequal_in_chunks": dict(
                    bad=[1, 6, 7], image_feature_cache="off", contrastive_chunk_size=3, matryoshka_dims=[8, 2]
                ),
                "siglip": dict(bad=[], contrastive_chunk_size=3, loss_type="siglip", mask_duplicates=True),
            },
        ),
        (4, {"one_without_a_pair": dict(bad=[4, 5], image_feature_cache="off", mask_duplicates=True)}),
    ],
    ids=["two", "four"],
)
def test_gradients_are_those_of_the_whole_batch(write_args, tmp_path, processes, cases):
    for name, keys in cases.items():
        args_file = write_args(f"whole_{name}", 1, **{**keys, "contrastive_chunk_size": None})
        result = run_python("train_clip.py", "--train_args_file", args_file)
        assert result.returncode == 0, result.stderr
    (tmp_path / "train_all.py").write_text(TRAIN_ALL)
    args_files = [write_args(name, processes, **keys) for name, keys in cases.items()]
    result = run_python(tmp_path / "train_all.py", *args_files, processes=processes)
    assert result.returncode == 0, result.stderr

    for name in cases:
        whole, loss_of_whole = trained(tmp_path / f"whole_{name}")
        shared, loss_of_shared = trained(tmp_path / name)
        assert loss_of_shared == pytest.approx(loss_of_whole, abs=1e-5), name
        assert not torch.equal(whole["logit_scale"], torch.tensor(2.6592))
        for key, value in whole.items():
            torch.testing.assert_close(
                shared[key], value, atol=1e-5, rtol=0, msg=lambda text, key=key, name=name: f"{name}, {key}: {text}"
            )


def test_no_gloo_thread_outlives_its_group(tmp_path):
    """While Python shuts down, such a thread sometimes crashes or hangs the process."""
    script = tmp_path / "rank.py"
    script.write_text(
        f"""
import glob, sys
sys.path.insert(0, {ROOT!r})
import torch
from component.training.interruption import leave_group
from component.trainer import CLIPTrainer


def gloo_threads():
    return [name for name in map(open, glob.glob("/proc/self/task/*/comm")) if "gloo" in name.read()]


torch.distributed.init_process_group("gloo")
model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(2, 2))
model(torch.ones(1, 2)).sum().backward()
model.itself = [model]
del model
assert gloo_threads()
leave_group()
assert not gloo_threads()
""",
        encoding="utf-8",
    )
    result = run_python(script, processes=2)
    assert result.returncode == 0, result.stderr
