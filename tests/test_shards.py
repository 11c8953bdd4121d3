"""WebDataset shards: the pairs that webdataset reads, each once an epoch, and what is said of damaged ones."""

import gzip
import io
import json
import os
import re
import shutil
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset
from conftest import CAPTIONS, ROOT, build_trainer, run_python
from PIL import Image

from component.argument import load_arguments
from component.datacollator import PairCollator
from component.dataset import PairDataset
from component.pairs.sources import read_pair_files
from component.pairs.work import Work
from component.processor import load_processor
from component.training.feature_cache import FeatureCache
from component.training.image_features import CachedImages, cache_features

PAIRS = 11  # in shards of 5, 4 and 2
TWO_WORKERS = {"work": Work(num_workers=2)}


def write(path, *samples: dict) -> str:
    """One shard, by the writer that img2dataset uses. A key's members come sorted by their ending."""
    with webdataset.TarWriter(str(path)) as shard:
        for sample in samples:
            shard.write(sample)
    return str(path)


def image_bytes(number: int) -> bytes:
    noise = np.random.default_rng(number).integers(0, 255, (40, 50, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "JPEG")
    return file.getvalue()


def sample(number: int, **members) -> dict:
    caption = f"{CAPTIONS[number % 8]}{'红' * (number // 8)}"
    meta = {"caption": caption, "url": f"http://example.com/{number}.jpg", "status": "success", "width": 50}
    return {"__key__": f"{number:09d}", "jpg": image_bytes(number), "json": meta, "txt": caption, **members}


@pytest.fixture
def shards(tmp_path) -> str:
    """Three shards as img2dataset writes them, and the pattern that names them."""
    (tmp_path / "shards").mkdir()
    for number, (start, stop) in enumerate([(0, 5), (5, 9), (9, PAIRS)]):
        write(tmp_path / "shards" / f"{number:05d}.tar", *map(sample, range(start, stop)))
    return str(tmp_path / "shards" / "{00000..00002}.tar")


@pytest.fixture
def csv(tmp_path) -> dict[str, str]:
    """The pairs of `shards` as a table and a folder: the keys of the JSON."""
    (tmp_path / "folder").mkdir()
    rows = ["text,filename"]
    for pair in map(sample, range(PAIRS)):
        (tmp_path / "folder" / f"{pair['__key__']}.jpg").write_bytes(pair["jpg"])
        rows.append(f"{pair['txt']},{pair['__key__']}.jpg")
    (tmp_path / "pairs.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return {"train_file": str(tmp_path / "pairs.csv"), "image_path": str(tmp_path / "folder")}


@pytest.fixture
def dataset(bert_clip_path):
    processor = load_processor(bert_clip_path)
    return lambda files, **options: PairDataset(files, None, processor, max_seq_length=20, **options)


def two_ranks(script, *arguments: str) -> str:
    """What two processes that run a script print."""
    result = run_python(script, *arguments, processes=2)
    assert result.returncode == 0, result.stderr
    return result.stdout


def pairs_of(files) -> list[tuple[str, bytes]]:
    """(text, image) of all pairs, in order."""
    return [
        (text, place.read(locator))
        for place, chunk in read_pair_files(files, None)
        for text, locator in zip(chunk["text"], chunk["filename"], strict=True)
    ]


# ---- what is read ----


def test_shards_hold_what_webdataset_reads_from_them(shards, tmp_path):
    odd = [
        sample(20, __key__="folder.of/deep", cls="7"),
        {"__key__": "a", "JPG": image_bytes(21), "TXT": "大写", "seg.png": image_bytes(0)},
        sample(22, __key__="长" * 90, txt="一\n二 "),
        sample(23, txt=""),
    ]
    write(tmp_path / "shards" / "00003.tar", *odd)
    files = shards.replace("00002}", "00003}")
    oracle = webdataset.WebDataset(files, shardshuffle=False)
    wanted = [(pair["txt"].decode(), pair["jpg"]) for pair in oracle]
    assert len(wanted) == PAIRS + 4 and pairs_of(files) == wanted


def test_a_caption_comes_from_the_json_where_there_is_no_txt(tmp_path):
    keys = {"__key__": "1", "png": image_bytes(1)}
    assert pairs_of(write(tmp_path / "a.tar", {**keys, "json": {"caption": "小狗"}})) == [("小狗", image_bytes(1))]
    both = write(tmp_path / "b.tar", {**keys, "json": {"caption": "小狗"}, "txt": "小猪"})
    assert pairs_of(both) == [("小猪", image_bytes(1))]


@pytest.mark.parametrize("ending", ["avif", "jp2", "JPE", "jfif", "tif", "webp"])
def test_members_of_every_format_that_is_read_are_images(tmp_path, ending):
    path = write(tmp_path / "a.tar", {"__key__": "1", ending: image_bytes(1), "txt": "小狗"})
    assert pairs_of(path) == [("小狗", image_bytes(1))]


def test_tar_itself_can_make_a_shard(tmp_path):
    """Where a key's members need not be neighbours."""
    for number in range(3):
        (tmp_path / f"{number}.jpg").write_bytes(image_bytes(number))
        (tmp_path / f"{number}.txt").write_text(CAPTIONS[number], encoding="utf-8")
    names = [f"./{number}.{ending}" for ending in ("jpg", "txt") for number in range(3)]
    subprocess.run(["tar", "-cf", "a.tar", *names], cwd=tmp_path, check=True)
    assert pairs_of(str(tmp_path / "a.tar")) == [(CAPTIONS[number], image_bytes(number)) for number in range(3)]


def test_file_names_in_gbk_are_told_apart(tmp_path):
    command = ["tar", "-cf", "a.tar", *(name.encode("gbk") for name in ("图.jpg", "画.jpg", "图.txt", "画.txt"))]
    for number, name in enumerate(command[3:]):
        path = os.path.join(os.fsencode(tmp_path), name)
        with open(path, "wb") as file:
            file.write(image_bytes(number) if number < 2 else CAPTIONS[number - 2].encode())
    subprocess.run(command, cwd=tmp_path, check=True)
    assert pairs_of(str(tmp_path / "a.tar")) == [(CAPTIONS[number], image_bytes(number)) for number in range(2)]


def test_an_example_of_a_shard_is_that_of_the_same_file(shards, csv, bert_clip_path):
    processor = load_processor(bert_clip_path)
    one = PairDataset(shards, None, processor, max_seq_length=20, **TWO_WORKERS)
    other = PairDataset(csv["train_file"], csv["image_path"], processor, max_seq_length=20)
    one, other = (PairCollator(0)(pairs.__getitems__([10, 0, 4, 5])) for pairs in (one, other))
    assert one["bad_images"] == other["bad_images"] == {} and torch.equal(one["rows"], other["rows"])
    one, other = one["model_inputs"], other["model_inputs"]
    assert one["text_groups"] == other["text_groups"]
    assert all(torch.equal(one[key], other[key]) for key in ("input_ids", "attention_mask", "pixels"))


def test_equal_captions_have_equal_ids_and_different_images_different_ones(tmp_path, shards, dataset):
    pairs = dataset([shards, shards])
    assert len(pairs) == 2 * PAIRS and (pairs.table.image_ids[:PAIRS] == pairs.table.image_ids[PAIRS:]).all()
    assert len(np.unique(pairs.table.image_ids)) == len(np.unique(pairs.table.text_ids)) == PAIRS
    assert pairs.table.filename(6).endswith("shards/00001.tar/000000006.jpg")
    copy = shutil.copy(shards.replace("{00000..00002}", "00002"), tmp_path / "copy.tar")
    assert not set(dataset(str(copy)).table.image_ids) & set(pairs.table.image_ids)


def tar(path, *members: tuple[str | tarfile.TarInfo, bytes]) -> str:
    """A shard of such members, in this order."""
    with tarfile.open(path, "w") as file:
        for name, content in members:
            info = link(name, "", tarfile.REGTYPE) if isinstance(name, str) else name
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return str(path)


def link(name: str, target: str, kind: bytes = tarfile.LNKTYPE) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def warnings_of(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records]


def test_names_with_further_dots_are_pairs_unless_they_belong_to_a_image(tmp_path, caplog):
    names = ["v1.5.jpg", "v1.5.txt", "d.x/v1.6.JPG", "d.x/v1.6.json", "2.jpg", "2.en.txt", "2.seg.png", "2.txt"]
    names += ["2.b.jpg", "2.b.txt", "2.cls", "._2.jpg", "README"]
    contents = {"txt": "小狗".encode(), "json": '{"caption": "小猪"}'.encode()}
    members = [(name, contents.get(name.rpartition(".")[2], image_bytes(number))) for number, name in enumerate(names)]
    path = tar(tmp_path / "a.tar", *members)
    assert pairs_of(path) == [
        ("小狗", image_bytes(0)),
        ("小猪", image_bytes(2)),
        ("小狗", image_bytes(4)),
        ("小狗", image_bytes(8)),
    ]
    (warning,) = warnings_of(caplog)
    assert warning.startswith("5 members of shards are neither") and "the first: " in warning


def test_tars_that_were_appended_to_each_other_are_all_read(tmp_path, caplog):
    path = tmp_path / "all.tar"
    with open(path, "wb") as file:
        for n in range(3):
            part = tar(tmp_path / "part.tar", (f"{n}.jpg", image_bytes(n)), (f"{n}.txt", CAPTIONS[n].encode()))
            file.write(Path(part).read_bytes())
    assert pairs_of(str(path)) == [(CAPTIONS[n], image_bytes(n)) for n in range(3)] and not caplog.records
    with open(path, "ab") as file:
        file.write(bytes(5000) + b"no tar" * 200)
    assert len(pairs_of(str(path))) == 3
    (warning,) = warnings_of(caplog)
    assert warning.startswith("1 shards have bytes after their end mark") and str(path) in warning


def test_a_hard_link_is_the_file_it_leads_to_and_other_links_are_counted(tmp_path, caplog):
    members = [
        ("1.jpg", image_bytes(1)),
        ("1.txt", "小狗".encode()),
        (link("2.jpg", "1.jpg"), b""),
        ("2.txt", "小猪".encode()),
    ]
    links = link("3.jpg", "gone.jpg"), link("4.jpg", "1.jpg", tarfile.SYMTYPE), link("d", "", tarfile.DIRTYPE)
    members += [(info, b"") for info in links]
    assert pairs_of(tar(tmp_path / "a.tar", *members)) == [("小狗", image_bytes(1)), ("小猪", image_bytes(1))]
    (warning,) = warnings_of(caplog)
    assert warning.startswith("2 links in shards") and "/3.jpg" in warning


@pytest.mark.parametrize("format", ["gnu", "posix"])
def test_a_sparse_member_is_counted_not_read_wrongly(tmp_path, caplog, format):
    with open(tmp_path / "1.jpg", "wb") as file:
        file.write(image_bytes(1))
        file.truncate(2**20)
    (tmp_path / "2.jpg").write_bytes(image_bytes(2))
    command = ["tar", "-cSf", "a.tar", f"--format={format}", "1.jpg", "2.jpg"]
    subprocess.run(command, cwd=tmp_path, check=True)
    assert pairs_of(str(tmp_path / "a.tar")) == [("", image_bytes(2))]
    (warning,) = warnings_of(caplog)
    assert warning.startswith("1 members of shards are sparse") and "1.jpg" in warning


@pytest.mark.parametrize(
    "caption",
    [b'{"caption": "\\ud800"}', b"[" * 100_000, b'{"caption": NaN}', b'{"n": ' + b"1" * 5000 + b"}", b'"' * 2**21],
    ids=["half a character", "deep", "NaN", "long number", "long"],
)
def test_a_json_that_is_no_caption_is_counted(tmp_path, dataset, caplog, caption):
    members = ("1.jpg", image_bytes(1)), ("1.json", caption), ("2.jpg", image_bytes(2)), ("2.txt", b"a")
    pairs = dataset(tar(tmp_path / "a.tar", *members))
    assert len(pairs) == 1 and pairs.table.num_empty_texts == 1
    (warning,) = warnings_of(caplog)
    assert warning.startswith("1 captions in shards are neither") and "1.json" in warning


def header(name: str, kind: bytes, size: int) -> bytes:
    """A tar header that claims any size, also one below 0."""
    info = tarfile.TarInfo(name)
    info.type, info.size = kind, size
    return info.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize(
    "nonsense",
    [
        header("a", tarfile.GNUTYPE_LONGNAME, 512) * 3000,
        (header("a", tarfile.GNUTYPE_LONGNAME, 1) + b"a" * 512) * 3000,
        header("a", tarfile.XHDTYPE, 2**40),
        header("a", tarfile.XHDTYPE, -5000),
        header("9.jpg", tarfile.REGTYPE, -5000),
        header("9.jpg", tarfile.REGTYPE, 2**70),
        header("a", tarfile.XHDTYPE, 30) + b"27 GNU.sparse.size=nonsense\n".ljust(512, b"\0") + bytes(512),
    ],
)
def test_nonsense_in_headers_ends_the_shard_there(tmp_path, caplog, nonsense):
    whole = tar(tmp_path / "a.tar", ("1.jpg", image_bytes(1)), ("1.txt", "小狗".encode()))
    content = Path(whole).read_bytes().rstrip(b"\0")
    content += bytes(-len(content) % 512)
    (tmp_path / "b.tar").write_bytes(content + nonsense)
    assert pairs_of(str(tmp_path / "b.tar")) == [("小狗", image_bytes(1))]
    (warning,) = warnings_of(caplog)
    assert "b.tar" in warning


def test_nonsense_alone_is_one_line(tmp_path):
    (tmp_path / "a.tar").write_bytes(header("a", tarfile.GNUTYPE_LONGNAME, 0) * 3000)
    with pytest.raises(ValueError, match="1 of 1 shards cannot be used. The first: .*a.tar is not a tar"):
        pairs_of(str(tmp_path / "a.tar"))


# ---- damaged ones ----


def test_what_a_sample_lacks_is_left_out_counted_and_named(tmp_path, dataset, caplog):
    path = write(
        tmp_path / "a.tar",
        {"__key__": "0", "jpg": image_bytes(0)},
        {"__key__": "1", "txt": "没有图片", "json": {"caption": "没有图片"}},
        {"__key__": "2", "jpg": image_bytes(2), "json": {"url": "u"}},
        {"__key__": "3", "jpg": image_bytes(3), "txt": "小狗".encode("gbk")},
        {"__key__": "4", "jpg": image_bytes(4), "json": b"{"},
        {"__key__": "5", "jpg": b"", "txt": "空文件"},
        {"__key__": "6", "jpg": image_bytes(6), "txt": "小狗"},
        {"__key__": "6", "jpg": image_bytes(7), "txt": "小猪"},
        {"__key__": "8", "jpg": image_bytes(8), "txt": "  "},
    )
    pairs = dataset(path)
    assert [pairs.table.filename(row)[-6:] for row in range(len(pairs))] == ["/5.jpg", "/6.jpg"]
    assert pairs.table.num_empty_texts == 5  # 0, 2, 3, 4 and 8
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == 3
    for warning, (count, what, first) in zip(
        sorted(warnings),
        [(1, "have no image", "1"), (2, "repeat a key", "6.jpg"), (3, "neither UTF-8", "2.json")],
        strict=True,
    ):
        assert warning.startswith(f"{count} ") and what in warning and f"the first: {path}/{first}" in warning
    good, inputs, bad = pairs.images.load([0, 1])
    assert good.tolist() == [1] and bad == {0: f"{path}/5.jpg: empty"}
    image = Image.open(io.BytesIO(image_bytes(6)))
    wanted = pairs.images.transform.image_processor(image, return_tensors="pt")["pixel_values"]
    assert torch.equal(pairs.images.transform.pixel_values(inputs["pixels"]), wanted)


@pytest.mark.parametrize(
    ("cut", "left"),
    [
        ("in a image", 3),
        ("after a image", 3),
        ("in a caption", 4),  # which the JSON has, too
        ("between samples", 4),
        ("in a header", 4),
        ("everything", 0),
    ],
)
def test_of_a_shard_that_is_cut_short_the_pairs_before_the_cut_are_used(tmp_path, shards, dataset, caplog, cut, left):
    path = tmp_path / "shards" / "00000.tar"
    before, whole = dataset(shards), path.read_bytes()
    last = whole.rindex(b"000000003.jpg")  # headers of 512 bytes
    caption = whole.rindex(b"000000003.txt")
    place = {
        "in a image": last + 600,
        "after a image": last + 512 + len(image_bytes(3)),
        "in a caption": caption + 512 + 6,
        "between samples": caption + 1024,
        "in a header": caption + 1124,
        "everything": 0,
    }
    path.write_bytes(whole[: place[cut]])
    pairs = dataset(shards)
    rows = [*range(left), *range(5, PAIRS)]
    assert (pairs.table.text_ids == before.table.text_ids[rows]).all() and (
        pairs.table.image_ids == before.table.image_ids[rows]
    ).all()
    assert pairs.images.load(range(len(pairs))).rows.tolist() == list(range(len(rows)))
    (warning,) = [record.getMessage() for record in caplog.records]
    assert warning.startswith("1 shards are cut short") and f"the first: {path}" in warning


def test_what_is_no_tar_is_named_and_stops_the_run(tmp_path, shards, dataset):
    path = tmp_path / "shards" / "00001.tar"
    path.write_bytes(gzip.compress(path.read_bytes()))
    (tmp_path / "shards" / "00002.tar").write_text("<html>" * 1000)
    with pytest.raises(ValueError, match=f"2 of 3 shards cannot be used. The first: {path} is not a tar") as error:
        dataset(shards, **TWO_WORKERS)
    assert "\n" not in str(error.value)


def test_an_empty_shard_adds_nothing_and_alone_it_is_an_error(tmp_path, shards, dataset, caplog):
    empty = write(tmp_path / "shards" / "00003.tar")
    assert len(dataset([empty, shards])) == PAIRS and not caplog.records
    with pytest.raises(ValueError, match="00003.tar has no row with a text"):
        dataset(empty)


def test_a_shard_that_changed_since_it_was_indexed_gives_no_wrong_images(tmp_path, shards, dataset):
    pairs = dataset(shards)
    path = tmp_path / "shards" / "00000.tar"
    before = path.stat()
    write(path, *map(sample, range(5, 10)))  # the same sizes, other images
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # as `rsync -t` and `tar` keep it
    assert path.stat().st_size == before.st_size
    (tmp_path / "shards" / "00001.tar").unlink()
    good, _, bad = pairs.images.load(range(PAIRS))
    assert good.tolist() == [9, 10] and list(bad) == list(range(9))
    assert "00000.tar/000000000.jpg: the shard has changed since it was indexed" in bad[0]
    assert "00001.tar/000000005.jpg: the shard was removed since it was indexed" in bad[5]


def test_missing_shards_are_named_before_anything_is_loaded(train_args, tmp_path, shards):
    (tmp_path / "shards" / "00001.tar").unlink()
    pattern = shards.replace("00002}", "00006}")
    names = ", ".join(str(tmp_path / "shards" / f"0000{number}.tar") for number in (1, 3, 4))
    with pytest.raises(ValueError, match=f"`train_file`: {names} and 2 more: no such file"):
        load_arguments(train_args(train_file=pattern))


# ---- the feature cache ----


def test_the_cache_reads_a_shard_from_front_to_back_and_each_image_once(tmp_path, shards, dataset):
    def cached(pairs) -> tuple[torch.Tensor, CachedImages]:
        """What goes through the tower, and what is then in the cache."""
        seen = [torch.empty(0, 32, 32, 3)]
        cache = FeatureCache(str(tmp_path / "cache"), "key", width=48)

        def encode(pixels):
            seen.append(pixels)
            return pixels.flatten(1)[:, :48]

        images = cache_features(pairs.images, cache, encode, batch_size=3, show_progress=False)
        return torch.cat(seen), images

    pairs = dataset(shards)
    images = pairs.images.load(range(PAIRS)).columns["pixels"]
    encoded, from_cache = cached(pairs)
    assert torch.equal(encoded, images)
    assert len(cached(dataset([shards, shards]))[0]) == 0
    features = from_cache.load(np.array([7, 0])).columns["vision_pooler_output"]
    assert torch.equal(features, images[[7, 0]].flatten(1)[:, :48].half())
    os.utime(tmp_path / "shards" / "00001.tar", ns=(1, 1))
    shutil.copytree(tmp_path / "shards", tmp_path / "staged")
    staged = cached(dataset(shards.replace("/shards/", "/staged/")))
    assert len(staged[0]) == 0 and len(staged[1].rows) == PAIRS
    content = bytearray((tmp_path / "shards" / "00001.tar").read_bytes())
    content[content.rindex(image_bytes(8)) + len(image_bytes(8)) - 40] ^= 1  # another image of the same name and size
    (tmp_path / "shards" / "00001.tar").write_bytes(content)
    assert len(cached(dataset(shards))[0]) == 4


# ---- training ----


@pytest.mark.parametrize("cache", ["auto", "off"])
def test_training_on_shards_is_training_on_the_same_pairs_in_a_table(train_args, tmp_path, shards, csv, cache):
    def history(**files) -> list[dict]:
        files = {**files, "test_file": files["train_file"], "image_feature_cache": cache}
        args = load_arguments(train_args(**files, max_seq_length=20, report_to="none", save_strategy="no"))
        trainer = build_trainer(args)
        trainer.train()
        trainer.evaluate()
        unsteady = ("runtime", "per_second", "flos", "data_wait")
        return [{k: v for k, v in entry.items() if not k.endswith(unsteady)} for entry in trainer.state.log_history]

    table = history(**csv)
    assert sum("loss" in entry for entry in table) == 6 and table[-1]["eval_pairs"] == PAIRS
    assert history(train_file=shards, image_path=None) == table


def test_two_ranks_with_workers_see_each_pair_of_an_epoch_once(train_args, tmp_path, shards, csv):
    script = tmp_path / "rank.py"
    script.write_text(
        f"""
import json, os, sys
sys.path.insert(0, {ROOT!r})
from component.argument import load_arguments
from component.training.interruption import leave_group
from component.trainer import CLIPTrainer
from component.training.build import load_model
from component.training.data import load_datasets


class Recorded(CLIPTrainer):
    def training_step(self, model, inputs, *args, **kwargs):
        rows.append(inputs["rows"].tolist())
        return super().training_step(model, inputs, *args, **kwargs)


for args_file in sys.argv[1:]:
    rows = []
    args = load_arguments(args_file)
    model, processor = load_model(args)
    dataset, _ = load_datasets(args, processor)
    Recorded(model, args, train_dataset=dataset, processing_class=processor).train()
    with open(f"{{args_file}}.{{os.environ['RANK']}}", "w") as file:
        json.dump(rows, file)
leave_group()
""",
        encoding="utf-8",
    )
    keys = dict(per_device_train_batch_size=2, num_train_epochs=2, dataloader_num_workers=2, ddp_backend="gloo")
    keys.update(save_strategy="no", max_seq_length=20, image_feature_cache="off", report_to="none")
    args_files = []
    for name, files in {"csv": csv, "shards": {"train_file": shards, "image_path": None}}.items():
        args_files.append(str(tmp_path / f"{name}.json"))
        os.rename(train_args(**files, **keys), args_files[-1])
    two_ranks(script, *args_files)

    def steps(args_file: str) -> list[list[int]]:
        """The rows of each step, of both ranks."""
        ranks = []
        for rank in range(2):
            with open(f"{args_file}.{rank}") as file:
                ranks.append(json.load(file))
        return [one + other for one, other in zip(*ranks, strict=True)]

    of_table, of_shards = map(steps, args_files)
    assert of_shards == of_table and len(of_shards) == 6
    epochs = [sum(of_shards[start : start + 3], []) for start in (0, 3)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(PAIRS))
    assert epochs[0] != epochs[1]


def test_ranks_that_see_different_shards_say_so_and_one_alone_opens_them(tmp_path, shards, bert_clip_path):
    script = tmp_path / "rank.py"
    script.write_text(
        f"""
import os, sys
sys.path.insert(0, {ROOT!r})
from accelerate import PartialState
from component.dataset import PairDataset
from component.pairs.table_files import expand
from component.processor import load_processor
from component.training.interruption import leave_group
from component.training.shared_work import SharedWork

PartialState(cpu=True, backend="gloo")
rank = int(os.environ["RANK"])
try:
    PairDataset(expand({shards!r})[rank:], None, load_processor({bert_clip_path!r}), 20, work=SharedWork())
except ValueError as error:
    print(error)
if rank == 0:
    pairs = PairDataset({shards!r}, None, load_processor({bert_clip_path!r}), 20)
    print(f"{{len(pairs)}} pairs")
leave_group()
""",
        encoding="utf-8",
    )
    printed = two_ranks(script)
    assert printed.count("The processes see different files") == 2 and f"{PAIRS} pairs" in printed


AS_TWO_MACHINES = """
import logging, os, sys
from types import SimpleNamespace
sys.path.insert(0, {root!r})
from accelerate import PartialState
from component.dataset import PairDataset
from component.processor import load_processor
from component.training import shared_disk
from component.training.interruption import leave_group
from component.training.shared_work import SharedWork

PartialState(cpu=True, backend="gloo")
rank = int(os.environ["RANK"])
logging.basicConfig(level="INFO" if rank == 0 else "ERROR", stream=sys.stdout, format="%(message)s")
os.chdir(f"{folder}/node{{rank}}")  # the same names on another disk
for folder in (None, {folder!r} + "/tables"):
    try:
        reading = {{"folder": folder, "work": SharedWork()}}
        pairs = PairDataset("{{00000..00002}}.tar", None, load_processor({model!r}), 20, **reading)
        print(f"{{len(pairs.images.load(range(len(pairs))).rows)}} good", flush=True)
    except ValueError as error:
        print(error, flush=True)
shared_disk.PATIENCE = 0
for output, tables in (("output", "off"), ({folder!r}, "tables"), ({folder!r}, {folder!r})):
    unused = dict.fromkeys(("image_feature_cache", "text_feature_cache", "distill_cache"), "off")
    args = SimpleNamespace(output_dir=output, pair_table=tables, process_index=rank, **unused)
    try:
        shared_disk.require_shared_folders(args)
        print("all is shared", flush=True)
    except ValueError as error:
        print(error, flush=True)
leave_group()
"""


def test_machines_with_copies_of_their_own_share_one_table_but_not_output_dir(tmp_path, shards, bert_clip_path):
    """Two processes with folders of their own. The shards have other times, as after copying them to each machine."""
    script = tmp_path / "rank.py"
    script.write_text(AS_TWO_MACHINES.format(root=ROOT, folder=str(tmp_path), model=bert_clip_path), encoding="utf-8")

    def stage() -> None:
        for node in ("node0", "node1"):
            shutil.rmtree(tmp_path / node, ignore_errors=True)
            shutil.copytree(tmp_path / "shards", tmp_path / node, copy_function=shutil.copyfile)

    stage()
    printed = two_ranks(script)
    assert printed.count(f"{PAIRS} good") == 4 and printed.count("the pairs are read once") == 1
    for key, folder in (("output_dir", "output"), ("pair_table", "tables")):
        where = rf"`{key}` {folder} is not on a disk that all machines share: process 1 on \S+ cannot see"
        assert len(re.findall(where, printed)) == 2
    assert printed.count("all is shared") == 2 and not list(tmp_path.glob("**/*.probe"))
    stage()
    printed = two_ranks(script)
    assert printed.count(f"{PAIRS} good") == 4 and "read once" not in printed and "read again" not in printed
    other = tmp_path / "node1" / "00002.tar"
    content = bytearray(other.read_bytes())
    content[content.rindex(image_bytes(10)) + len(image_bytes(10)) - 9] ^= 1
    other.write_bytes(content)
    printed = two_ranks(script)
    assert len(re.findall(r"of 00002.tar, process 0 on \S+ sees 20,480 bytes, digest \w+, process 1 on", printed)) == 4
