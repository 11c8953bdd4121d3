"""filter_data.py through its command line, and its rules one by one."""

import csv
import io
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from image_server import huge_png, image_bytes
from PIL import Image

import filter_data
from component.filter.bad_images import DELETABLE, BadImages
from component.filter.judge import judge_pairs
from component.filter.output import REASONS, Funnel, filter_output
from component.filter.rules import FilterRules, PairCheck, chinese_share
from component.image.check import check_image
from component.image.load import load_image
from component.image.other_formats import SIGNATURES
from component.image.perceptual_hash import NearDuplicates, perceptual_hash
from component.image.reading import BadImageError
from component.pairs.image_stores import ImageFolder
from component.pairs.table import read_table

ROOT = Path(__file__).resolve().parent.parent


def write_table(folder, rows, header=("text", "url", "filename"), encoding="utf-8") -> Path:
    path = folder / "train.csv"
    with open(path, "w", newline="", encoding=encoding) as file:
        csv.writer(file).writerows([header, *rows])
    return path


def run(folder, *options, out=True) -> subprocess.CompletedProcess:
    command = [sys.executable, ROOT / "filter_data.py", "--train_file", folder / "train.csv"]
    command += ["--image_path", folder / "images", *(["--out_file", folder / "out.csv"] if out else []), *options]
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=120)


def read(path) -> list[list[str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def reasons(folder, *judge, **rules) -> list[str]:
    """The reason for each row without its details, computed in this process and one worker."""
    table, images = str(folder / "train.csv"), str(folder / "images")
    judged = judge_pairs(table, images, FilterRules(**rules), *judge, num_workers=1)
    return [reason.partition(":")[0] for _, chunk in judged for reason in chunk]


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    return folder


def photo(seed: int, size=(300, 200)) -> Image.Image:
    return Image.open(io.BytesIO(image_bytes(seed, size)))


# --- checks that are always on -------------------------------------------------------------------------------------


@pytest.fixture
def messy(tmp_path, images):
    """file name → (content, verdict)."""
    whole = image_bytes(1)
    content = {
        "good.jpg": (whole, ""),
        "子/图.png": (image_bytes(2, format="PNG"), ""),
        "really_a_jpeg.gif": (whole, ""),
        "gif.jpg": (image_bytes(3, format="GIF"), "gif"),
        "cut.jpg": (whole[:-200], "truncated"),
        "page.jpg": (b"<html><body>404</body></html>", "html"),
        "drawing.jpg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "svg"),
        "answer.jpg": (b'{"code": 404}', "text"),
        "noise.jpg": (bytes(range(256)), "not_image"),
        "nothing.jpg": (b"", "empty"),
        "bomb.png": (huge_png(), "too_many_pixels"),
    }
    (images / "子").mkdir()
    for name, (data, _) in content.items():
        (images / name).write_bytes(data)
    rows = [[f"文字,{i}", 'http://x/"1"', name] for i, name in enumerate(content)]
    rows += [["没有图", "u", "missing.jpg"], ["", "u", "good.jpg"], [" \t\u3000", "u", "good.jpg"]]
    rows += [["a", "u", "../train.csv"], ["a", "u", "good.jpg/x"], ["", "u", ""], ["NA", "007", "good.jpg"]]
    write_table(tmp_path, rows)
    verdicts = [verdict for _, verdict in content.values()]
    verdicts += ["missing", "empty_text", "empty_text", "bad_filename", "not_a_file", "empty_text", ""]
    return rows, verdicts


def test_good_rows_are_kept_unchanged_and_each_dropped_row_is_in_the_report(tmp_path, messy):
    rows, verdicts = messy
    done = run(tmp_path, "--report", tmp_path / "report.csv")
    assert done.returncode == 0, done.stderr
    header, *kept = read(tmp_path / "out.csv")
    assert header == ["text", "url", "filename"]
    assert kept == [row for row, verdict in zip(rows, verdicts, strict=True) if not verdict]
    header, *dropped = read(tmp_path / "report.csv")
    assert header == ["row", "filename", "reason", "text"]
    assert [(int(row[0]), row[1], row[2].partition(":")[0], row[3]) for row in dropped] == [
        (i, row[2], verdict, row[0]) for i, (row, verdict) in enumerate(zip(rows, verdicts, strict=True), 1) if verdict
    ]
    assert not list(tmp_path.rglob("*.part"))


def test_nothing_is_deleted_by_default(tmp_path, messy, images):
    before = sorted(images.rglob("*"))
    run(tmp_path, "--report", tmp_path / "report.csv")
    assert sorted(images.rglob("*")) == before


def test_delete_bad_images_deletes_nothing_outside_the_folder(tmp_path, messy, images):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "gif.jpg").write_bytes(image_bytes(3, format="GIF"))
    (images / "link").symlink_to(outside)
    with open(tmp_path / "train.csv", "a", encoding="utf-8") as file:
        file.write("a,u,link/gif.jpg\na,u,gif.jpg\n")
    run(tmp_path, "--delete_bad_images")
    assert (outside / "gif.jpg").exists()
    left = {str(path.relative_to(images)) for path in images.rglob("*.*")}
    assert left == {*"good.jpg 子/图.png really_a_jpeg.gif gif.jpg drawing.jpg noise.jpg bomb.png".split()}


@pytest.fixture(scope="module")
def not_ours(tmp_path_factory) -> dict[str, str]:
    """File name → reason, of every format that is known but not read, an image beyond a limit, noise and a text."""
    folder = tmp_path_factory.mktemp("others")
    contents = {
        f"{number}-{place}.jpg": b"some text ".ljust(offset, b"-")[:offset] + signature + b" and some more text\n" * 9
        for number, (offset, signatures) in enumerate(SIGNATURES.values())
        for place, signature in enumerate(signatures)
    }
    for name in ("ICO", "PPM", "GIF", "PCX", "TGA", "EPS", "PDF", "ICNS", "DDS", "SGI", "MSP", "IM", "DIB", "XBM"):
        photo(1).convert("1" if name in ("MSP", "XBM") else "RGB").save(buffer := io.BytesIO(), name)
        contents[f"{name}.jpg"] = buffer.getvalue()
    contents["heic.jpg"] = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100)
    contents["line.png"] = image_bytes(1, (3000, 1), "PNG")
    contents["noise.jpg"] = bytes(range(256))
    (folder / "images").mkdir()
    for name, content in contents.items():
        (folder / "images" / name).write_bytes(content)
    (folder / "images" / "notes.txt").write_text("not an image, and the user's own")
    write_table(folder, [("a", "u", name) for name in [*contents, "notes.txt"]])
    check, images = PairCheck(FilterRules()), ImageFolder(str(folder / "images"))
    names = [row[2] for row in read(folder / "train.csv")[1:]]
    found = {
        name: finding.reason for name, finding in zip(names, check(images, ["a"] * len(names), names), strict=True)
    }
    bad_images = BadImages(str(folder / "images"))
    bad_images.add(found.keys(), found.values())
    assert bad_images.delete() == (0, 0) and len(os.listdir(folder / "images")) == len(names)
    return found


def test_what_another_program_may_show_is_named_and_not_deleted(not_ours):
    kinds = {name: reason.partition(":")[0] for name, reason in not_ours.items()}
    assert kinds["heic.jpg"] == "no_plugin" and kinds["line.png"] == "long_and_narrow"
    assert kinds["GIF.jpg"] == "gif" and kinds["noise.jpg"] == "not_image"
    assert {kind for name, kind in kinds.items() if name[0].isdigit()} <= {"other_format", "no_plugin", "undecodable"}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (image_bytes(1)[:-200], "truncated"),
        (image_bytes(1, format="PNG")[:-200], "truncated"),
        (image_bytes(1, format="WEBP")[:-200], "truncated"),
        (b'<?xml version="1.0"?>\n<!DOCTYPE html PUBLIC "-//W3C//DTD XHTML 1.0">', "html"),
        ("<HTML><p>图片不存在".encode("gbk"), "html"),
        (b'{"code": 404, "message": "not found"}', "text"),
        ("图片不存在".encode(), "text"),
        (b"Not Found\r\n", "text"),
    ],
)
def test_what_a_server_sent_in_place_of_an_image_is_deleted(images, content, reason):
    (images / "a.jpg").write_bytes(content)
    (finding,) = PairCheck(FilterRules())(ImageFolder(str(images)), ["a"], ["a.jpg"])
    assert finding.reason.partition(":")[0] == reason
    bad_images = BadImages(str(images))
    bad_images.add(["a.jpg"], [finding.reason])
    assert bad_images.delete() == (1, 0) and not os.listdir(images)


def test_a_disk_that_does_not_answer_stops_the_run_and_nothing_is_written_or_deleted(tmp_path, images):
    (images / "cut.jpg").write_bytes(image_bytes(1)[:-200])
    (images / "disk.jpg").symlink_to("/proc/self/mem")  # reading it is an EIO
    write_table(tmp_path, [("a", "u", "cut.jpg"), ("a", "u", "disk.jpg")])
    done = run(tmp_path, "--delete_bad_images", "--report", tmp_path / "report.csv")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "Input/output error" in done.stderr and "disk.jpg" in done.stderr
    assert {path.name for path in images.iterdir()} == {"cut.jpg", "disk.jpg"}
    assert {path.name for path in tmp_path.iterdir()} == {"images", "train.csv"}


def test_a_file_is_checked_again_before_it_is_deleted(tmp_path, images):
    names = ["cut.jpg", "mended.jpg", "other.jpg"]
    for name in names:
        (images / name).write_bytes(image_bytes(1)[:-200])
    with pytest.raises(BadImageError) as caught:
        check_image(image_bytes(1)[:-200])
    bad_images = BadImages(str(images))
    bad_images.add([*names, "cut.jpg"], [str(caught.value)] * 4)
    (images / "mended.jpg").write_bytes(image_bytes(1))
    (images / "other.jpg").write_bytes(image_bytes(2)[:-200])
    assert bad_images.delete() == (1, 2)
    assert {path.name for path in images.iterdir()} == {"mended.jpg", "other.jpg"}


def test_a_dry_run_prints_the_funnel_and_touches_nothing(tmp_path, messy, images):
    before = sorted(tmp_path.rglob("*"))
    done = run(tmp_path, "--dry_run", "--delete_bad_images", "--max_text", "5", "--min_side", "50")
    assert done.returncode == 0
    assert sorted(tmp_path.rglob("*")) == before
    assert re.search(r"^rows in +18$", done.stdout, re.M)
    assert re.search(r"^- empty_text +3 +15$", done.stdout, re.M)
    assert re.search(r"^- missing +1 +13$", done.stdout, re.M)
    assert re.search(r"^rows out +0 +0.0%$", done.stdout, re.M)  # 64 x 48 is too small


def test_verdicts_on_damaged_jpegs_are_those_of_training():
    """check_image decodes to small grey images; it must find all damage that full decoding finds."""
    dice = random.Random(0)
    image = photo(1, (48, 40))
    variants = [{}, {"progressive": True}, {"subsampling": 0}, {"restart_marker_blocks": 4}, {"mode": "CMYK"}]
    for options in variants:
        buffer = io.BytesIO()
        image.convert(options.pop("mode", "RGB")).save(buffer, "JPEG", **options)
        whole = buffer.getvalue()
        damaged = [whole[:length] for length in range(0, len(whole), 3)] + [whole]
        for _ in range(200):
            copy = bytearray(whole)
            copy[dice.randrange(len(copy))] = dice.randrange(256)
            damaged.append(bytes(copy))
        for data in damaged:
            assert verdict(check_image, data) == verdict(load_image, data)


def verdict(reader, data: bytes) -> str:
    """The reason for which `reader` refuses a file; "" if it does not."""
    try:
        reader(data)
    except BadImageError as error:
        return str(error)
    return ""


# --- rules that are off by default -------------------------------------------------------------------------------


def test_text_rules(tmp_path, images):
    (images / "a.jpg").write_bytes(image_bytes(1))
    texts = ["猫", "两只猫", " 一二三四五六 ", "cat 猫", "only letters"]
    write_table(tmp_path, [(text, "u", "a.jpg") for text in texts])
    assert reasons(tmp_path) == [""] * 5
    assert reasons(tmp_path, min_text=2) == ["short_text", "", "", "", ""]
    assert reasons(tmp_path, max_text=6) == ["", "", "", "", "long_text"]
    assert reasons(tmp_path, min_chinese=0.25) == ["", "", "", "", "little_chinese"]
    assert reasons(tmp_path, min_chinese=0.5) == ["", "", "", "little_chinese", "little_chinese"]


def test_chinese_share_counts_han_characters_and_ignores_white_space():
    assert chinese_share("一 只\u3000猫") == 1
    assert chinese_share("猫。") == 0.5
    assert chinese_share("かな") == 0
    assert chinese_share("𠮷〇") == 1
    assert chinese_share("") == 0


def test_size_rules(tmp_path, images):
    for width, height in ((200, 200), (100, 300), (640, 90)):
        (images / f"{width}.jpg").write_bytes(image_bytes(1, (width, height)))
    write_table(tmp_path, [("a", "u", f"{width}.jpg") for width in (200, 100, 640)])
    assert reasons(tmp_path, min_side=100) == ["", "", "small"]
    assert reasons(tmp_path, max_aspect=3) == ["", "", "long_and_narrow"]
    assert reasons(tmp_path, max_aspect=2.9) == ["", "long_and_narrow", "long_and_narrow"]


def test_exact_duplicates_need_the_same_text_and_the_same_bytes(tmp_path, images):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        (images / f"{name}.jpg").write_bytes(image_bytes(seed))
    rows = [("x", "", "a.jpg"), ("x", "", "b.jpg"), ("y", "", "b.jpg"), ("x", "", "c.jpg"), ("x", "", "a.jpg")]
    write_table(tmp_path, rows)
    assert reasons(tmp_path) == [""] * 5
    assert reasons(tmp_path, exact_duplicates=True) == ["", "exact_duplicate", "", "", "exact_duplicate"]


def test_near_duplicates_are_found_across_sizes_and_formats_and_captions_of_one_image_are_kept(tmp_path, images):
    photo(1).save(images / "a.jpg", quality=95)
    photo(1).resize((180, 120)).save(images / "smaller.jpg", quality=60)
    photo(1).save(images / "a.webp", quality=70)
    photo(2).save(images / "other.jpg")
    names = ["a.jpg", "smaller.jpg", "a.webp", "other.jpg", "a.jpg", "smaller.jpg"]
    write_table(tmp_path, [(f"text {i}", "", name) for i, name in enumerate(names)])
    expected = ["", "near_duplicate", "near_duplicate", "", "", "near_duplicate"]
    assert reasons(tmp_path, near_duplicates=True) == expected


def test_the_search_finds_all_hashes_within_three_bits_and_no_others():
    dice = random.Random(1)
    index = NearDuplicates()
    known = [dice.getrandbits(64) for _ in range(300)]
    for owner, looks in enumerate(known):
        index.add(looks, owner)
    for owner, looks in enumerate(known):
        for distance in (0, 1, 2, 3, 4):
            mask = sum(1 << bit for bit in dice.sample(range(64), distance))
            assert index.find(looks ^ mask) == (owner if distance <= 3 else None)


def test_a_perceptual_hash_has_64_bits_of_which_about_half_are_set():
    hashes = [perceptual_hash(photo(seed)) for seed in range(20)]
    assert len(set(hashes)) == 20 and max(hashes) < 2**64
    assert all(24 <= bin(value).count("1") <= 40 for value in hashes)


# --- similarity --------------------------------------------------------------------------------------------------


@pytest.fixture
def pairs(tmp_path, images):
    for seed in range(6):
        (images / f"{seed}.jpg").write_bytes(image_bytes(seed))
    (images / "broken.jpg").write_bytes(b"<html>")
    rows = [(f"图片{i}", "", f"{i}.jpg") for i in range(6)]
    write_table(tmp_path, [*rows[:3], ("坏", "", "broken.jpg"), *rows[3:]])
    return tmp_path


def cosines(checkpoint: str, folder) -> np.ndarray:
    """The reference: one forward pass of the model."""
    import torch

    from component.model import BertCLIPModel
    from component.processor import load_processor

    model = BertCLIPModel.from_pretrained(checkpoint).eval()
    images = [Image.open(folder / "images" / f"{i}.jpg") for i in range(6)]
    texts = [f"图片{i}" for i in range(6)]
    inputs = load_processor(checkpoint)(text=texts, images=images, padding=True, return_tensors="pt")
    with torch.no_grad():
        output = model(**inputs)
    return (output.image_embeds * output.text_embeds).sum(dim=1).numpy()


def test_the_clip_filter_keeps_pairs_above_the_threshold_and_draws_a_histogram(pairs, bert_clip_path):
    expected = cosines(str(bert_clip_path), pairs)
    threshold = float(np.sort(expected)[2:4].mean())
    options = ("--clip_model", bert_clip_path, "--batch_size", "4", "--report", pairs / "report.csv")
    done = run(pairs, *options, "--min_similarity", threshold)
    assert done.returncode == 0, done.stderr
    kept = [row[2] for row in read(pairs / "out.csv")[1:]]
    assert kept == [f"{i}.jpg" for i in range(6) if expected[i] >= threshold] and len(kept) == 3
    dropped = {row[1]: row[2] for row in read(pairs / "report.csv")[1:]}
    assert dropped.pop("broken.jpg") == "html"
    for name, reason in dropped.items():
        assert reason == f"dissimilar: {expected[int(name[0])]:.3f}"
    with Image.open(pairs / "out-similarity.png") as histogram:
        assert histogram.format == "PNG" and histogram.width > 500


def test_the_score_of_a_dropped_pair_does_not_make_its_twin_a_duplicate(tmp_path, images):
    (images / "a.jpg").write_bytes(image_bytes(1))
    (images / "b.jpg").write_bytes(image_bytes(1))
    write_table(tmp_path, [("wrong", "", "a.jpg"), ("right", "", "b.jpg")])

    def score(texts, images):
        return [float(text == "right") for text in texts]

    score.crop = None  # it needs no pixels
    assert reasons(tmp_path, score, 0.5, near_duplicates=True) == ["dissimilar", ""]
    assert reasons(tmp_path, score, None, near_duplicates=True) == ["", "near_duplicate"]


# --- the table and the command line ------------------------------------------------------------------------------


def test_order_and_all_columns_survive_many_chunks(tmp_path, images):
    for i in range(10):
        (images / f"{i}.jpg").write_bytes(image_bytes(i, (8, 8)))
    (images / "9.jpg").unlink()
    rows = [[f"{i}", f"{i % 10}.jpg", f'quote " comma , line\n{i}', "007"] for i in range(9001)]
    write_table(tmp_path, rows, header=["text", "filename", "其他", "id"], encoding="utf-8-sig")
    run(tmp_path)
    assert read(tmp_path / "out.csv") == [["text", "filename", "其他", "id"]] + [r for r in rows if r[1] != "9.jpg"]


def test_a_table_without_rows_gives_a_table_without_rows(tmp_path, images):
    write_table(tmp_path, [])
    assert run(tmp_path).returncode == 0
    assert read(tmp_path / "out.csv") == [["text", "url", "filename"]]


@pytest.mark.parametrize(
    "content, options, message",
    [
        ("text,id\na,b\n", [], "no column `filename` (found: text, id)"),
        ("", [], "is empty"),
        ("text,filename\na,b\n", ["--min_chinese", "3"], "from 0 to 1"),
        ("text,filename\na,b\n", ["--min_text", "9", "--max_text", "2"], "above max_text"),
        ("text,filename\na,b\n", ["--min_similarity", "0.2"], "needs --clip_model"),
        ("text,filename\na,b\n", ["--clip_model", "no/such/folder/here"], "no/such/folder/here"),
    ],
)
def test_a_user_mistake_is_reported_in_one_line_and_leaves_no_file(tmp_path, images, content, options, message):
    (tmp_path / "train.csv").write_text(content)
    done = run(tmp_path, *options)
    assert done.returncode == 2
    assert message in done.stderr and "Traceback" not in done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"images", "train.csv"}


def test_a_mistyped_table_is_named_and_no_folder_is_made_for_its_histogram(tmp_path, images):
    done = run(tmp_path, "--train_file", tmp_path / "dta" / "t.csv", "--dry_run", "--clip_model", "m", out=False)
    assert done.returncode == 2 and "t.csv: no such file. Expected a table with the columns" in done.stderr
    assert not (tmp_path / "dta").exists()


def test_the_table_itself_is_never_overwritten(tmp_path, images):
    write_table(tmp_path, [("a", "u", "gone.jpg")])
    done = run(tmp_path, "--out_file", tmp_path / "images" / ".." / "train.csv", out=False)
    assert done.returncode == 2 and "--out_file and --train_file name the same file" in done.stderr
    assert len(read(tmp_path / "train.csv")) == 2
    assert run(tmp_path, out=False).returncode == 2
    (images / "another.jpg").touch()  # an empty folder would end the run
    done = run(tmp_path, "--train_file", tmp_path / "t*.csv", "--out_file", tmp_path / "train.csv", out=False)
    assert done.returncode == 2 and "train.csv is one of the files that are read" in done.stderr
    assert len(read(tmp_path / "train.csv")) == 2


def test_an_old_result_survives_a_run_that_fails(tmp_path):
    (tmp_path / "out.csv").write_text("old")
    with pytest.raises(RuntimeError), filter_output(str(tmp_path / "out.csv"), str(tmp_path / "report.csv")):
        raise RuntimeError
    assert (tmp_path / "out.csv").read_text() == "old"
    assert os.listdir(tmp_path) == ["out.csv"]


def test_two_processes_do_not_write_one_file(tmp_path, images):
    write_table(tmp_path, [("a", "u", "gone.jpg")])
    with filter_output(str(tmp_path / "out.csv")):
        done = run(tmp_path)
    assert done.returncode == 2 and f"another run (process {os.getpid()} on" in done.stderr
    assert done.stderr.count("\n") == 1 and len(read(tmp_path / "out.csv")) == 0


def test_the_histogram_of_a_pattern_is_named_after_its_first_file(tmp_path, images, monkeypatch):
    for name in ("a.csv", "b.csv"):
        (tmp_path / name).write_text("text,filename\n")
    options = ["--train_file", str(tmp_path / "*.csv"), "--image_path", str(images), "--dry_run", "--clip_model", "x"]
    monkeypatch.setattr(sys, "argv", ["filter_data.py", *options])
    assert filter_data.parse_args().histogram == str(tmp_path / "a-similarity.png")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_workers_end_with_their_parent_and_its_temporary_files_are_removed(tmp_path, images, number):
    (images / "a.jpg").write_bytes(image_bytes(1))
    write_table(tmp_path, [("a", "u", "a.jpg")] * 50_000)
    command = [sys.executable, ROOT / "filter_data.py", "--train_file", tmp_path / "train.csv", "--num_workers", "1"]
    command += ["--image_path", images, "--out_file", tmp_path / "out.csv"]
    parent = subprocess.Popen([str(part) for part in command], stderr=subprocess.PIPE, text=True)
    while not re.search(r"\| [1-9]", parent.stderr.readline()):  # rows done
        assert parent.poll() is None
    children = subprocess.run(["pgrep", "-P", str(parent.pid)], capture_output=True, text=True).stdout.split()
    parent.send_signal(number)
    parent.wait()
    for child in children:  # otherwise, the test fails by its timeout
        while Path(f"/proc/{child}").exists():
            time.sleep(0.01)
    with filter_output(str(tmp_path / "out.csv")):
        pass
    assert len(children) >= 1 and set(os.listdir(tmp_path)) == {"images", "train.csv", "out.csv"}


def test_a_report_holds_no_spreadsheet_formulas(tmp_path):
    rows = pd.DataFrame({"text": ["=1+1", "@b", "红"], "filename": ["-1.jpg", "+2.jpg", "3.jpg"]})
    with filter_output(str(tmp_path / "out.csv"), str(tmp_path / "report.csv")) as write:
        write(rows, ["missing", "", "missing"])
    report = [
        ["row", "filename", "reason", "text"],
        ["1", "'-1.jpg", "missing", "'=1+1"],
        ["3", "3.jpg", "missing", "红"],
    ]
    assert read(tmp_path / "report.csv") == report
    assert read(tmp_path / "out.csv") == [["text", "filename"], ["@b", "+2.jpg"]]  # a table to train on


def test_every_deletable_reason_is_a_known_reason():
    assert set(REASONS) >= DELETABLE


def test_kept_rows_read_back_unchanged_whatever_they_contain(tmp_path):
    draw = random.Random(0)
    rows = [["".join(draw.choices("a,'\"; \t\r\n图\u200b\u2028", k=4)) for _ in range(5)] for _ in range(300)]
    path = str(write_table(tmp_path, rows, header=("", "text", "url", "filename", "url")))
    with filter_output(str(tmp_path / "out.csv")) as write:
        for chunk in read_table(path, chunk_rows=90):
            write(chunk, ["", "small", ""] * (len(chunk) // 3))
    (kept,) = read_table(str(tmp_path / "out.csv"))
    assert list(kept.columns) == ["", "text", "url", "filename", "url"]
    assert kept.values.tolist() == [row for number, row in enumerate(rows) if number % 3 != 1]


@pytest.mark.parametrize(
    ("option", "name", "message"),
    [
        ("--out_file", "out.csv.gz", "a table is written as .csv, .tsv or .parquet, not as .gz"),
        ("--out_file", "out.xls", "not as .xls"),
        ("--report", "report.parquet", "will be a plain CSV; give a name that ends in .csv"),
    ],
)
def test_a_name_that_promises_another_format_is_refused(tmp_path, images, monkeypatch, capsys, option, name, message):
    arguments = ["--train_file", "t.csv", "--image_path", str(images), "--out_file", str(tmp_path / "out.csv")]
    monkeypatch.setattr(sys, "argv", ["filter_data.py", *arguments, option, str(tmp_path / name)])
    with pytest.raises(SystemExit, match="2"):
        filter_data.parse_args()
    assert message in capsys.readouterr().err


def test_parquet_comes_in_and_goes_out_by_the_name_of_the_file(tmp_path, images, monkeypatch, capsys):
    (images / "a.jpg").write_bytes(image_bytes(1))
    (tmp_path / "parts").mkdir()
    for part, names in enumerate((["a.jpg", "gone.jpg"], ["a.jpg"])):
        table = {"caption": [f"图{part}"] * len(names), "path": names, "id": ["007"] * len(names)}
        pd.DataFrame(table).to_parquet(tmp_path / "parts" / f"part-{part}.parquet")
    for source in ("parts", "parts/part-{0,1}.parquet"):
        arguments = ["--train_file", str(tmp_path / source), "--image_path", str(images), "--num_workers", "1"]
        arguments += ["--columns", "filename=path", "--out_file", str(tmp_path / "out.parquet")]
        monkeypatch.setattr(sys, "argv", ["filter_data.py", *arguments])
        filter_data.main()
        kept = pd.read_parquet(tmp_path / "out.parquet")  # two chunks
        assert kept.to_dict("list") == {"text": ["图0", "图1"], "filename": ["a.jpg"] * 2, "id": ["007"] * 2}


def test_tables_of_other_columns_are_not_written_into_one(tmp_path, images):
    for name, header in (("a", "text,filename"), ("b", "filename,text")):
        (tmp_path / f"{name}.csv").write_text(header + "\nx,y\n")
    with pytest.raises(ValueError, match=r"b.csv has the columns filename, text, the tables before it text, filename"):
        list(judge_pairs(str(tmp_path / "[ab].csv"), str(images), FilterRules(), num_workers=1))


@pytest.mark.parametrize("counts, said", [({"missing": 2, "bad_filename": 1}, True), ({"missing": 2, "": 1}, False)])
def test_a_wrong_folder_of_images_is_said(counts, said):
    assert ("must be relative to --image_path" in str(Funnel(counts))) == said
