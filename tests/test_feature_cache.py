"""The locked tower's output on disk: same training, and never a wrong feature."""

import os
import pickle
import re
import resource
import shutil
import subprocess
import tarfile

import numpy as np
import pytest
import torch
from conftest import CAPTIONS, ENVIRONMENT, ROOT, python, run_python
from PIL import Image
from safetensors.torch import load_file, save_file

from component.argument import load_arguments
from component.dataset import PairDataset, Pairs
from component.ground.file_state import MISSING
from component.hub.identity import image_tower
from component.image.transform import ImageTransform
from component.model import BertCLIPModel
from component.processor import load_processor
from component.trainer import CLIPTrainer
from component.training import feature_cache
from component.training.bad_images import RowSet
from component.training.feature_cache import FeatureCache
from component.training.image_features import cache_features
from component.training.interruption import RunFailed
from component.training.reasons import Reasons


@pytest.fixture
def model(bert_clip_path) -> BertCLIPModel:
    model = BertCLIPModel.from_pretrained(bert_clip_path, dtype=torch.float32)
    model.lock_vision()
    return model


@pytest.fixture(params=["in memory", "prepared"])
def dataset(data, bert_clip_path, tmp_path_factory, request):
    folder = str(tmp_path_factory.mktemp("tables")) if request.param == "prepared" else None
    return lambda file="train.csv": PairDataset(
        str(data / file), str(data / "images"), load_processor(bert_clip_path), max_seq_length=16, folder=folder
    )


class Tower:
    """The model's tower, counting the images that it encodes."""

    def __init__(self, model):
        self.model, self.images = model, 0
        self.transform = ImageTransform(load_processor(model.name_or_path).image_processor)

    @torch.no_grad()
    def __call__(self, pixels):
        self.images += len(pixels)
        return self.model.vision_model(self.transform.pixel_values(pixels)).pooler_output


def key_of(dataset, model, precision="fp32") -> str:
    return image_tower(model.vision_model, dataset.images.transform.image_processor).digest(precision)


def cached(dataset, model, folder, dtype=torch.float16, verify=False) -> tuple[Pairs, int]:
    """The dataset with a cache in `folder`, and how many images were encoded for it."""
    tower = Tower(model)
    key = key_of(dataset, model)
    cache = FeatureCache(str(folder), key, 48, dtype, verify)
    images = cache_features(dataset.images, cache, tower, batch_size=3, show_progress=False)
    return Pairs(dataset.table, images), tower.images


def blocks(folder) -> list[str]:
    found = (os.path.join(path, name) for path, _, names in os.walk(folder) for name in names)
    return sorted(path for path in found if path.endswith(".safetensors"))


def assert_features_are_right(dataset, decoded, model):
    """Every example's feature is the tower's output for the image as it is on disk now."""
    for index in range(len(dataset)):
        example = dataset[index]
        wanted = Tower(model)(decoded.images.load(example["rows"]).columns["pixels"])
        torch.testing.assert_close(example["images"]["vision_pooler_output"].float(), wanted, atol=5e-3, rtol=0)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float16, 1e-2)])
def test_same_losses_with_and_without_the_cache(dataset, train_args, bert_clip_path, tmp_path, dtype, tolerance):
    def losses(with_cache: bool) -> list[float]:
        model = BertCLIPModel.from_pretrained(bert_clip_path, dtype=torch.float32)
        model.lock_vision()
        pairs = dataset()
        if with_cache:
            pairs, _ = cached(pairs, model, tmp_path / "cache", dtype)
        trainer = CLIPTrainer(
            model=model,
            args=load_arguments(train_args(max_steps=20, save_strategy="no", image_feature_cache="off")),
            train_dataset=pairs,
            processing_class=load_processor(bert_clip_path),
        )
        trainer.train()
        return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]

    plain, with_cache = losses(False), losses(True)
    assert len(plain) == 20
    assert with_cache == pytest.approx(plain, abs=tolerance)


def test_each_image_goes_through_the_tower_once(dataset, data, model, tmp_path):
    with open(data / "train.csv", "a", encoding="utf-8") as file:
        file.write("另一句话,,0.png\n")
    pairs = dataset()
    with_cache, encoded = cached(pairs, model, tmp_path / "cache")
    assert len(pairs) == len(with_cache) == 9 and encoded == 8
    assert_features_are_right(with_cache, pairs, model)
    assert cached(dataset(), model, tmp_path / "cache")[1] == 0


@pytest.mark.parametrize("times", ["new times", "times restored"])
def test_a_changed_image_alone_is_computed_again(dataset, data, model, tmp_path, times):
    cached(dataset(), model, tmp_path / "cache")
    path = data / "images" / "3.png"
    before = path.stat()
    Image.new("RGB", (50, 40), "purple").save(path)
    if times == "times restored":  # as rsync -t, cp -p and reproducible archives do
        path.write_bytes(path.read_bytes().ljust(before.st_size, b"\0"))
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    pairs = dataset()
    with_cache, encoded = cached(pairs, model, tmp_path / "cache")
    assert encoded == 1
    assert_features_are_right(with_cache, pairs, model)


def test_for_a_longer_table_only_the_new_images_are_computed(dataset, data, model, tmp_path):
    cached(dataset(), model, tmp_path / "cache")
    Image.new("RGB", (50, 40), "purple").save(data / "images" / "new.png")
    (data / "more.csv").write_text("text,filename\n小狗,new.png\n小猪,5.png\n", encoding="utf-8")
    pairs = dataset("more.csv")
    with_cache, encoded = cached(pairs, model, tmp_path / "cache")
    assert encoded == 1
    assert_features_are_right(with_cache, pairs, model)


def test_a_batch_may_come_from_many_blocks_in_any_order(dataset, model, tmp_path, monkeypatch):
    monkeypatch.setattr(feature_cache, "BLOCK_ROWS", 3)
    pairs = dataset()
    with_cache, _ = cached(pairs, model, tmp_path / "cache")
    assert len(blocks(tmp_path / "cache")) == 3
    together = with_cache.__getitems__([5, 0, 7, 0, 3])
    alone = [with_cache[row]["images"]["vision_pooler_output"] for row in together["rows"].tolist()]
    assert torch.equal(together["images"]["vision_pooler_output"], torch.cat(alone))
    assert_features_are_right(with_cache, pairs, model)


def test_a_second_table_in_the_same_cache_does_not_disturb_the_first(dataset, data, model, tmp_path, monkeypatch):
    monkeypatch.setattr(feature_cache, "BLOCK_ROWS", 1)  # many blocks: the digests order them at random
    with open(data / "more.csv", "w", encoding="utf-8") as file:
        file.write("text,filename\n")
        for number in range(8):
            Image.new("RGB", (50, 40), (number * 30, 0, 99)).save(data / "images" / f"new{number}.png")
            file.write(f"小狗,new{number}.png\n")
    first, second = dataset(), dataset("more.csv")
    cache = FeatureCache(str(tmp_path), key_of(first, model), 48)
    both = [
        Pairs(pairs.table, cache_features(pairs.images, cache, Tower(model), batch_size=1, show_progress=False))
        for pairs in (first, second)
    ]
    assert_features_are_right(both[0], first, model)
    assert_features_are_right(both[1], second, model)


def test_other_weights_or_settings_never_use_the_same_cache(dataset, model, tmp_path):
    pairs = dataset()
    before = key_of(pairs, model)
    assert key_of(pairs, model, "fp16") != before
    pairs.images.transform.image_processor.image_mean = [0.1, 0.2, 0.3]
    assert key_of(pairs, model) != before

    pairs = dataset()
    cached(pairs, model, tmp_path / "cache")
    with torch.no_grad():
        model.vision_model.post_layernorm.bias[0] += 0.5
    pairs = dataset()
    with_cache, encoded = cached(pairs, model, tmp_path / "cache")
    assert encoded == 8
    assert_features_are_right(with_cache, pairs, model)


def test_an_interrupted_run_continues_where_it_stopped(dataset, model, tmp_path, monkeypatch):
    monkeypatch.setattr(feature_cache, "BLOCK_ROWS", 3)
    tower = Tower(model)

    def interrupted(pixels):
        if tower.images >= 6:
            raise KeyboardInterrupt
        return tower(pixels)

    pairs = dataset()
    key = key_of(pairs, model)
    with pytest.raises(KeyboardInterrupt):
        cache_features(
            pairs.images, FeatureCache(str(tmp_path), key, 48), interrupted, batch_size=3, show_progress=False
        )
    pairs = dataset()
    with_cache, encoded = cached(pairs, model, tmp_path)
    assert encoded == 2
    assert_features_are_right(with_cache, pairs, model)


@pytest.mark.parametrize("damage", ["flipped", "cut", "empty"])
def test_a_damaged_block_is_noticed_and_computed_again(dataset, model, tmp_path, caplog, damage):
    cached(dataset(), model, tmp_path / "cache")
    (block,) = blocks(tmp_path / "cache")
    with open(block, "rb") as file:
        content = bytearray(file.read())
    content[-100] ^= 255
    with open(block, "wb") as file:
        file.write({"flipped": content, "cut": content[:-50], "empty": b""}[damage])
    pairs = dataset()
    with_cache, encoded = cached(pairs, model, tmp_path / "cache", verify=damage == "flipped")
    assert encoded == 8
    assert "is damaged" in caplog.text
    assert_features_are_right(with_cache, pairs, model)


def test_bad_images_are_left_out_with_their_reason(dataset, data, model, tmp_path):
    (data / "images" / "2.png").write_bytes(b"<html>")
    (data / "images" / "4.png").unlink()
    for _ in range(2):  # built, and reused
        pairs = dataset()
        with_cache, _ = cached(pairs, model, tmp_path)
        (row, reason), (other, other_reason) = with_cache.images.bad.items()
        assert (row, other) == (2, 4) and "2.png: html" in reason and "4.png: no such file" in other_reason
        assert [with_cache[index]["rows"].item() for index in range(len(with_cache))] == [0, 1, 3, 5, 6, 7]
        assert len(pairs) == 8
        assert_features_are_right(with_cache, pairs, model)


def test_an_image_that_was_repaired_is_encoded(dataset, data, model, tmp_path):
    path = data / "images" / "2.png"
    whole, time = path.read_bytes(), path.stat().st_mtime_ns
    path.write_bytes(b"<html>".ljust(len(whole)))
    os.utime(path, ns=(time, time))
    assert cached(dataset(), model, tmp_path)[0].images.bad.keys() == {2}
    path.write_bytes(whole)
    os.utime(path, ns=(time, time))
    pairs = dataset()
    with_cache, encoded = cached(pairs, model, tmp_path)
    assert encoded == 1 and len(with_cache) == 8
    assert_features_are_right(with_cache, pairs, model)


def test_a_disk_that_fails_stops_and_leaves_no_verdict(dataset, data, model, tmp_path):
    path = data / "images" / "2.png"
    whole = path.read_bytes()
    path.unlink()
    path.symlink_to("/proc/self/mem")  # a regular file whose reading fails
    with pytest.raises(OSError, match="2.png"):
        cached(dataset(), model, tmp_path / "cache")
    path.unlink()
    path.write_bytes(whole)
    assert len(cached(dataset(), model, tmp_path / "cache")[0]) == 8


def test_a_table_without_any_good_image_is_named(dataset, data, model, tmp_path):
    for path in (data / "images").iterdir():
        path.write_bytes(b"<html>")
    with pytest.raises(ValueError, match="train.csv: none of its images can be used .the first: 0.png: html"):
        cached(dataset(), model, tmp_path)


def test_a_block_cut_while_in_use_is_one_line_and_computed_again_by_the_next_start(dataset, model, tmp_path, caplog):
    pairs = dataset()
    with_cache, _ = cached(pairs, model, tmp_path / "cache")
    (block,) = blocks(tmp_path / "cache")
    os.truncate(block, 100)
    with pytest.raises(OSError, match="was cut to 100 of .* bytes while it was in use. Start again"):
        with_cache[0]
    with_cache, encoded = cached(pairs, model, tmp_path / "cache")
    assert encoded == 8 and "is damaged" in caplog.text
    assert_features_are_right(with_cache, pairs, model)


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="file.*image_feature_cache"):
        FeatureCache(str(tmp_path / "file"), "key", 48)


def test_too_little_disk_space_is_reported_before_the_work(tmp_path):
    with pytest.raises(ValueError, match="MB free"):
        FeatureCache(str(tmp_path), "key", 48).require_space(10**13)


def test_what_a_killed_run_was_writing_is_removed(tmp_path):
    writing = (
        "import os, sys\nfrom component.ground.files import new_file\nwith new_file(sys.argv[1], 'wb'): os._exit(9)"
    )
    (tmp_path / "key").mkdir()
    run_python("-c", writing, tmp_path / "key" / "block.safetensors")
    assert len(os.listdir(tmp_path / "key")) == 1
    FeatureCache(str(tmp_path), "key", 48)
    assert not os.listdir(tmp_path / "key")


def test_a_block_that_cannot_be_written_completely_is_removed(dataset, model, tmp_path):
    pairs = dataset()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, hard))  # as a full disk: the write stops half way
    try:
        with pytest.raises(OSError, match="cannot be written"):
            cached(pairs, model, tmp_path / "cache")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert blocks(tmp_path / "cache") == []
    assert cached(dataset(), model, tmp_path / "cache")[1] == 8


@pytest.fixture
def prepared(data, bert_clip_path, tmp_path):
    files, processor = [str(data / "train.csv")], load_processor(bert_clip_path)
    return lambda: PairDataset(files, str(data / "images"), processor, 16, folder=str(tmp_path / "tables"))


def test_a_second_start_needs_no_key_to_find_the_features(prepared, model, tmp_path):
    cached(prepared(), model, tmp_path / "cache")
    (block,) = blocks(tmp_path / "cache")
    content = load_file(block)
    save_file({**content, "keys": torch.zeros_like(content["keys"])}, block)
    pairs = prepared()
    with_cache, encoded = cached(pairs, model, tmp_path / "cache")
    assert encoded == 0 and len(with_cache) == 8
    assert_features_are_right(with_cache, pairs, model)


def test_a_pickled_dataset_holds_paths(prepared, model, tmp_path):
    with_cache, _ = cached(prepared(), model, tmp_path / "cache")
    content = pickle.dumps(with_cache)
    assert len(content) < 3000
    one, other = (pairs.__getitems__([7, 0]) for pairs in (with_cache, pickle.loads(content)))
    assert torch.equal(*(example["images"]["vision_pooler_output"] for example in (one, other)))
    assert np.array_equal(one["tokens"], other["tokens"])


def test_the_index_of_a_reordered_table_is_not_used(prepared, data, model, tmp_path):
    cached(prepared(), model, tmp_path / "cache")
    rows = (data / "train.csv").read_text(encoding="utf-8").splitlines()
    (data / "train.csv").write_text("\n".join([rows[0], *rows[:0:-1]]) + "\n", encoding="utf-8")
    pairs = prepared()
    with_cache, encoded = cached(pairs, model, tmp_path / "cache")
    assert encoded == 0
    assert_features_are_right(with_cache, pairs, model)


def test_a_cut_index_is_built_again(prepared, model, tmp_path):
    cached(prepared(), model, tmp_path / "cache")
    (positions,) = (tmp_path / "cache").glob("*/table-*/positions.bin")
    os.truncate(positions, 8)
    pairs = prepared()
    with_cache, encoded = cached(pairs, model, tmp_path / "cache")
    assert encoded == 0
    assert_features_are_right(with_cache, pairs, model)


def test_the_key_of_an_image_depends_on_the_state_of_its_file(data, bert_clip_path):
    before, other, none, outside = keys_of(data, bert_clip_path, "0.png", "1.png", "none.png", "../train.csv")
    assert before != other and none == outside == MISSING
    assert keys_of(data, bert_clip_path, "1.png", "0.png").tolist() == [other, before]
    os.utime(data / "images" / "0.png", ns=(1, 1))
    changed, same = keys_of(data, bert_clip_path, "0.png", "1.png")
    assert changed != before and same == other


def keys_of(data, bert_clip_path, *filenames: str) -> np.ndarray:
    (data / "some.csv").write_text("".join(["text,filename\n", *(f"一,{name}\n" for name in filenames)]))
    table = PairDataset(str(data / "some.csv"), str(data / "images"), load_processor(bert_clip_path), 16).table
    rows = np.arange(len(filenames))
    return table.image_keys(rows, table.image_states(rows))


def start(args_file: str) -> subprocess.Popen:
    command = python("train_clip.py", "--train_args_file", args_file)
    return subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)


def assert_whole(folder):
    """Open the only cache in the folder, whose blocks are all whole."""
    (key,) = os.listdir(folder)
    cache = FeatureCache(str(folder), key, 48)
    assert not [name for name in blocks(folder) if not name.endswith(".safetensors")]
    return cache


def test_two_processes_may_build_one_cache_at_once(train_args, data, bert_clip_path, tmp_path):
    keys = dict(max_steps=1, image_feature_cache=str(tmp_path / "cache"), save_strategy="no")
    both = []
    for name in ("one", "other"):
        args_file = str(tmp_path / f"{name}.json")
        os.rename(train_args(**keys, output_dir=str(tmp_path / name)), args_file)
        both.append(start(args_file))
    for process in both:
        _, errors = process.communicate()
        assert process.returncode == 0, errors
    keys = keys_of(data, bert_clip_path, *(f"{n}.png" for n in range(len(CAPTIONS))))
    assert (assert_whole(tmp_path / "cache").blocks().find(keys) >= 0).all()


def test_ranks_share_the_work(train_args, data, bert_clip_path, tmp_path):
    args_file = train_args(max_steps=1, save_strategy="no", ddp_backend="gloo", test_file=str(data / "train.csv"))
    done = run_python("train_clip.py", "--train_args_file", args_file, processes=2)
    assert done.returncode == 0, done.stderr
    cache = assert_whole(tmp_path / "image_features")
    keys = keys_of(data, bert_clip_path, *(f"{n}.png" for n in range(len(CAPTIONS))))
    assert (cache.blocks().find(keys) >= 0).all()
    assert len(blocks(tmp_path / "image_features")) == 2


RANK = """
import logging, os, sys, time, torch
from datetime import timedelta
sys.path.insert(0, {root!r})
from accelerate import PartialState
from component.dataset import PairDataset
from component.training import fill_progress, shared_disk
from component.training.feature_cache import FeatureCache
from component.training.image_features import cache_features
from component.training.interruption import leave_group
from component.processor import load_processor

logging.basicConfig(level="INFO", stream=sys.stdout, format="%(message)s")
shared_disk.PATIENCE, fill_progress.TELL_SECONDS = 0, 1
PartialState(cpu=True, backend="gloo", timeout=timedelta(seconds={timeout}))
pairs = PairDataset({table!r}, {images!r}.format(os.environ["RANK"]), load_processor({model!r}), 16)
cache = FeatureCache({cache!r}.format(os.environ["RANK"]), "key", 48)

def encode(pixels):
    if os.environ["RANK"] == "1":
        time.sleep({pause})
    return torch.zeros(len(pixels), 48)

try:
    images = cache_features(pairs.images, cache, encode, 8, show_progress=False)
    print(f"{{len(images.rows)}} features", flush=True)  # one write: both processes share the pipe
except ValueError as error:
    print(error, flush=True)
leave_group()
"""


@pytest.fixture
def two_ranks(data, bert_clip_path, tmp_path):
    """Fill a cache with two processes, of which the second pauses in each batch; returns what they print."""

    def fill(cache: str, timeout: float = 600, pause: float = 0, images: str = str(data / "images")) -> str:
        script, folders = tmp_path / "rank.py", {"table": str(data / "train.csv"), "images": images}
        script.write_text(
            RANK.format(root=ROOT, model=bert_clip_path, cache=cache, timeout=timeout, pause=pause, **folders)
        )
        result = run_python(script, processes=2)
        assert result.returncode == 0, result.stderr
        return result.stdout

    return fill


def test_a_cache_that_is_not_on_a_shared_disk_is_found_before_anything_is_computed(two_ranks, tmp_path):
    printed = two_ranks(str(tmp_path / "disk{}"))
    assert "does not see in" in printed and "a disk that all machines share" in printed
    assert not blocks(tmp_path)


def test_copies_of_image_files_are_told_apart_from_shared_ones(two_ranks, data, tmp_path):
    for node in ("node0", "node1"):
        shutil.copytree(data / "images", tmp_path / node, copy_function=shutil.copyfile)
    printed = two_ranks(str(tmp_path / "cache"), images=str(tmp_path / "node{}"))
    assert printed.count("8 features") == 2 and printed.count("are copies with other times on process 1") == 2


def test_a_slow_process_may_take_longer_than_a_collective_and_is_named(two_ranks, tmp_path):
    printed = two_ranks(str(tmp_path / "cache"), timeout=3, pause=6)
    assert printed.count("8 features") == 2
    assert re.search(r"waiting for the image features of process 1 .0 of 4 images, on \S+.", printed)


def test_a_shard_that_is_replaced_while_it_is_read_ends_the_run(model, bert_clip_path, data, tmp_path):
    path = tmp_path / "00000.tar"

    def write(colour: str) -> None:
        with tarfile.open(path, "w") as tar:
            for number in range(8):
                Image.new("RGB", (40, 40), (number, 0, 0)).save(tmp_path / f"{number}.png")
                (tmp_path / f"{number}.txt").write_text(f"{colour}{number}", encoding="utf-8")
                for ending in ("png", "txt"):
                    tar.add(tmp_path / f"{number}.{ending}", f"{number}.{ending}")

    write("红")
    pairs = PairDataset(str(path), None, load_processor(bert_clip_path), 16)

    def encode(pixels):
        write("蓝")
        return Tower(model)(pixels)

    with pytest.raises(RunFailed, match="2 of 8 images of .*00000.tar were lost, more than 1%.*start again"):
        cache_features(pairs.images, FeatureCache(str(tmp_path / "cache"), "key", 48), encode, 2, show_progress=False)


def test_reasons_and_rows_are_small_and_exact():
    reasons, rows = Reasons(), [RowSet(), RowSet()]
    for number in (3, 5, 10**6):
        reasons.add(number, f"{number}.png: 没有")
    numbers, text, lengths = reasons.between(4, 10**7)
    assert numbers.tolist() == [5, 10**6] and text.tobytes().decode() == "5.png: 没有1000000.png: 没有"
    assert lengths.tolist() == [13, 19] and reasons.between(6, 9)[2].tolist() == [] and reasons.first[0] == 3
    assert [rows[0].add(row) for row in (7, 10**6, 7)] == [True, True, False] and rows[1].add(8)
    both = RowSet.union(rows)
    assert len(both) == 3 and len(RowSet.from_text(both.to_text())) == 3 and not both.add(8)
