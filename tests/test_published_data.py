"""Published data sets: from a small file of each layout, as docs/data.md lists them, to a training step."""

import base64
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pyarrow.parquet
import pytest
import torch
from conftest import CAPTIONS

from component.datacollator import PairCollator
from component.dataset import PairDataset
from component.evaluation.retrieval_data import read_retrieval_data
from component.image.reading import BadImageError
from component.loss import clip_loss
from component.model import BertCLIPModel
from component.pairs.columns import filename_from_url
from component.pairs.table import new_table, read_table
from component.processor import load_processor

URLS = [f"http://example.com/{number}.png" for number in range(8)]
NAMES = [f"{number}.png" for number in range(8)]
HF_IMAGE = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])


@pytest.fixture(scope="module")
def trained(bert_clip_path):
    """One model and one processor for all data sets."""
    torch.manual_seed(0)
    model = BertCLIPModel.from_pretrained(bert_clip_path)
    return model, load_processor(bert_clip_path), torch.optim.SGD(model.parameters(), 0.01)


def lines(path: Path, rows: Iterator[str]) -> str:
    path.write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
    return str(path)


def json_lines(path: Path, records: list[dict]) -> str:
    return lines(path, (json.dumps(record, ensure_ascii=False) for record in records))


def json_file(path: Path, content) -> str:
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return str(path)


def parquet(path: Path, **columns) -> str:
    path.parent.mkdir(exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return str(path)


def named_by_url(data: Path) -> str:
    """The folder as download_image.py writes it for a table without file names."""
    for number, url in enumerate(URLS):
        path = data / "downloaded" / filename_from_url(url)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes((data / "images" / f"{number}.png").read_bytes())
    return str(data / "downloaded")


def jpeg_names(data: Path, names: list[str]) -> None:
    for number, name in enumerate(names):
        (data / "images" / name).write_bytes((data / "images" / f"{number}.png").read_bytes())


def wukong(data):
    csv = zip(URLS, CAPTIONS, strict=True)
    return lines(data / "wukong.csv", ["url,caption", *(f"{url},{text}" for url, text in csv)]), named_by_url(data)


def laion(data):
    path = parquet(data / "laion.parquet", SAMPLE_ID=list(range(8)), URL=URLS, TEXT=CAPTIONS, similarity=[0.3] * 8)
    return path, named_by_url(data)


def zero(data):
    records = [
        {"Url": "http://page", "Title": text, "ImageUrl": url, "ImageKey": str(number)}
        for number, (text, url) in enumerate(zip(CAPTIONS, URLS, strict=True))
    ]
    return json_lines(data / "zero.json", records), named_by_url(data)


def zero_retrieval(data):
    pairs = zip(CAPTIONS, NAMES, strict=True)
    return json_lines(data / "itr.json", [{"text": text, "image_path": name} for text, name in pairs]), "images"


def muge(data):
    tsv = data / "MR_train_imgs.tsv"
    images = (base64.urlsafe_b64encode((data / "images" / name).read_bytes()).decode() for name in NAMES)
    lines(tsv, (f"{number}\t{image}" for number, image in enumerate(images)))
    queries = [{"query_id": n, "query_text": text, "item_ids": [n]} for n, text in enumerate(CAPTIONS)]
    return json_lines(data / "MR_train_queries.jsonl", queries), None


def flickr8k_cn(data):
    jpeg_names(data, [f"{number}_a.jpg" for number in range(8)])
    return lines(data / "f8k.txt", (f"{n}_a.jpg#zhc#0 {text}" for n, text in enumerate(CAPTIONS))), "images"


def flickr30k_cn(data):
    jpeg_names(data, [f"100{number}.jpg" for number in range(8)])
    return lines(data / "f30k.txt", (f"100{n}#zhm#0\t{text}" for n, text in enumerate(CAPTIONS))), "images"


def coco_cn(data):
    jpeg_names(data, [f"COCO_val2014_00{number}.jpg" for number in range(8)])
    return lines(data / "coco-cn.txt", (f"COCO_val2014_00{n}#0\t{text}" for n, text in enumerate(CAPTIONS))), "images"


def aic_icc(data):
    jpeg_names(data, [f"{number}.jpg" for number in range(4)])
    records = [{"url": "http://a", "image_id": f"{n}.jpg", "caption": CAPTIONS[2 * n : 2 * n + 2]} for n in range(4)]
    return json_file(data / "aic.json", records), "images"


def karpathy(data):
    images = [
        {"filename": name, "split": "train" if number < 6 else "test", "sentences": [{"raw": text}]}
        for number, (name, text) in enumerate(zip(NAMES, CAPTIONS, strict=True))
    ]
    return json_file(data / "dataset_flickr30k.json", {"images": images, "dataset": "flickr30k"}) + "#train", "images"


def coco(data):
    images = [{"id": number, "file_name": name} for number, name in enumerate(NAMES)]
    annotations = [{"id": number, "image_id": number, "caption": text} for number, text in enumerate(CAPTIONS)]
    return json_file(data / "captions_val.json", {"images": images, "annotations": annotations}), "images"


def open_clip(data):
    rows = (f"{name}\t{text}" for name, text in zip(NAMES, CAPTIONS, strict=True))
    return lines(data / "open_clip.csv", ["filepath\ttitle", *rows]), "images"


def hugging_face(data):
    images = [{"bytes": (data / "images" / name).read_bytes(), "path": name} for name in NAMES[:4]]
    captions = [CAPTIONS[2 * number : 2 * number + 2] for number in range(4)]
    return parquet(data / "hf" / "train-0.parquet", image=pyarrow.array(images, HF_IMAGE), caption=captions), None


def image_folder(data):
    records = zip(NAMES, CAPTIONS, strict=True)
    json_lines(data / "images" / "metadata.jsonl", [{"file_name": name, "text": text} for name, text in records])
    return str(data / "images"), "images"


def spark(data):
    for number in range(2):
        rows = slice(4 * number, 4 * number + 4)
        parquet(data / "out.parquet" / f"part-{number}.snappy.parquet", text=CAPTIONS[rows], filename=NAMES[rows])
    (data / "out.parquet" / "_SUCCESS").touch()
    return str(data / "out.parquet"), "images"


LAYOUTS = [wukong, laion, zero, zero_retrieval, muge, flickr8k_cn, flickr30k_cn, coco_cn, aic_icc, karpathy, coco]
LAYOUTS += [open_clip, hugging_face, image_folder, spark]


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.__name__)
def test_a_published_layout_trains(layout, data, trained):
    model, processor, optimizer = trained
    path, image_path = layout(data)
    pairs = PairDataset(path, str(data / "images") if image_path == "images" else image_path, processor, 16)
    assert len(pairs) == (6 if layout is karpathy else 8)
    batch = PairCollator(0)(pairs.__getitems__(range(len(pairs))))
    assert not batch["bad_images"] and len(batch["rows"]) == len(pairs)
    inputs = batch["model_inputs"]
    inputs["pixel_values"] = pairs.images.transform.pixel_values(inputs.pop("pixels"))
    outputs = model(**inputs)
    loss = clip_loss(outputs.image_embeds, outputs.text_embeds, outputs.logit_scale)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    assert loss.isfinite()


def test_recognised_columns_are_logged_in_one_line(data, caplog):
    path, _ = wukong(data)
    chunk = next(read_table(path, ("text", "filename"), only_required=True))
    assert chunk["filename"][0] == filename_from_url(URLS[0])
    (warning,) = [record.getMessage() for record in caplog.records]
    assert warning == f"{path}: reading `caption` as text, `url` as url, filename made from the URL." or (
        warning == f"{path}: reading `caption` as text, filename made from the URL."
    )


def test_columns_named_by_the_user_win_over_known_ones(data):
    path = lines(data / "t.csv", ["title,caption,file", "一,二,1.png"])
    rows = next(read_table(path, columns={"text": "caption", "filename": "file"}, only_required=True))
    assert rows.values.tolist() == [["二", "1.png"]]
    with pytest.raises(
        ValueError,
        match="no column `nowhere` .found: title, caption, file.. Name one of these: --columns text=…",
    ):
        next(read_table(path, columns={"text": "nowhere"}))


@pytest.mark.parametrize(
    "url", [r"http:\/\/a.com\/1.jpg", "'http://a.com/1.jpg'", "['http://a.com/1.jpg']", '["http://a.com/1.jpg", "b"]']
)
def test_a_url_in_quotes_or_brackets_is_the_url(data, url):
    path = json_lines(data / "t.jsonl", [{"text": "一", "url": url}])
    chunk = next(read_table(path, ("url", "filename"), only_required=True))
    assert chunk.values.tolist() == [["http://a.com/1.jpg", filename_from_url("http://a.com/1.jpg")]]


def test_a_second_header_is_skipped_with_a_warning(data, caplog):
    path = lines(data / "t.csv", ["text,filename", "一,1.png", "\ufefftext,filename", "二,2.png"])
    assert next(read_table(path))["text"].tolist() == ["一", "二"]
    assert "line 3: the header comes again" in caplog.text
    path = lines(data / "u.csv", ["text,filename", "一,1.png", "filename,text", "2.png,二"])
    with pytest.raises(ValueError, match="line 3: a second header has the columns in another order"):
        next(read_table(path))


def test_a_first_line_of_excel_names_the_separator(data):
    path = lines(data / "t.csv", ["sep=;", " Text ;filename", "一;1.png"])
    assert next(read_table(path)).values.tolist() == [["一", "1.png"]]


@pytest.mark.parametrize(
    "rows, line",
    [
        (["text,filename", r'"他说\"好\"",1.jpg'], 2),
        (["text,filename", "一,0.jpg", r'"尺寸 5\"",1.jpg', "二,2.jpg"], 3),
        (["text,filename", r'"红,\"大\",码",1.jpg'], 2),
    ],
)
def test_quotes_escaped_by_a_backslash_are_refused_with_a_remedy(data, rows, line):
    path = lines(data / "t.csv", rows)
    with pytest.raises(ValueError, match=rf"line {line}: quotes are escaped by a backslash.*option\(.escape"):
        list(read_table(path))


def test_a_backslash_in_a_well_formed_csv_is_an_ordinary_character(data):
    path = lines(data / "t.csv", ["text,filename", r"显示器 27\",1.jpg", r'"尺寸 5\""",2.jpg', r"C:\a,3.jpg"])
    assert next(read_table(path))["text"].tolist() == ['显示器 27\\"', '尺寸 5\\"', "C:\\a"]


@pytest.mark.parametrize("middle", ["猫,图 (2).jpg\n", "", "猫,x?id=2\n"])
def test_a_stray_quote_is_found_by_the_rows_it_swallows(data, caplog, middle):
    path = lines(data / "t.csv", ["text,filename", f'"狗,图 (1).jpg\n{middle}熊",图 (3).jpg'])
    list(read_table(path))
    assert "stray quote in lines 2 to" in caplog.text


def test_coco_files_that_were_merged_are_refused(data):
    images = [{"id": number % 2, "file_name": f"{number}.png"} for number in range(4)]
    path = json_file(data / "merged.json", {"images": images, "annotations": [{"image_id": 0, "caption": "一"}]})
    with pytest.raises(ValueError, match=r"images\[2\]: the id 0 is that of 0.png too. If files were merged"):
        read_retrieval_data(path, str(data / "images"))


def test_coco_images_without_a_caption_are_counted(data, trained, caplog):
    images = [{"id": number, "file_name": f"{number}.png"} for number in range(4)]
    path = json_file(data / "captions.json", {"images": images, "annotations": [{"image_id": 0, "caption": "一"}]})
    PairDataset(path, str(data / "images"), trained[1], 16)
    assert f"{path}: 3 of 4 images have no caption." in caplog.text


def test_all_splits_are_read_only_with_a_warning(data, caplog):
    path, image_path = karpathy(data)
    path = path.removesuffix("#train")
    assert len(read_retrieval_data(path, str(data / image_path)).texts) == 8
    assert f"all splits are read: train (6 images), test (2 images). To read one, give {path}#train." in caplog.text
    with pytest.raises(ValueError, match="has no split val .found: train, test"):
        read_retrieval_data(f"{path}#val", str(data / image_path))


def test_a_parquet_that_changes_in_use_gives_bad_images(data, trained):
    path, _ = hugging_face(data)
    pairs = PairDataset(path, None, trained[1], 16)
    store, locator = pairs.table.image(0)
    assert store.read(locator) == (data / "images" / "0.png").read_bytes()
    with pytest.raises(BadImageError, match="fewer images than it says"):
        store.read("0 4")
    status = os.stat(path)
    parquet(Path(path), image=pyarrow.array([None] * 4, HF_IMAGE), caption=CAPTIONS[:4])
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    with pytest.raises(BadImageError, match="has changed"):
        store.read(locator)


@pytest.mark.parametrize("name", ["out.csv", "out.tsv", "out.parquet"])
def test_a_table_is_written_as_its_name_says(data, name):
    frame = pd.DataFrame({"text": ["红,\n蓝", 'a"b'], "filename": ["1.png", ""], "n": ["007", "NA"]}, dtype=str)
    with new_table(str(data / name)) as append:
        append(frame)
        append(frame)
    found = pd.concat(read_table(str(data / name)), ignore_index=True)
    assert found.values.tolist() == [*frame.values.tolist(), *frame.values.tolist()]
    with pytest.raises(ValueError, match="is written as .csv, .tsv or .parquet, not as .xls"):
        with new_table(str(data / "x.xls")):
            pass
