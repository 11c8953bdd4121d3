"""Training a text tower for vectors that exist already: which row gets which, what is refused, what is saved."""

import json
import os
import pickle
import re
import shutil
import sys

import numpy as np
import pytest
import torch
from conftest import CAPTIONS, build_trainer, run_python, write_csv
from safetensors.torch import load_file, save_file
from transformers import AutoModel

import train_clip
from component.argument import load_arguments
from component.checkpoint import load_checkpoint, load_text_checkpoint, save_checkpoint
from component.embedding import embed_images, embed_texts
from component.export.formats import export as write_export
from component.model import BertCLIPModel
from component.processor import load_processor_of
from component.training.image_vectors import open_vectors

pytest_plugins = ["galleries"]
NAMES = [f"{row}.png" for row in range(8)]


@pytest.fixture
def vectors(data, bert_clip_path) -> np.ndarray:
    """(8, 16): those that the model of `bert_clip_path` makes of the images of `data`."""
    paths = [str(data / "images" / name) for name in NAMES]
    return embed_images(*load_checkpoint(bert_clip_path), paths, num_workers=0).embeds.numpy()


@pytest.fixture
def keys(data, tmp_path, vectors):
    """Keys of the JSON that train on `vectors`, which are twice as long and in reverse order."""
    np.save(tmp_path / "v.npy", 2 * vectors[::-1])
    (tmp_path / "v.txt").write_text("".join(f"{name}\n" for name in NAMES[::-1]))
    return {"image_vectors": str(tmp_path / "v.npy"), "report_to": "none", "learning_rate": 1e-2}


@pytest.fixture
def run(train_args, monkeypatch):
    """Run train_clip.py in this process with these keys of the JSON. Returns its error message, or None."""

    def run_main(**keys):
        monkeypatch.setattr(sys, "argv", ["train_clip.py", "--train_args_file", train_args(**keys)])
        try:
            assert train_clip.main() is None
        except ValueError as error:
            return str(error)

    return run_main


def losses(output) -> list[float]:
    history = json.loads((output / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]


def loaded(trainer) -> dict[str, np.ndarray]:
    """File name → the image_embeds that the trainer gives the model."""
    pairs = trainer.train_dataset
    batch = pairs.images.load(pairs.images.rows[range(len(pairs))])
    return {
        pairs.table.filename(row): x.numpy() for row, x in zip(batch.rows, batch.columns["image_embeds"], strict=True)
    }


# ---- which row gets which vector ----


def as_npy(folder, vectors):
    np.save(folder / "v.npy", vectors.astype(np.float16))
    (folder / "names.csv").write_text("\n".join(["filename", *NAMES]))
    return {"image_vectors": str(folder / "v.npy"), "image_vector_ids": str(folder / "names.csv")}


def as_npz(folder, vectors):
    np.savez(folder / "v.npz", ids=np.array(NAMES), embeddings=vectors.astype(np.float64))
    return {"image_vectors": str(folder / "v.npz")}


def in_order(folder, vectors):
    np.save(folder / "v.npy", np.asfortranarray(vectors))
    return {"image_vectors": str(folder / "v.npy"), "image_vector_ids": "order"}


def as_clip_retrieval(folder, vectors):
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    for number, part in ((2, slice(0, 3)), (10, slice(3, 8))):
        for name in ("img_emb", "metadata"):
            (folder / "index" / name).mkdir(parents=True, exist_ok=True)
        np.save(folder / "index" / "img_emb" / f"img_emb_{number}.npy", vectors[part].astype(np.float16))
        table = pandas.DataFrame({"image_path": NAMES[part], "caption": CAPTIONS[part]})
        table.to_parquet(folder / "index" / "metadata" / f"metadata_{number}.parquet")
    return {"image_vectors": str(folder / "index")}


@pytest.mark.parametrize("write", [as_npy, as_npz, in_order, as_clip_retrieval], ids=lambda write: write.__name__)
def test_each_row_gets_the_vector_of_its_image(train_args, data, tmp_path, vectors, write):
    rows = list(zip(CAPTIONS, NAMES, strict=True))
    if write is not in_order:
        rows = [*rows[3:], ("再来一只小狗", NAMES[1]), *rows[:3]]
    keys = dict(write(tmp_path, vectors), train_file=str(write_csv(data / "t.csv", rows, ("text", "filename"))))
    shutil.rmtree(data / "images")
    found = loaded(build_trainer(load_arguments(train_args(**keys, clip_pretrain_path=None, image_path=None))))
    assert sorted(found) == NAMES
    for row, name in enumerate(NAMES):
        assert np.allclose(found[name], vectors[row], atol=1e-3)


def test_a_gallery_is_taken_as_it_is(train_args, index, data, tmp_path, bert_clip_path, vectors):
    index(data / "images")
    os.remove(data / "images" / "3.png")
    index(data / "images")  # marks its row as deleted
    keys = {"image_vectors": str(tmp_path / "gallery"), "clip_pretrain_path": bert_clip_path}
    keys |= {"load_from_bert_clip": True, "bert_pretrain_path": None}
    trainer = build_trainer(load_arguments(train_args(**keys)))
    found = loaded(trainer)
    assert sorted(found) == [name for name in NAMES if name != "3.png"]
    assert all(np.allclose(found[name], vectors[int(name[0])], atol=1e-3) for name in found)
    assert list(trainer.train_dataset.images.bad.values()) == [f"3.png: {tmp_path / 'gallery'} has no vector of it"]


def test_vectors_that_are_no_direction_are_left_out_and_counted(run, tmp_path, keys, caplog):
    found = np.load(keys["image_vectors"])[:7]  # without one of 0.png
    found[0], found[1, 3] = 0, np.nan  # of 7.png and 6.png
    np.save(keys["image_vectors"], found)
    (tmp_path / "v.txt").write_text("\n".join(NAMES[:0:-1]))
    run(**keys)
    assert "6.png: its vector is zero, or not of finite numbers" in caplog.text
    assert json.loads((tmp_path / "output" / "train_results.json").read_text())["train_bad_images"] == 3


# ---- what is trained and saved ----


def test_the_model_is_trained_as_on_its_images_whose_half_stays_as_it_is(run, tmp_path, keys, bert_clip_path, caplog):
    start = {"clip_pretrain_path": bert_clip_path, "load_from_bert_clip": True, "save_strategy": "no"}
    keys |= {**start, "learning_rate": 1e-4}
    run(**keys, output_dir=str(tmp_path / "vectors"))
    assert "image_vectors are those of clip_pretrain_path: median cosine 1.0000 of 8 images" in caplog.text
    run(**keys | {"image_vectors": None}, freeze_visual_projection=True, output_dir=str(tmp_path / "images"))
    assert losses(tmp_path / "vectors") == pytest.approx(losses(tmp_path / "images"), abs=1e-3)
    before, after = (load_file(f"{path}/model.safetensors") for path in (bert_clip_path, final(tmp_path / "vectors")))
    for name, value in after.items():
        assert torch.equal(value, before[name]) == name.startswith("vis"), name
    load_checkpoint(final(tmp_path / "vectors"))


def final(output) -> str:
    return str(output / "checkpoint-final")


@pytest.mark.parametrize(
    "more",
    [{}, {"lora_rank": 2, "text_pooling": "cls"}, {"contrastive_chunk_size": 3, "loss_type": "siglip"}],
    ids=lambda keys: "-".join(keys) or "plain",
)
def test_a_text_tower_alone_learns_and_resumes(run, data, tmp_path, keys, more):
    """Without a CLIP, the checkpoint has no image half."""
    keys = {**keys, **more, "clip_pretrain_path": None, "image_path": None, "save_steps": 1, "max_steps": 8}
    keys["test_file"] = str(data / "train.csv")
    run(**keys)
    output, resumed = tmp_path / "output", tmp_path / "resumed"
    assert losses(output)[-1] < losses(output)[0]
    run(**keys, resume_from_checkpoint=str(output / "checkpoint-5"), output_dir=str(resumed))
    weights, others = (load_file(f"{final(path)}/model.safetensors") for path in (output, resumed))
    assert all(torch.equal(value, others[name]) for name, value in weights.items())
    assert not [name for name in weights if name.startswith("vis")]
    with pytest.raises(ValueError, match="is a text tower alone"):
        load_checkpoint(final(output))


@pytest.fixture
def text_tower(tmp_path, bert_path) -> str:
    """A checkpoint without an image half."""
    torch.manual_seed(4)
    model = BertCLIPModel.from_text_pretrained(bert_path, projection_dim=16)
    save_checkpoint(model, load_processor_of(model.config, bert_path), str(tmp_path / "text_tower"))
    return str(tmp_path / "text_tower")


def test_sentence_transformers_embeds_texts_with_the_tower_alone(
    text_tower, bert_clip_path, chinese_clip_path, tmp_path
):
    pytest.importorskip("sentence_transformers")
    models = text_tower, bert_clip_path, chinese_clip_path
    exports = [str(tmp_path / f"{number}") for number in range(3)]
    for model, export in zip(models, exports, strict=True):
        write_export(model, "sentence-transformers", export)
    code = f"""
import json, sys
sys.modules["component"] = None
from sentence_transformers import SentenceTransformer
found = [SentenceTransformer(path, device="cpu").encode({CAPTIONS}).tolist() for path in sys.argv[1:]]
print(json.dumps(found))
"""
    done = run_python("-c", code, *exports)
    assert done.returncode == 0 and "MISSING" not in done.stderr, done.stderr
    for model, found in zip(models, json.loads(done.stdout.splitlines()[-1]), strict=True):
        assert np.allclose(found, embed_texts(*load_text_checkpoint(model), CAPTIONS).embeds, atol=1e-5)


def test_a_text_tower_alone_as_onnx_and_in_transformers(text_tower, tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    write_export(text_tower, "onnx", str(tmp_path / "onnx"))
    assert os.listdir(tmp_path / "onnx" / "onnx") == ["text_model.onnx"]
    model, processor = load_text_checkpoint(text_tower)
    expected = embed_texts(model, processor, CAPTIONS).embeds
    inputs = processor(CAPTIONS, padding=True, return_tensors="np")
    inputs = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    session = runtime.InferenceSession(str(tmp_path / "onnx" / "onnx" / "text_model.onnx"))
    assert np.allclose(session.run(None, inputs)[0], expected, atol=1e-5)
    model, info = AutoModel.from_pretrained(text_tower, trust_remote_code=True, output_loading_info=True)
    assert not any(info.values())
    with torch.no_grad():
        found = model(**{name: torch.from_numpy(array) for name, array in inputs.items()}).text_embeds
    assert np.allclose(found, expected, atol=1e-5)


def test_a_text_tower_alone_is_trained_further_and_only_with_vectors(run, keys, text_tower):
    keys |= {"clip_pretrain_path": text_tower, "load_from_bert_clip": True, "bert_pretrain_path": None, "max_steps": 1}
    assert run(**keys) is None
    assert "is trained with image_vectors" in run(**keys | {"image_vectors": None}, overwrite_output_dir=True)


def test_two_processes_train_as_one(train_args, tmp_path, keys, bert_path):
    bert = shutil.copytree(bert_path, tmp_path / "bert")
    config = json.loads((bert / "config.json").read_text())
    (bert / "config.json").write_text(
        json.dumps(config | {"hidden_dropout_prob": 0, "attention_probs_dropout_prob": 0})
    )
    keys |= {"clip_pretrain_path": None, "bert_pretrain_path": str(bert), "ddp_backend": "gloo", "learning_rate": 1e-3}
    for processes in (1, 2):
        more = {"output_dir": str(tmp_path / f"{processes}"), "per_device_train_batch_size": 6 // processes}
        args_file = train_args(**keys, **more)
        done = run_python("train_clip.py", "--train_args_file", args_file, processes=processes)
        assert done.returncode == 0, done.stderr
    # The last batch has two pairs, so that one of two processes has none.
    assert losses(tmp_path / "1") == pytest.approx(losses(tmp_path / "2"), abs=1e-4)


# ---- what is refused ----


def write_shorter_ids(tmp_path):
    (tmp_path / "v.txt").write_text("0.png\n1.png\n")


def write_repeated_ids(tmp_path):
    (tmp_path / "v.txt").write_text("\n".join(["0.png", *NAMES[:7]]))


def write_other_ids(tmp_path):
    (tmp_path / "v.txt").write_text("\n".join(f"{row}.jpg" for row in range(8)))


def write_an_int(tmp_path):
    np.save(tmp_path / "v.npy", np.zeros((8, 16), np.int64))


def write_half_a_file(tmp_path):
    content = (tmp_path / "v.npy").read_bytes()
    (tmp_path / "v.npy").write_bytes(content[:-100])


def write_half_an_archive(tmp_path):
    np.savez(tmp_path / "v.npz", np.load(tmp_path / "v.npy"))
    content = (tmp_path / "v.npz").read_bytes()
    (tmp_path / "v.npy").write_bytes(content[:-100])


def write_a_flipped_bit(tmp_path):
    np.savez(tmp_path / "v.npz", np.load(tmp_path / "v.npy"))
    content = bytearray((tmp_path / "v.npz").read_bytes())
    content[300] ^= 1
    (tmp_path / "v.npy").write_bytes(content)


def write_a_damaged_header(tmp_path):
    content = (tmp_path / "v.npy").read_bytes()
    (tmp_path / "v.npy").write_bytes(content.replace(b"'descr': ", b"'descr':,"))


def write_pickle(tmp_path):
    np.save(tmp_path / "v.npy", np.array([{}] * 8), allow_pickle=True)


def write_wider(tmp_path):
    np.save(tmp_path / "v.npy", np.ones((8, 17), np.float32))


def write_other_vectors(tmp_path):
    np.save(tmp_path / "v.npy", np.random.default_rng(0).normal(size=(8, 16)))


def remove_ids(tmp_path):
    (tmp_path / "v.txt").unlink()


@pytest.mark.parametrize(
    ("change", "more", "message"),
    [
        (write_shorter_ids, {}, "has 2 file names, but .* has 8 vectors"),
        (write_repeated_ids, {}, "more than one vector of 0.png"),
        (write_other_ids, {}, "has no vector of any image .* 0.jpg, the first of the table is 0.png"),
        (write_an_int, {}, "`image_vectors`: .* type int64; expected floats"),
        (write_half_a_file, {}, "`image_vectors`: .*v.npy cannot be read as vectors"),
        (write_half_an_archive, {}, "`image_vectors`: .*v.npy cannot be read as vectors"),
        (write_a_flipped_bit, {}, "`image_vectors`: .*v.npy cannot be read as vectors"),
        (write_a_damaged_header, {}, "`image_vectors`: .*v.npy cannot be read as vectors"),
        (write_pickle, {}, "`image_vectors`: .*v.npy cannot be read as vectors"),
        (write_wider, {}, "vectors of 17 numbers, but .* has 16"),
        (write_other_vectors, {}, r"does not hold the vectors .* \(median cosine"),
        (remove_ids, {}, "does not say which vector belongs to which image"),
        (None, {"image_vectors": "nowhere.npy"}, "`image_vectors`: .*nowhere.npy: no such file"),
        (None, {"image_vectors": "docs"}, "neither a gallery nor a folder of clip-retrieval"),
        (None, {"image_vector_ids": "order", "test_file": "train.csv"}, "none to those of test_file"),
        (None, {"random_flip": True}, "`random_flip` does not work with `image_vectors`"),
        (None, {"freeze_vision": False}, "set freeze_vision to true"),
        (None, {"check_data": True}, "`check_data` does not work with `image_vectors`"),
        (None, {"image_feature_cache": "here"}, "`image_feature_cache` has no use"),
        (None, {"image_vectors": None, "image_vector_ids": "order"}, "no `image_vectors` that it could name"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(run, tmp_path, data, keys, bert_clip_path, change, more, message):
    if change:
        change(tmp_path)
    if "test_file" in more:
        more = {**more, "test_file": str(data / "train.csv")}
    start = {"clip_pretrain_path": bert_clip_path, "load_from_bert_clip": True}
    error = run(**{**keys, **start, **more})
    assert re.search(message, error) and "\n" not in error


def test_order_is_refused_where_rows_are_left_out(run, data, keys):
    rows = [(caption if row else " ", name) for row, (caption, name) in enumerate(zip(CAPTIONS, NAMES, strict=True))]
    keys |= {"image_vector_ids": "order", "train_file": str(write_csv(data / "t.csv", rows, ("text", "filename")))}
    assert "have no text and are left out: give the file names of the vectors" in run(**keys)


def test_a_gallery_of_another_image_half_is_refused(train_args, index, data, tmp_path, clip_path, bert_clip_path):
    index(data / "images")
    args = load_arguments(train_args(image_vectors=str(tmp_path / "gallery"), clip_pretrain_path=clip_path))
    build_trainer(args)  # the CLIP that bert_clip_path was made of
    other = shutil.copytree(clip_path, tmp_path / "other")
    weights = load_file(other / "model.safetensors")
    weights["visual_projection.weight"] *= -1
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    args = load_arguments(train_args(image_vectors=str(tmp_path / "gallery"), clip_pretrain_path=str(other)))
    with pytest.raises(ValueError, match="made with another image half than .*the weights of the image half"):
        build_trainer(args)


def test_other_vectors_are_another_run(run, keys):
    keys |= {"save_steps": 1, "max_steps": 2, "clip_pretrain_path": None}
    run(**keys)
    np.save(keys["image_vectors"], -np.load(keys["image_vectors"]))
    assert "image_vectors was" in run(**keys, resume_from_checkpoint="auto")


def test_pickled_vectors_are_mapped_again(tmp_path, keys):
    vectors = open_vectors(keys["image_vectors"])
    pickled = pickle.dumps(vectors)
    assert len(pickled) < 500
    assert torch.equal(pickle.loads(pickled)[np.arange(8)], vectors[np.arange(8)])
