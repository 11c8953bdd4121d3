"""Several gloo processes with a part of the batch each train like one process with all of it."""

import json
import os

import pytest
import torch
from conftest import CAPTIONS, ROOT, run_python
from transformers import BertModel

from component.model import BertCLIPModel


@pytest.fixture
def train(train_args, bert_path, tmp_path, data):
    """One SGD step of train_clip.py on `processes` × `batch` rows in their order; returns weights and logged loss."""
    # Dropout draws other numbers in each process.
    calm = str(tmp_path / "bert")
    bert = BertModel.from_pretrained(bert_path)
    bert.config.hidden_dropout_prob = bert.config.attention_probs_dropout_prob = 0.0
    bert.save_pretrained(calm)
    with open(os.path.join(bert_path, "vocab.txt"), encoding="utf-8") as source:
        (tmp_path / "bert" / "vocab.txt").write_text(source.read(), encoding="utf-8")

    def run(filenames: list[str], processes: int, batch: int, cache: str, **keys) -> tuple[dict, float]:
        rows = [f"{caption},{filename}" for caption, filename in zip(CAPTIONS, filenames, strict=True)]
        (data / "t.csv").write_text("text,filename\n" + "\n".join(rows) + "\n", encoding="utf-8")
        output = tmp_path / f"{processes}-{cache}"
        args_file = train_args(
            output_dir=str(output),
            bert_pretrain_path=calm,
            train_file=str(data / "t.csv"),
            image_feature_cache=cache,
            per_device_train_batch_size=batch,
            train_sampling_strategy="sequential",
            optim="sgd",
            learning_rate=0.1,
            max_grad_norm=1e9,
            max_steps=1,
            save_strategy="no",
            ddp_backend="gloo" if processes > 1 else None,
            **keys,
        )
        result = run_python("train_clip.py", "--train_args_file", args_file, processes=processes)
        assert result.returncode == 0, result.stderr
        with open(output / "trainer_state.json") as file:
            loss = json.load(file)["log_history"][0]["loss"]
        return BertCLIPModel.from_pretrained(output / "checkpoint-final").state_dict(), loss

    return run


@pytest.mark.parametrize(
    ("processes", "cache", "bad", "keys"),
    [
        (2, "auto", [], {}),
        (2, "off", [1, 6, 7], {"contrastive_chunk_size": 3}),
        (2, "auto", [], {"contrastive_chunk_size": 3, "loss_type": "siglip", "mask_duplicates": True}),
        (4, "off", [4, 5], {"mask_duplicates": True}),
    ],
    ids=["two", "two with unequal parts in chunks", "two with siglip", "four with one that has no pair"],
)
def test_gradients_are_those_of_the_whole_batch(train, processes, cache, bad, keys):
    filenames = ["none.png" if row in bad else f"{row}.png" for row in range(8)]
    filenames[7] = filenames[0]  # a picture that two processes have
    whole, loss_of_whole = train(filenames, 1, 8, cache, **{**keys, "contrastive_chunk_size": None})
    parts, loss_of_parts = train(filenames, processes, 8 // processes, cache, **keys)
    assert loss_of_parts == pytest.approx(loss_of_whole, abs=1e-5)
    assert not torch.equal(whole["logit_scale"], torch.tensor(2.6592))
    for name, value in whole.items():
        torch.testing.assert_close(
            parts[name], value, atol=1e-5, rtol=0, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_no_thread_of_the_group_outlives_it(tmp_path):
    """In a Python that is ending, such a thread now and then crashes or hangs the process."""
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
