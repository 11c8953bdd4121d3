"""evaluate_clip.py and what it builds on: readers, metrics, reports."""

import base64
import json
import os
import re
import subprocess
import sys
import tarfile

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import CAPTIONS, run_python
from fontTools.ttLib import TTFont
from matplotlib import font_manager
from PIL import Image
from sklearn.metrics import balanced_accuracy_score, top_k_accuracy_score

import evaluate_clip
from component.argument import load_arguments
from component.checkpoint import load_checkpoint
from component.dataset import PairDataset
from component.embedding import embed_images, embed_texts
from component.evaluation.image_folder import read_image_folder
from component.evaluation.ranking import Mistake, Side, rank
from component.evaluation.retrieval import evaluate_retrieval
from component.evaluation.retrieval_data import read_retrieval_data
from component.evaluation.zero_shot import evaluate_zero_shot
from component.ground.command import run_script
from component.ground.lock import sole_writer
from component.image.reading import BadImageError
from component.metrics import classification_metrics, retrieval_ranks
from component.processor import load_processor
from component.prompts import PROMPTS, embed_classes
from component.report import figures
from component.report.evaluation_figures import draw_mistakes, draw_recall


@pytest.fixture(scope="module")
def checkpoint(bert_clip_path):
    return load_checkpoint(bert_clip_path)


def write_jsonl(path, rows) -> str:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def write_tsv(data, ids) -> str:
    lines = []
    for number, image_id in enumerate(ids):
        encode = base64.b64encode if number % 2 else base64.urlsafe_b64encode
        lines.append(f"{image_id}\t{encode((data / 'images' / f'{number}.png').read_bytes()).decode()}\n")
    (data / "imgs.tsv").write_text("".join(lines))
    return str(data / "imgs.tsv")


def recalls_by_hand(scores: np.ndarray, right: np.ndarray) -> dict[str, float]:
    """Recall computed in plain Python. scores, right (bool): (texts, images)."""
    result = {}
    for name, score, answer in (("text_to_image", scores, right), ("image_to_text", scores.T, right.T)):
        hits = {k: [] for k in (1, 5, 10)}
        for row, good in zip(score, answer, strict=True):
            if good.any():
                order = sorted(range(len(row)), key=lambda i, row=row, good=good: (-row[i], good[i]))
                for k in hits:
                    hits[k].append(any(good[i] for i in order[:k]))
        result |= {f"{name}_recall@{k}": float(np.mean(hit)) for k, hit in hits.items()}
    return result | {"mean_recall": float(np.mean(list(result.values())))}


# ---- retrieval ----


def test_chinese_clip_files_give_the_recalls_computed_by_hand(checkpoint, data, tmp_path):
    """Several images per text, several texts per image, a repeated text, and images without a text."""
    ids = [100 + number for number in range(8)]
    wanted = {"红色的圆": [102, 103], "蓝色的方块": [103], "红色的圆 ": [100], "一只小狗": [101, 106], "狗": [101]}
    rows = [{"text_id": i, "text": text, "image_ids": wanted[text]} for i, text in enumerate(wanted)]
    found = read_retrieval_data(write_jsonl(tmp_path / "texts.jsonl", rows), write_tsv(data, ids))
    assert found.image_names == [f"{data}/imgs.tsv/{i}" for i in ids]

    model, processor = checkpoint
    result = evaluate_retrieval(model, processor, found, batch_size=3)
    images = embed_images(model, processor, [str(data / "images" / f"{n}.png") for n in range(8)]).embeds
    scores = (embed_texts(model, processor, list(wanted)).embeds @ images.T).numpy()
    right = np.array([[i in image_ids for i in ids] for image_ids in wanted.values()])
    for key, value in recalls_by_hand(scores, right).items():
        assert result.metrics[key] == pytest.approx(value), key
    assert len(result.ranks["text_to_image"]) == 5
    assert len(result.ranks["image_to_text"]) == 5  # images 104, 105 and 107 have no text: gallery, not query
    assert (result.metrics["texts"], result.metrics["images"], result.metrics["pairs"]) == (5, 8, 7)


def test_each_coco_caption_is_a_query(checkpoint, data, tmp_path):
    content = {
        "images": [{"id": n, "file_name": f"{n}.png"} for n in range(8)],
        "annotations": [{"id": i, "image_id": i % 6, "caption": CAPTIONS[i % 8] + "的" * (i // 8)} for i in range(12)],
    }
    (tmp_path / "coco.json").write_text(json.dumps(content), encoding="utf-8")
    found = read_retrieval_data(str(tmp_path / "coco.json"), str(data / "images"))
    assert (len(found.texts), len(found.images), len(found.pairs)) == (12, 8, 12)
    model, processor = checkpoint
    result = evaluate_retrieval(model, processor, found)
    images = embed_images(model, processor, [str(data / "images" / f"{n}.png") for n in range(8)]).embeds
    scores = (embed_texts(model, processor, found.texts).embeds @ images.T).numpy()
    right = np.array([[image == i % 6 for image in range(8)] for i in range(12)])
    for key, value in recalls_by_hand(scores, right).items():
        assert result.metrics[key] == pytest.approx(value), key


def test_equal_texts_of_a_csv_are_one_query_with_several_right_images(data):
    (data / "t.csv").write_text("text,filename\n红,0.png\n蓝,1.png\n红,2.png\n红,0.png\n ,3.png\n", encoding="utf-8")
    found = read_retrieval_data(str(data / "t.csv"), str(data / "images"))
    assert found.texts == ["红", "蓝"]
    assert found.image_names == ["0.png", "1.png", "2.png"]
    assert found.pairs == [(0, 0), (1, 1), (0, 2)]


def test_bad_images_and_texts_without_an_image_are_left_out(checkpoint, data):
    (data / "t.csv").write_text("text,filename\n红,0.png\n红,gone.png\n蓝,../1.png\n绿,2.png\n", encoding="utf-8")
    result = evaluate_retrieval(*checkpoint, read_retrieval_data(str(data / "t.csv"), str(data / "images")))
    assert result.bad_images == {1: "no such file", 2: "bad_filename: filename climbs out of image_path with '..'"}
    assert (result.metrics["texts"], result.metrics["images"], result.metrics["pairs"]) == (2, 2, 2)
    assert result.metrics["bad_images"] == 2
    for mistake in result.mistakes["text_to_image"]:  # numbered as in the data, gone ones included
        assert mistake.query in (0, 2) and {mistake.first, mistake.right} == {0, 3}
    assert any(result.mistakes.values())


def test_data_without_a_readable_image_is_refused(checkpoint, data):
    (data / "t.csv").write_text("text,filename\n红,gone.png\n", encoding="utf-8")
    with pytest.raises(ValueError, match="gone.png: no such file"):
        evaluate_retrieval(*checkpoint, read_retrieval_data(str(data / "t.csv"), str(data / "images")))


def test_damaged_images_of_a_tsv_are_bad_images(data, tmp_path):
    good = base64.b64encode((data / "images" / "0.png").read_bytes()).decode()
    (data / "imgs.tsv").write_text(f"1\t{good}\n2\t{good[:101]}\n3\t{good[:100]}\n\n4\t\n5\t{good}", encoding="utf-8")
    text = {"text_id": 1, "text": "红", "image_ids": [5, 6]}
    found = read_retrieval_data(write_jsonl(tmp_path / "t.jsonl", [text]), str(data / "imgs.tsv"))
    assert found.image_names == [f"{data}/imgs.tsv/{image_id}" for image_id in range(1, 7)]
    assert found.pairs == [(0, 4), (0, 5)]
    assert np.array_equal(np.asarray(found.images[0]), np.asarray(found.images[4]))
    for row, reason in ((1, "not base64"), (2, "truncated"), (3, "empty"), (5, "not in imgs.tsv")):
        with pytest.raises(BadImageError, match=reason):
            found.images[row]


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("t.txt", "", "t.txt is empty"),
        ("t.tar.gz", "", "t.tar.gz is a packed tar"),
        ("t.tgz", "", "t.tgz is a packed tar"),
        ("t.jsonl", "[" * 100_000, "t.jsonl, line 1 is not JSON: nested too deeply"),
        ("t.json", "[" * 100_000, "t.json is not JSON: nested too deeply"),
        ("t.jsonl", '{"text": NaN, "image_ids": [1]}', "line 1: `text` is nan; expected str"),
        ("t.jsonl", '{"text": "红", "image_ids": [[1]]}', "line 1: `image_ids` has .1.; expected int or str"),
        ("t.jsonl", '{"text": "红", "image_ids": ["\\ud800"]}', "line 1: `image_ids` holds half a character"),
        ("t.jsonl", '{"text": "\\ud800", "image_ids": [1]}', "has no text with an image"),
        ("t.jsonl", '{"text": 1' + "0" * 5000 + "}", "line 1 is not JSON: Exceeds the limit"),
        ("t.jsonl", "<html>", "is a web page"),
        ("t.json", '{"images": [{"id": 1, "file_name": "\\ud800"}], "annotations": []}', "`file_name` holds half"),
        ("t.json", '{"images": [],\n"annotations": ]}', "is not JSON: Expecting value in line 2"),
        ("t.jsonl", "{", "t.jsonl, line 1 is not JSON"),
        ("t.jsonl", '{"text": "红"}\n', "t.jsonl, line 1: `image_ids` is missing .found: text"),
        ("t.jsonl", '{"text": "红", "image_ids": 7}\n', "`image_ids` is 7; expected list"),
        ("t.jsonl", '{"text": "红", "image_ids": []}\n', "has no text with an image"),
        ("t.json", "[", "t.json is not JSON"),
        ("t.json", "[]", "t.json is empty. It needs records"),
        ("t.json", '{"images": [], "annotations": [{"image_id": 3, "caption": "红"}]}', "no image with the id 3"),
        ("t.csv", "text,size\n", "has no column `filename`"),
        ("t.csv", "text,filename\n", "has no text with an image"),
    ],
)
def test_a_malformed_file_is_named_with_the_line(data, name, content, message):
    (data / name).write_text(content, encoding="utf-8")
    image_path = write_tsv(data, range(8)) if name.endswith("jsonl") else str(data / "images")
    with pytest.raises(ValueError, match=message):
        read_retrieval_data(str(data / name), image_path)


@pytest.mark.parametrize(
    "content, message",
    [
        ("1 abc\n", "line 1: expected id<TAB>base64"),
        ("1\ta\n1\tb\n", "line 2: the id 1 occurs twice"),
        ("\x1f\x8b", "imgs.tsv is packed"),
        ("PK\x03\x04", "an Excel file or a zip"),
    ],
)
def test_a_malformed_tsv_is_named_with_the_line(data, tmp_path, content, message):
    (data / "imgs.tsv").write_bytes(content.encode("latin-1"))
    texts = write_jsonl(tmp_path / "t.jsonl", [{"text": "红", "image_ids": [1]}])
    with pytest.raises(ValueError, match=message):
        read_retrieval_data(texts, str(data / "imgs.tsv"))


def test_a_folder_instead_of_the_tsv_is_refused(data, tmp_path):
    texts = write_jsonl(tmp_path / "t.jsonl", [{"text": "红", "image_ids": [1]}])
    with pytest.raises(ValueError, match="is neither that file nor a folder with it; .*t.jsonl needs the tsv"):
        read_retrieval_data(texts, str(data / "images"))
    with pytest.raises(ValueError, match="is not a folder"):
        read_retrieval_data(str(data / "train.csv"), str(data / "train.csv"))


def same_pairs_in_every_format(data) -> dict[str, dict]:
    """The pairs of train.csv, as keys `test_file` and `image_path` for each format."""
    images, jsonl = str(data / "images"), [{"text": text, "image_ids": [n]} for n, text in enumerate(CAPTIONS)]
    coco = {
        "images": [{"id": n, "file_name": f".//{n}.png"} for n in range(8)],
        "annotations": [{"image_id": n, "caption": text} for n, text in enumerate(CAPTIONS)],
    }
    (data / "coco.json").write_text(json.dumps(coco), encoding="utf-8")
    pd.read_csv(data / "train.csv").to_parquet(data / "t.parquet")
    for part in range(2):
        with tarfile.open(data / f"{part}.tar", "w") as tar:
            for n in range(4 * part, 4 * part + 4):
                (data / "images" / f"{n}.txt").write_text(CAPTIONS[n], encoding="utf-8")
                for ending in ("png", "txt"):
                    tar.add(data / "images" / f"{n}.{ending}", f"{n}.{ending}")
    os.rename(write_tsv(data, range(8)), data / "all_imgs.tsv")
    return {
        "csv": {"test_file": str(data / "train.csv"), "image_path": images},
        "parquet": {"test_file": [str(data / "t.parquet")], "image_path": images},
        "shards": {"test_file": str(data / "{0..1}.tar"), "image_path": None},
        "jsonl with its tsv": {
            "test_file": write_jsonl(data / "t.jsonl", jsonl),
            "image_path": str(data / "all_imgs.tsv"),
        },
        "jsonl next to a tsv": {
            "test_file": write_jsonl(data / "all_texts.jsonl", jsonl),
            "image_path": images,
        },
        "coco": {"test_file": str(data / "coco.json"), "image_path": images},
    }


def test_evaluation_and_training_read_the_same_pairs_in_every_format(data, bert_clip_path):
    processor = load_processor(bert_clip_path)
    wanted = None
    for name, files in same_pairs_in_every_format(data).items():
        found = read_retrieval_data(**files)
        assert found.texts == CAPTIONS and found.pairs == [(n, n) for n in range(8)], name
        dataset = PairDataset(files["test_file"], files["image_path"], processor, max_seq_length=16)
        good, inputs, _ = dataset.images.load(range(len(dataset)))
        pixel_values = dataset.images.transform.pixel_values(inputs["pixels"])
        wanted = pixel_values if wanted is None else wanted
        assert list(good) == list(range(8)) and torch.equal(pixel_values, wanted), name
        assert [len(np.unique(ids)) for ids in (dataset.table.text_ids, dataset.table.image_ids)] == [8, 8], name
        evaluated = processor.image_processor(list(found.images), return_tensors="pt")["pixel_values"]
        assert torch.equal(evaluated, wanted), name


def test_a_recipe_takes_every_format_and_is_refused_without_the_images(data, train_args):
    for files in same_pairs_in_every_format(data).values():
        keys = {"train_file": files["test_file"], **files}
        assert load_arguments(train_args(**keys)).image_path == files["image_path"]
    texts = write_jsonl(data / "t.jsonl", [{"text": "红", "image_ids": [1]}])
    with pytest.raises(ValueError, match="`train_file`: .* is neither that file nor .*t.jsonl needs the tsv"):
        load_arguments(train_args(train_file=texts))
    with pytest.raises(ValueError, match="`train_file`: [^ ]*t.jsonl needs the tsv"):
        load_arguments(train_args(train_file=texts, image_path=None))
    (data / "t.tar.gz").touch()
    with pytest.raises(ValueError, match="`test_file`: .*t.tar.gz is a packed tar"):
        load_arguments(train_args(test_file=str(data / "t.tar.gz")))


def test_several_spellings_of_a_file_name_are_one_image(data, bert_clip_path):
    names = ["d/0.png", "./d/0.png", "d//0.png", "d\\0.png", "d/./0.png", "1.png"]
    (data / "images" / "d").mkdir()
    os.rename(data / "images" / "0.png", data / "images" / "d" / "0.png")
    (data / "t.csv").write_text("text,filename\n" + "".join(f"红{n},{name}\n" for n, name in enumerate(names)))
    found = read_retrieval_data(str(data / "t.csv"), str(data / "images"))
    assert found.image_names == ["d/0.png", "1.png"] and found.pairs == [
        (0, 0),
        (1, 0),
        (2, 0),
        (3, 0),
        (4, 0),
        (5, 1),
    ]
    dataset = PairDataset(str(data / "t.csv"), str(data / "images"), load_processor(bert_clip_path), max_seq_length=16)
    assert len(np.unique(dataset.table.image_ids)) == 2
    assert list(dataset.images.load(range(6))[0]) == list(range(6))


# ---- mistakes ----


def test_ranks_and_mistakes_equal_a_hand_calculation():
    queries = torch.tensor([[1.0, 0.5, 0.2, 0.1], [0.2, 0.3, 0.1, 0.9], [0.4, 0.4, 0.3, 0.1], [0.1, 0.9, 0.9, 0.1]])
    index = torch.tensor([[0, 1, 1, 2, 3], [0, 0, 2, 2, 2]])
    sides = Side(torch.tensor([10, 11, 12, 13]), queries, index[0]), Side(torch.arange(20, 24), torch.eye(4), index[1])
    ranks, mistakes = rank(*sides, 10)
    assert ranks.tolist() == [1, 3, 3, 2]
    assert mistakes == [Mistake(11, 23, 20, rank=3), Mistake(12, 20, 22, rank=3), Mistake(13, 21, 22, rank=2)]
    assert rank(*sides, 1)[1] == mistakes[:1]


def test_a_model_of_nans_ranks_last():
    nan = torch.full((3, 2), torch.nan)
    ranks = retrieval_ranks(nan, torch.eye(5, 2), torch.arange(3), torch.arange(3))
    assert (ranks >= 5).all()


# ---- zero-shot ----


def make_image_folder(data, tmp_path, folders) -> str:
    for number in range(8):
        folder = tmp_path / "classes" / folders[number % len(folders)]
        folder.mkdir(parents=True, exist_ok=True)
        os.link(data / "images" / f"{number}.png", folder / f"{number}.png")
    return str(tmp_path / "classes")


def test_zero_shot_accuracy_agrees_with_scikit_learn(checkpoint, data, tmp_path):
    model, processor = checkpoint
    names = ["红色", "蓝色", "绿色", "黄色", "白色", "黑色", "狗"]
    folder = make_image_folder(data, tmp_path, "abcdefg")
    (tmp_path / "names.txt").write_text("\n".join(names), encoding="utf-8")
    found = read_image_folder(folder, str(tmp_path / "names.txt"))
    assert found.labels == [0, 0, 1, 2, 3, 4, 5, 6]
    metrics = evaluate_zero_shot(model, processor, found, batch_size=3).metrics
    scores = (embed_images(model, processor, found.images).embeds @ embed_classes(model, processor, names).T).numpy()
    assert metrics["top1"] == pytest.approx(top_k_accuracy_score(found.labels, scores, k=1, labels=range(7)))
    assert metrics["top5"] == pytest.approx(top_k_accuracy_score(found.labels, scores, k=5, labels=range(7)))
    assert metrics["mean_per_class"] == pytest.approx(balanced_accuracy_score(found.labels, scores.argmax(axis=1)))
    assert (metrics["images"], metrics["classes"], metrics["bad_images"]) == (8, 7, 0)


def test_classification_metrics_equal_a_hand_calculation():
    # class 0: 1 of 3 right, class 2: 1 of 1 right; class 1 has no image
    metrics = classification_metrics(torch.tensor([1, 2, 6, 1]), torch.tensor([0, 0, 0, 2]))
    assert metrics == {"top1": 0.5, "top5": 0.75, "mean_per_class": pytest.approx((1 / 3 + 1) / 2)}


def test_a_class_is_the_mean_of_its_prompts(checkpoint):
    model, processor = checkpoint
    texts = embed_texts(model, processor, [prompt.format("红色") for prompt in PROMPTS]).embeds
    mean = torch.nn.functional.normalize(texts.mean(dim=0), dim=0)
    torch.testing.assert_close(embed_classes(model, processor, ["蓝色", "红色"])[1], mean)
    assert len(set(PROMPTS)) == len(PROMPTS) and all(prompt.count("{}") == 1 for prompt in PROMPTS)


@pytest.mark.parametrize(
    "names",
    [
        "10\t十\n9\t九\n8\t八\n",  # a list of more classes
        "10,十\n9,九\n",
        "10 十\n9 九\n",
        "10：十\n\n9 = 九\n",
        "九\n\n十\n",  # in the order of the folders: those that are numbers are sorted as numbers
    ],
)
def test_class_names_by_folder_and_by_order(data, tmp_path, names):
    folder = make_image_folder(data, tmp_path, ["10", "9"])
    (tmp_path / "names.txt").write_text(names, encoding="utf-8")
    found = read_image_folder(folder, str(tmp_path / "names.txt"))
    assert found.class_names == ["九", "十"]
    assert found.labels == [0] * 4 + [1] * 4


def test_names_that_begin_with_the_folder_may_be_in_any_order(data, tmp_path):
    folder = make_image_folder(data, tmp_path, ["狗", "黑 猫"])
    (tmp_path / "names.txt").write_text("黑 猫\n狗\n", encoding="utf-8")
    assert read_image_folder(folder, str(tmp_path / "names.txt")).class_names == ["狗", "黑 猫"]
    (tmp_path / "names.txt").write_text("黑 猫 black cat\n狗 dog\n", encoding="utf-8")
    assert read_image_folder(folder, str(tmp_path / "names.txt")).class_names == ["dog", "black cat"]


@pytest.mark.parametrize(
    "names, message",
    [
        ("鹤\n鹤\n", "names.txt: the folders a and b are both named 鹤"),
        ("a\t鹤\nb\t鹤\u200b\n", "names.txt: the folders a and b are both named 鹤"),
        ("a\tDog\nb\tdog\n", "names.txt: the folders a and b are both named dog"),
        ("a\t鹤\nb\t\u200b\u2060\n", "names.txt: the name of the folder b has no visible character"),
    ],
)
def test_classes_that_cannot_be_told_apart_or_show_nothing_are_refused(data, tmp_path, names, message):
    (tmp_path / "names.txt").write_text(names, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        read_image_folder(make_image_folder(data, tmp_path, ["a", "b"]), str(tmp_path / "names.txt"))


@pytest.mark.parametrize("hidden", [".ipynb_checkpoints", "__MACOSX"])
def test_hidden_folders_and_files_are_ignored(data, tmp_path, hidden):
    folder = make_image_folder(data, tmp_path, [hidden, "a", "b"])
    (tmp_path / "classes" / "a" / "._1.png").touch()
    (tmp_path / "names.txt").write_text("甲\n乙\n", encoding="utf-8")
    found = read_image_folder(folder, str(tmp_path / "names.txt"))
    assert found.class_names == ["甲", "乙"] and found.labels == [0, 0, 0, 1, 1]


@pytest.mark.parametrize(
    "names, message",
    [
        ("九\n", "has 1 class names, but there are 2 folders"),
        ("9\t九\n", "no line .* for 10"),
        ("九,9\n十,10\n", "line 1: '九,9' contains the folder 9. Write each line as folder<TAB>name"),
        ('"9","九"\n"10","十"\n', "line 1: .* contains the folder 9"),
        ("9 九\n十\n", "line 1: '9 九' contains the folder 9"),
        ("9\t九\n10 十\n", "line 2: '10 十' has a folder or a name, not both"),
        ("9\t九\n10\t\n", "line 2: .* not both"),
        ("9\t九\n9\t玖\n10\t十\n", "line 2: the folder 9 has two names, 九 and 玖"),
    ],
)
def test_class_names_that_do_not_match_are_refused(data, tmp_path, names, message):
    (tmp_path / "names.txt").write_text(names, encoding="utf-8")
    with pytest.raises(ValueError, match=f"names.txt.*{message}"):
        read_image_folder(make_image_folder(data, tmp_path, ["10", "9"]), str(tmp_path / "names.txt"))
    with pytest.raises(ValueError, match="contains no folders"):
        read_image_folder(str(data / "images"), str(tmp_path / "names.txt"))


def test_class_names_in_another_encoding_are_refused_with_a_remedy(data, tmp_path):
    (tmp_path / "names.txt").write_text("第九类\n第十类\n", encoding="gbk")
    with pytest.raises(ValueError, match="names.txt is not UTF-8 .*in line 1.* GBK .*: iconv -f gb18030"):
        read_image_folder(make_image_folder(data, tmp_path, ["10", "9"]), str(tmp_path / "names.txt"))


def test_class_names_as_windows_saves_them_are_read(data, tmp_path):
    folder = make_image_folder(data, tmp_path, ["10", "9"])
    for encoding in ("utf-8-sig", "utf-16"):
        (tmp_path / "names.txt").write_text("九\r\n十\r\n", encoding=encoding)
        assert read_image_folder(folder, str(tmp_path / "names.txt")).class_names == ["九", "十"]


# ---- the script ----


def errors(done: subprocess.CompletedProcess) -> list[str]:
    """The lines of stderr without the warning about a missing Chinese font, which another test covers."""
    return [line for line in done.stderr.splitlines() if not line.startswith("no Chinese font is installed")]


def test_retrieval_through_the_command_line(bert_clip_path, data, tmp_path):
    output = tmp_path / "deep" / "evaluation"
    options = ["--test_file", data / "train.csv", "--image_path", data / "images", "--output", output]
    done = run_python("evaluate_clip.py", "--model", bert_clip_path, *options)
    assert (done.returncode, errors(done)) == (0, [])
    table = (output / "metrics.md").read_text(encoding="utf-8")
    assert table in done.stdout and table.startswith("|  | R@1 | R@5 | R@10 | median rank |")
    metrics = json.loads((output / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["model"] == bert_clip_path and metrics["images"] == 8
    assert metrics["text_to_image_recall@10"] == 1
    names = {"metrics.json", "metrics.md", "recall.png", "mistakes_text_to_image.png", "mistakes_image_to_text.png"}
    assert set(os.listdir(output)) == names
    with Image.open(output / "mistakes_text_to_image.png") as image:
        red, green, blue = np.asarray(image.convert("RGB")).reshape(-1, 3).T
    assert ((red.astype(int) - green > 60) | (blue.astype(int) - red > 60)).mean() > 0.01  # the coloured images


def run_here(monkeypatch, options: dict) -> int:
    """Run the script in this process: a new one takes seconds to import torch."""
    words = [str(word) for option in options.items() for word in option]
    monkeypatch.setattr(sys, "argv", ["evaluate_clip.py", *words])
    try:
        return run_script(evaluate_clip.main)
    except SystemExit as stop:  # argparse's own
        return stop.code


@pytest.fixture
def options(bert_clip_path, data, tmp_path) -> dict:
    return {
        "--model": bert_clip_path,
        "--test_file": data / "train.csv",
        "--image_path": data / "images",
        "--output": tmp_path / "out",
    }


def zero_shot_options(options, data, tmp_path) -> dict:
    folder = make_image_folder(data, tmp_path, "ab")
    (tmp_path / "classes" / "a" / "bad.png").write_text("no image")
    (tmp_path / "names.txt").write_text("红色\n<b>蓝色\n", encoding="utf-8")
    options = {key: options[key] for key in ("--model", "--output")}
    return {**options, "--class_names": tmp_path / "names.txt", "--image_path": folder, "--html": tmp_path / "z.html"}


@pytest.mark.parametrize("option, value", [("--columns", "text=caption"), ("--keep_list", "a.parquet")])
def test_what_only_pairs_have_is_refused_for_classes(option, value, options, data, tmp_path, monkeypatch, capsys):
    assert run_here(monkeypatch, {**zero_shot_options(options, data, tmp_path), option: value}) == 2
    assert f"{option} is for pairs" in capsys.readouterr().err


def test_retrieval_and_zero_shot_share_a_folder_and_each_writes_a_page(options, data, tmp_path, monkeypatch, capsys):
    assert run_here(monkeypatch, {**options, "--html": tmp_path / "r.html"}) == 0
    retrieval = {name: (tmp_path / "out" / name).read_bytes() for name in os.listdir(tmp_path / "out")}
    capsys.readouterr()
    assert run_here(monkeypatch, zero_shot_options(options, data, tmp_path)) == 1
    out, err = capsys.readouterr()
    assert "| top-1 | top-5 | mean per class |" in out and "bad.png: text" in err
    assert {name: (tmp_path / "out" / name).read_bytes() for name in retrieval} == retrieval
    assert set(os.listdir(tmp_path / "out")) - retrieval.keys() == {
        "zero_shot.json",
        "zero_shot.md",
        "zero_shot_mistakes.png",
    }
    page, zero_shot = ((tmp_path / name).read_text(encoding="utf-8") for name in ("r.html", "z.html"))
    recall = json.loads(retrieval["metrics.json"])["text_to_image_recall@1"]
    assert f"<td>{100 * recall:.1f}</td>" in page and page.count("<polyline") == 2
    assert page.count("<figure>") == 3 * page.count('class="mistake"') > 0
    assert "<polyline" not in zero_shot and "&lt;b&gt;蓝色" in zero_shot and "<b>" not in zero_shot
    assert zero_shot.count("--share:") == 2
    for html in (page, zero_shot):
        assert not re.findall(r"(?:src|href)\s*=\s*\"(?!data:image/jpeg;base64,)|@import|<script", html)


def test_without_matplotlib_numbers_are_written_and_old_figures_removed(options, tmp_path, monkeypatch, capsys):
    (tmp_path / "out").mkdir()
    for name in ("mine.txt", "recall.png", "mistakes_text_to_image.png", "metrics.json"):
        (tmp_path / "out" / name).write_text("old")
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # as where it is not installed
    assert run_here(monkeypatch, options) == 0
    assert (
        "has the numbers, but no figures: a figure needs matplotlib: pip install matplotlib" in capsys.readouterr().err
    )
    assert set(os.listdir(tmp_path / "out")) == {"mine.txt", "metrics.json", "metrics.md"}
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["images"] == 8


def test_a_second_evaluation_into_the_same_folder_is_refused(options, tmp_path, monkeypatch, capsys):
    with sole_writer(str(tmp_path / "out"), inside=True):
        assert run_here(monkeypatch, options) == 2
    assert "out is being written by another run (process" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.fixture
def only_dejavu(monkeypatch):
    """matplotlib's list of fonts as on a machine without a Chinese one."""
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [])
    fonts = [font for font in font_manager.fontManager.ttflist if font.name == "DejaVu Sans"]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", fonts)
    return fonts[0].fname


def test_a_chinese_font_that_matplotlib_has_not_listed_yet_is_found(only_dejavu, tmp_path, monkeypatch):
    """matplotlib's list is a cache, and an unknown font name must not lead to boxes."""
    font = TTFont(only_dejavu)
    for table in font["cmap"].tables:
        table.cmap |= {ord(character): "A" for character in "中图"}
    for record in font["name"].names:
        record.string = "Newly Installed"
    font.save(tmp_path / "new.ttf")
    assert figures.chinese_font() is None
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [only_dejavu, str(tmp_path / "new.ttf")])
    assert figures.chinese_font() == "Newly Installed"


def test_without_a_chinese_font_figures_are_drawn_with_a_warning(only_dejavu, tmp_path, caplog, recwarn):
    path = tmp_path / "mistakes.png"
    draw_mistakes(str(path), [(Image.new("RGB", (8, 8)), "红色$的", "一只很长很长很长很长很长的狗", 2)])
    assert "no Chinese font is installed" in caplog.text
    assert not [warning for warning in recwarn if "Glyph" in str(warning.message)]
    assert Image.open(path).format == "PNG" and os.listdir(tmp_path) == ["mistakes.png"]


def test_figures_of_a_model_without_mistakes(tmp_path):
    draw_mistakes(str(tmp_path / "mistakes.png"), [])
    draw_recall(str(tmp_path / "recall.png"), {"text → image": torch.ones(3, dtype=torch.long)})
    assert len(os.listdir(tmp_path)) == 2


@pytest.mark.parametrize(
    "change, message",
    [
        ({"--model": "nowhere/at/all"}, "nowhere/at/all is not a model folder"),
        ({"--test_file": "gone.csv"}, "gone.csv: no such file"),
        ({"--image_path": "gone"}, "the image folder gone does not exist"),
        ({"--batch_size": "0"}, "--batch_size 0: expected a number of items from 1"),
    ],
)
def test_a_bad_argument_gives_one_clear_line(options, tmp_path, change, message, monkeypatch, capsys):
    assert run_here(monkeypatch, {**options, **change}) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and message in error and not (tmp_path / "out").exists()


# ---- the trainer ----


def test_the_best_model_is_kept_and_evaluates_to_the_numbers_of_training(train_args, data, tmp_path):
    keys = dict(
        test_file=str(data / "train.csv"),
        num_train_epochs=3,
        eval_strategy="epoch",
        save_strategy="epoch",
        load_best_model_at_end=True,
        metric_for_best_model="mean_recall",
        per_device_eval_batch_size=3,
        image_feature_cache="off",  # whose features are rounded to fp16, which turns near ties
    )
    done = run_python("train_clip.py", "--train_args_file", train_args(**keys))
    assert done.returncode == 0, done.stderr
    output = tmp_path / "output"
    state = json.loads((output / "trainer_state.json").read_text())
    history = {entry["step"]: entry["eval_mean_recall"] for entry in state["log_history"] if "eval_loss" in entry}
    assert state["best_metric"] == max(history.values())
    best_step = int(state["best_model_checkpoint"].rsplit("-", 1)[1])
    assert history[best_step] == state["best_metric"]

    final = str(output / "checkpoint-final")
    best, _ = load_checkpoint(str(output / state["best_model_checkpoint"]))
    for name, tensor in load_checkpoint(final)[0].state_dict().items():
        assert torch.equal(tensor, best.state_dict()[name]), name

    data_read = read_retrieval_data(keys["test_file"], str(data / "images"))
    metrics = evaluate_retrieval(*load_checkpoint(final), data_read).metrics
    trained = json.loads((output / "test_results.json").read_text())
    assert trained["eval_mean_recall"] == state["best_metric"]
    shared = [key for key in metrics if f"eval_{key}" in trained]
    assert len(shared) >= 10
    for key in shared:
        assert metrics[key] == pytest.approx(trained[f"eval_{key}"]), key
