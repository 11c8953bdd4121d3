"""Tables and images of any origin."""

import gzip
import random
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet
import pytest
import torch
import webdataset
from conftest import CAPTIONS, run_python
from PIL import Image

from component.datacollator import PairCollator
from component.dataset import PairDataset
from component.filter.rules import FilterRules, PairCheck
from component.image.load import load_image
from component.image.reading import BadImageError
from component.pairs.caption import is_caption
from component.pairs.csv_table import csv_writer
from component.pairs.image_stores import ImageFolder
from component.pairs.paths import image_file, normal_name, writable_file
from component.pairs.table import read_table
from component.pairs.table_files import expand
from component.processor import load_processor


@pytest.fixture
def processor(bert_clip_path):
    return load_processor(bert_clip_path)


def table(path, content: str, encoding: str = "utf-8") -> str:
    path.write_text(content, encoding=encoding)
    return str(path)


# ---- the table ----


def test_cells_stay_as_they_are_written(tmp_path):
    path = table(tmp_path / "t.csv", 'text,url,filename\nNA,,007\n1e5,u,1e5\n"一,""二""",u,"a,b.jpg"\nnan,u,None\n')
    rows = [row for chunk in read_table(path) for row in chunk.values.tolist()]
    assert rows == [["NA", "", "007"], ["1e5", "u", "1e5"], ['一,"二"', "u", "a,b.jpg"], ["nan", "u", "None"]]


def test_byte_order_mark_is_not_part_of_the_first_column(tmp_path):
    path = table(tmp_path / "t.csv", "text,filename\n一,1.jpg\n", "utf-8-sig")
    assert list(next(read_table(path)).columns) == ["text", "filename"]


def test_chunks_keep_the_order_and_lose_no_row(tmp_path):
    path = table(tmp_path / "t.csv", "text,filename\n" + "".join(f"{n},{n}.jpg\n" for n in range(25)))
    chunks = list(read_table(path, chunk_rows=10))
    assert [len(chunk) for chunk in chunks] == [10, 10, 5]
    assert [text for chunk in chunks for text in chunk["text"]] == [str(n) for n in range(25)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("text,size\na,b\n", "no column `filename` .found: text, size"),
        ("", "empty"),
        ("\n \n", "empty"),
        ('\n"text,filename\na,b\n', "in line 2: a quote that opens in it is never closed"),
        ("text,filename\na,b,c,d\n", "in line 2: it has 4 cells, more than the 2 of the header"),
        ("text,filename\n" + "a,b\n" * 2500 + "红裙,夏季,包邮\n", "in line 2502: it has 3 cells"),
        ('text,filename\n"a\r\nb\rc",1.jpg\n\n"d\ne",f\nx,y,\n', "in line 8: it has 3 cells"),
        ("text,filename\rx,y\rx,y,z\r", "in line 3: it has 3 cells"),
        ('text,filename\nx,y\n"a,b\n', "in line 3: a quote that opens in it is never closed"),
        (f'text,filename\nx,y\n"{"a,b" * 25}', "in line 3: field larger"),
        (f"text,filename\nx,{'y' * 80}", "in line 2: field larger"),
        (f"text,filename\nx,{'y' * 200}", "line 2 has more than 90 characters"),
        (f"text,filename{',' * 12}\n", "has 14 columns"),
        ("text,filename,text\n", "2 columns for `text`"),
        (" Text,TEXT,filename\n", "2 columns for `text` .' Text', 'TEXT'.. Rename the others, or name one: --columns"),
        ("text，filename\n", "separated by full-width commas"),
        ('{"text": "a"}\n', "no column `filename` .found: text"),
        ("a,b\n", "no column `text` and no column `filename` .*Rename them, or name yours: --columns text=…"),
        ("[1]\n", "record 1: expected a record such as"),
        ('{"text": "a", "filename": "1.jpg"}\n{\n', "line 2 is not JSON"),
    ],
)
@pytest.mark.parametrize("only_required", [False, True])
def test_a_bad_table_is_named_with_its_fault(tmp_path, monkeypatch, content, message, only_required):
    monkeypatch.setattr("component.pairs.csv_table.MAX_CELL", 60)
    monkeypatch.setattr("component.pairs.csv_table.MAX_COLUMNS", 10)
    monkeypatch.setattr("component.pairs.text_file.MAX_LINE", 90)
    path = str(tmp_path / "t.csv")
    with open(path, "w", newline="", encoding="utf-8") as file:
        file.write(content)
    with pytest.raises(ValueError, match=message) as error:
        list(read_table(path, only_required=only_required))
    assert path in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
def test_rows_are_read_whatever_ends_the_lines_and_wherever_one_is_blank(tmp_path, ends):
    path = str(tmp_path / "t.csv")
    with open(path, "w", newline="", encoding="utf-8") as file:
        file.write(ends.join(["", "\ufefftext,filename,", "一", " ", "", '"二""",b,c', 'x"y,"d"e']))
    (chunk,) = read_table(path)
    assert list(chunk.columns) == ["text", "filename", ""]
    assert chunk.values.tolist() == [["一", "", ""], ['二"', "b", "c"], ['x"y', "de", ""]]


@pytest.mark.parametrize("rows", [0, 1, 5])
def test_a_table_of_one_column_has_the_rows_that_it_has(tmp_path, rows):
    names = [f"{row}.jpg" for row in range(rows)]
    chunks = list(read_table(table(tmp_path / "t.csv", "\n".join(["filename", *names])), ("filename",), chunk_rows=2))
    assert [name for chunk in chunks for name in chunk["filename"]] == names


def test_a_table_without_rows_is_an_empty_frame(tmp_path):
    (chunk,) = read_table(table(tmp_path / "t.csv", "text,filename"))
    assert list(chunk.columns) == ["text", "filename"] and len(chunk) == 0


@pytest.mark.parametrize(
    "content",
    [
        'text,filename\n一,1.jpg\n"大码,2.jpg\n猫,3.jpg\n"韩版,4.jpg\n',
        'text,url,filename\n一,u,1.jpg\n大码,"http://a/2.jpg,2.jpg\n猫,"http://a/3.jpg,3.jpg\n',
        'filename,text\n1.jpg,一\n2.jpg,"大码\n3.jpg,猫\n4.jpg,"韩版\n',
    ],
)
def test_a_cell_that_swallowed_rows_is_told_with_its_line(tmp_path, caplog, content):
    path = table(tmp_path / "t.csv", content)
    assert sum(map(len, read_table(path))) == 2 and sum(map(len, read_table(path))) == 2
    (warning,) = [record.getMessage() for record in caplog.records]
    assert warning.startswith(f"{path}, line 3: one cell holds") and "stray quote in lines 3 to" in warning


def test_a_caption_of_several_lines_is_nothing_strange(tmp_path, caplog):
    list(read_table(table(tmp_path / "t.csv", 'text,filename\n"红, 蓝\n绿",1.jpg\n"a.b\nc",2.jpg\n')))
    assert not caplog.records


def test_any_table_that_is_written_reads_back_the_same(tmp_path):
    draw = random.Random(0)
    letters = "a,'\";\t \r\n\r\n\u2028\x85\x0b图é\ufeff\u200b😀\x1a=-"
    for _ in range(200):
        header = ["".join(draw.choices(letters, k=draw.randint(0, 3))) for _ in range(draw.randint(0, 3))]
        header = draw.sample([*header, "text", "filename"], len(header) + 2)
        rows = [["".join(draw.choices(letters, k=draw.randint(0, 4))) for _ in header] for _ in range(5)]
        with open(tmp_path / "t.csv", "w", newline="", encoding="utf-8") as file:
            writer = csv_writer(file)
            writer.writerows([header, *rows])
        (chunk,) = read_table(str(tmp_path / "t.csv"))
        assert chunk.values.tolist() == rows
        assert list(chunk.columns) == [name.lstrip("\ufeff") for name in header]


ROWS = "text,filename\n" + "一只小狗在摇尾巴，红色的圆,1.jpg\n" * 20
SIZE = len(ROWS.encode())


def packed(content: bytes) -> bytes:
    """As gzip would, but without the time of day: these bytes are part of a test's name, which all processes of a run
    of the tests must agree on."""
    return gzip.compress(content, mtime=0)


@pytest.mark.parametrize(
    "content",
    [
        *(ROWS.encode(encoding) for encoding in ("utf-8", "utf-8-sig", "utf-16", "utf-32")),
        b"\xfe\xff" + ROWS.encode("utf-16be"),
        packed(ROWS.encode()),
        packed(ROWS.encode("utf-16")),
    ],
)
def test_a_table_is_read_by_its_bytes_whatever_its_name(tmp_path, content):
    (tmp_path / "t.csv").write_bytes(content)
    (chunk,) = read_table(str(tmp_path / "t.csv"))
    assert chunk["text"].tolist() == ["一只小狗在摇尾巴，红色的圆"] * 20


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (ROWS.encode("gbk"), "0xb9 in line 2, at byte 20 .* looks like GBK. Convert it: iconv -f gb18030"),
        ("text,filename\n一隻小狗在搖尾巴,1.jpg\n".encode("big5"), "looks like Big5. Convert it: iconv -f big5"),
        (
            ROWS.encode() + b"\xff,1.jpg\n" + ROWS.encode(),
            f"but for one line .0xff in line 22, at byte {SIZE} of",
        ),
        (ROWS.encode() + b'"a\nb",1.jpg\nx\xff\n', f"UTF-8 but for one line .0xff in line 24, at byte {SIZE + 13} of"),
        (ROWS.encode() + ROWS.encode("gbk"), "UTF-8 but for 20 lines, which look like GBK .0xb9 in line 23"),
        (ROWS.encode() + "一".encode()[:2], "UTF-8 but for one line .* unexpected end of data.. Correct"),
        (
            "text,filename\n강아지가 달립니다 사진입니다,1.jpg\n".encode("euc_kr"),
            "looks like GBK or EUC-KR. Convert it from the one that gives the right text: iconv -f gb18030 ",
        ),
        (
            "text,filename\n강아지가 달립니다 사진입니다 강아지가 달립니다 사진입니다 강아지가 달립니다 사진입니다 "
            "강아지가 달립니다 사진입니다,1.jpg\n".encode("euc_kr"),
            "looks like EUC-KR. Convert it: iconv -f euc-kr",
        ),
        (
            "text,filename\n子犬が草の上を走っている。赤いドレス,1.jpg\n".encode("euc_jp"),
            "looks like Big5 or EUC-JP. Convert it from the one",
        ),
        (b"text,filename\ncaf\xe9,1.jpg\n", "not UTF-8 .0xe9 in line 2, at byte 17 .* Save it as UTF-8"),
        (ROWS.encode("utf-16le"), "UTF-16LE without a mark. Convert it: iconv -f utf-16le"),
        (ROWS.encode("utf-16be"), "UTF-16BE without a mark"),
        (ROWS.encode("utf-16")[:-1], "begins as utf-16 but is damaged"),
        (b"PK\x03\x04" + bytes(100), "Excel file or a zip archive"),
        (b"\xd0\xcf\x11\xe0" + bytes(100), "is an Excel file"),
        (b"\xef\xbb\xbf\n<!DOCTYPE html><html>404</html>", "is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"\x28\xb5\x2f\xfd" + bytes(100), "zstd -d"),
        (packed(ROWS.encode())[:-9], "packed, and damaged or cut short"),
        (packed(random.Random(0).randbytes(1000))[:500], "packed, and damaged or cut short"),
        (packed(ROWS.encode())[:20] + b"\xff" * 100, "packed, and damaged or cut short"),
        (packed(bytes(257) + b"ustar"), "is a tar. Give a shard plain"),
    ],
)
def test_a_file_that_is_not_utf_8_is_told_what_to_do(tmp_path, content, message):
    (tmp_path / "my t.csv").write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        list(read_table(str(tmp_path / "my t.csv")))
    assert str(tmp_path / "my t.csv") in str(error.value) and "\n" not in str(error.value)


def test_a_missing_table_is_named():
    with pytest.raises(FileNotFoundError, match="nowhere.csv"):
        list(read_table("nowhere.csv"))


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("s/{00..02}.tar", ["s/00.tar", "s/01.tar", "s/02.tar"]),
        ("{8..10}.tar", ["8.tar", "9.tar", "10.tar"]),
        ("{b,a}/{1..2}.csv", ["b/1.csv", "b/2.csv", "a/1.csv", "a/2.csv"]),
        (["{1..2}.tar", "x.csv"], ["1.tar", "2.tar", "x.csv"]),
        ("p/*.parquet", ["p/0.parquet", "p/1.parquet"]),
        ("{p,q}/?.parquet", ["p/0.parquet", "p/1.parquet", "q/?.parquet"]),
        ("{1,2}.csv", ["{1,2}.csv"]),  # a file of this very name
    ],
)
def test_a_pattern_stands_for_the_files_that_a_shell_would_name(tmp_path, monkeypatch, pattern, names):
    monkeypatch.chdir(tmp_path)
    for name in ("p/1.parquet", "p/0.parquet", "{1,2}.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert expand(pattern) == names


# ---- Parquet, and several files ----


def parquet(path, *more, **columns) -> str:
    names, values = zip(*(*columns.items(), *more), strict=True)
    pyarrow.parquet.write_table(pyarrow.table(list(map(pyarrow.array, values)), names=list(names)), path)
    return str(path)


def test_cells_of_parquet_are_texts_whatever_their_type(tmp_path):
    path = parquet(
        tmp_path / "t.parquet",
        id=[1, 2, 3],
        filename=pyarrow.array(["007", None, "nan"]).dictionary_encode(),
        text=[7, None, 10**12],
    )
    chunks = list(read_table(path, ("text", "filename"), only_required=True, chunk_rows=2))
    assert [len(chunk) for chunk in chunks] == [2, 1] and list(chunks[0].columns) == ["text", "filename"]
    rows = [row for chunk in chunks for row in chunk.values.tolist()]
    assert rows == [["7", "007"], ["", ""], ["1000000000000", "nan"]]


def test_a_csv_read_by_pandas_and_written_as_parquet_is_the_same_table(data, processor):
    csv, path = str(data / "train.csv"), str(data / "train.parquet")
    pd.read_csv(csv, dtype=str, keep_default_na=False).to_parquet(path)
    one, other = (PairDataset(file, str(data / "images"), processor, 16) for file in (csv, path))
    tables = one.table, other.table
    assert all((getattr(tables[0], name) == getattr(tables[1], name)).all() for name in ("image_ids", "text_ids"))
    assert torch.equal(one[3]["images"]["pixels"], other[3]["images"]["pixels"])


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ([("text", ["a"]), ("size", ["b"])], "no column `filename` .found: text, size"),
        ([("text", [{"a": 1}]), ("filename", ["b"])], "cannot be read as Parquet"),
        ([("text", ["a"]), ("filename", [["b", "c"]])], "the column `filename` holds lists"),
        ([("text", [b"\xb0\xad"]), ("filename", ["b"])], "the column `text` holds bytes that are not UTF-8"),
        ([("text", ["a"]), ("filename", ["b"]), ("text", ["c"])], "2 columns for `text`"),
        (None, "cannot be read as Parquet"),
    ],
)
def test_a_bad_parquet_is_named_with_its_fault(tmp_path, columns, message):
    path = parquet(tmp_path / "t.parquet", *columns) if columns else table(tmp_path / "t.parquet", "PAR1 cut off")
    with pytest.raises(ValueError, match=message) as error:
        list(read_table(path))
    assert path in str(error.value) and "\n" not in str(error.value)


def test_a_parquet_with_damaged_names_of_columns_is_named(tmp_path):
    path = parquet(tmp_path / "t.parquet", text=["a"], filename=["b"])
    content = Path(path).read_bytes()
    Path(path).write_bytes(content.replace(b"filename", b"file\xffame"))
    with pytest.raises(ValueError, match="t.parquet cannot be read as Parquet"):
        list(read_table(path))


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch):
    path = parquet(tmp_path / "t.parquet", text=["a"], filename=["b"])
    monkeypatch.setitem(sys.modules, "pyarrow", None)  # as if it is not installed
    with pytest.raises(ImportError, match="Parquet needs pyarrow: pip install pyarrow"):
        next(read_table(path))


def test_a_column_is_not_renamed_to_that_of_another(tmp_path):
    path = table(tmp_path / "t.csv", "text,filename,path\n猫,a,b\n")
    (chunk,) = read_table(path, only_required=True, columns={"filename": "path"})
    assert chunk.values.tolist() == [["猫", "b"]]
    with pytest.raises(ValueError, match="`path` is read as `filename`, but another column has that name"):
        list(read_table(path, columns={"filename": "path"}))


def test_a_list_of_files_of_all_kinds_is_one_table(data, processor):
    first = table(data / "first.csv", "text,filename\n小狗,0.png\n小猪,none.png\n")
    second = parquet(data / "second.parquet", text=["红色", ""], filename=["2.png", "3.png"])
    with webdataset.TarWriter(str(data / "third.tar")) as shard:
        shard.write({"__key__": "4", "png": (data / "images" / "4.png").read_bytes(), "txt": "绿色"})
    files = [first, second, str(data / "third.tar"), str(data / "train.csv")]
    dataset = PairDataset(files, str(data / "images"), processor, 16)
    assert dataset.table.file == f"{first} and 3 more"
    assert len(dataset) == 4 + 8 and dataset.table.num_empty_texts == 1
    assert [dataset.table.filename(row) for row in (2, 3, 4)] == ["2.png", f"{data / 'third.tar'}/4.png", "0.png"]
    _, inputs, bad = dataset.images.load(range(12))
    assert list(bad) == [1]
    whole = PairDataset(str(data / "train.csv"), str(data / "images"), processor, 16)
    whole = whole.images.load(range(8)).columns["pixels"]
    assert torch.equal(inputs["pixels"], torch.cat([whole[[0, 2, 4]], whole]))
    assert dataset.table.image_ids[0] == dataset.table.image_ids[4]


# ---- file names ----


@pytest.mark.parametrize(
    "name", ["/etc/passwd", "../x.jpg", "a/../../x.jpg", "C:\\x.jpg", "\\\\host\\x", "", " ", "a\0b"]
)
def test_names_that_leave_the_folder_are_refused(name):
    with pytest.raises(ValueError, match="filename"):
        image_file("images", name)


@pytest.mark.parametrize(
    "name", [".//etc/../x", "./C:\\x.jpg", "\ufeff/etc/passwd", "a\\..\\..\\x", "./", "\u200b", "//x/./y"]
)
def test_a_name_that_leaves_the_folder_is_refused_however_it_is_written(name):
    with pytest.raises(ValueError, match="filename"):
        image_file("images", name)


@pytest.mark.parametrize("name", ["d/x.jpg", "./d/x.jpg", "d//x.jpg", "d/./x.jpg", ".//d\\.\\x.jpg", "\ufeffd/x.jpg"])
def test_one_file_has_one_name(name):
    assert normal_name(name) == "d/x.jpg" and image_file("images", name) == "images/d/x.jpg"


@pytest.mark.parametrize("name", ["a/..b/图.jpg", ".a/b./c", "é.jpg", "e\u0301.jpg", " a.jpg", "…./x"])
def test_names_inside_the_folder_are_taken_letter_by_letter(name):
    assert image_file("images", name) == f"images/{name}"


@pytest.mark.parametrize("name", ["d/", "d//", "d/.", "d\\", "/x", "a/../x"])
def test_what_names_no_file_does_not_become_one(name, tmp_path):
    with pytest.raises(ValueError, match="filename"):
        writable_file(str(tmp_path), name)


# ---- images ----


def save(path, image: Image.Image, **options) -> str:
    image.save(path, **options)
    return str(path)


def corner(path: str) -> tuple[int, int, int]:
    image = load_image(path)
    assert image.mode == "RGB"
    return image.getpixel((1, 1))


def near(pixel, wanted, tolerance: int = 6) -> bool:
    return all(abs(a - b) <= tolerance for a, b in zip(pixel, wanted, strict=True))


def test_transparency_lies_on_white(tmp_path):
    assert corner(save(tmp_path / "a.png", Image.new("RGBA", (8, 8), (255, 0, 0, 0)))) == (255, 255, 255)
    assert near(corner(save(tmp_path / "b.png", Image.new("LA", (8, 8), (0, 128)))), (127, 127, 127))
    palette = Image.new("P", (8, 8), 3)
    palette.putpalette([0, 0, 255] * 256)
    assert corner(save(tmp_path / "c.png", palette)) == (0, 0, 255)
    assert corner(save(tmp_path / "d.png", palette, transparency=3)) == (255, 255, 255)


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    grey = Image.fromarray(np.full((8, 8), 0x8000, np.uint16))
    assert near(corner(save(tmp_path / "a.png", grey)), (128, 128, 128))
    assert near(corner(save(tmp_path / "b.tif", grey)), (128, 128, 128))


def test_cmyk_and_grey_become_rgb(tmp_path):
    assert near(corner(save(tmp_path / "a.jpg", Image.new("CMYK", (8, 8), (0, 255, 255, 0)))), (254, 0, 0), 40)
    assert corner(save(tmp_path / "b.png", Image.new("L", (8, 8), 77))) == (77, 77, 77)
    assert corner(save(tmp_path / "c.png", Image.new("1", (8, 8), 1))) == (255, 255, 255)


def test_exif_rotation_is_applied(tmp_path):
    image = Image.new("RGB", (20, 10), "blue")
    image.paste("red", (0, 0, 10, 10))
    exif = image.getexif()
    exif[0x0112] = 6  # the camera was held upright: turn clockwise
    upright = load_image(save(tmp_path / "a.jpg", image, exif=exif, quality=95))
    assert upright.size == (10, 20)
    assert near(upright.getpixel((5, 3)), (254, 0, 0), 20) and near(upright.getpixel((5, 17)), (0, 0, 254), 20)


def test_first_frame_of_an_animation(tmp_path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    path = save(tmp_path / "a.gif", frames[0], save_all=True, append_images=frames[1:])
    assert near(corner(path), (255, 0, 0))


def test_a_file_that_is_not_an_image_says_why(tmp_path):
    whole = save(tmp_path / "a.jpg", Image.effect_noise((64, 64), 80))
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:500])
    (tmp_path / "page.jpg").write_text("<html>404</html>")
    (tmp_path / "empty.jpg").touch()
    assert load_image(whole).size == (64, 64)
    for name, reason in [("cut.jpg", "truncated"), ("page.jpg", "html"), ("empty.jpg", "empty")]:
        with pytest.raises(BadImageError, match=reason):
            load_image(str(tmp_path / name))
    with pytest.raises(BadImageError, match="no such file"):
        load_image(str(tmp_path / "none.jpg"))
    with pytest.raises(BadImageError, match="not_a_file"):
        load_image(str(tmp_path))


def test_a_program_for_ghostscript_is_not_run(tmp_path):
    Image.new("RGB", (8, 8), "red").save(tmp_path / "a.jpg", format="EPS")
    with pytest.raises(BadImageError, match="EPS"):
        load_image(str(tmp_path / "a.jpg"))


def test_a_decompression_bomb_is_refused(tmp_path):
    path = save(tmp_path / "a.png", Image.new("1", (10_000, 9_000)))
    with pytest.raises(BadImageError, match="too_many_pixels: 90,000,000"):
        load_image(path)


# ---- examples and batches ----


def test_an_example_is_what_the_processor_makes_of_it(data, processor):
    dataset = PairDataset(str(data / "train.csv"), str(data / "images"), processor, max_seq_length=16)
    assert len(dataset) == 8
    for row in (0, 7):
        wanted = processor(
            text=[CAPTIONS[row]], images=load_image(str(data / "images" / f"{row}.png")), return_tensors="pt"
        )
        example = dataset[row]
        assert example["tokens"].tolist() == wanted["input_ids"][0].tolist()
        found = dataset.images.transform.pixel_values(example["images"]["pixels"])
        assert torch.equal(found, wanted["pixel_values"])


def test_a_batch_is_what_the_processor_makes_of_it(data, processor):
    dataset = PairDataset(str(data / "train.csv"), str(data / "images"), processor, max_seq_length=16)
    batch = PairCollator(processor.tokenizer.pad_token_id)(dataset.__getitems__(range(8)))
    inputs = batch["model_inputs"]
    captions = sorted(CAPTIONS, key=len, reverse=True)
    wanted = processor(text=captions, return_tensors="pt", padding=True)
    assert inputs["text_groups"] == [(8, max(map(len, CAPTIONS)) + 2)]
    assert torch.equal(inputs["input_ids"], wanted["input_ids"])
    assert torch.equal(inputs["attention_mask"], wanted["attention_mask"])
    assert torch.equal(inputs["pixels"], dataset.images.load(batch["rows"]).columns["pixels"])
    assert [CAPTIONS[row] for row in batch["rows"]] == captions and batch["bad_images"] == {}
    assert batch["ids"].tolist() == [[hash_(CAPTIONS[row]), hash_(f"{row}.png")] for row in batch["rows"].tolist()]


def test_long_texts_are_cut_like_the_tokenizer_does_and_counted(data, processor):
    path = table(data / "t.csv", f"text,filename\n{'小狗' * 20},0.png\n小狗,1.png\n{'小狗' * 3},2.png\n")
    dataset = PairDataset(path, str(data / "images"), processor, max_seq_length=8)
    wanted = processor.tokenizer("小狗" * 20, truncation=True, max_length=8)["input_ids"]
    assert dataset[0]["tokens"].tolist() == wanted
    assert dataset.table.num_long_texts == 1


NOTHING = [
    "",
    "  ",
    "\u3000",
    "\u200b",
    "\ufeff",
    "\u00ad",
    "\ufe0f\u200d",
    "\u2060\u00a0",
    "\u3164",
    "\x7f",
    "\U000e0041",
]
NOTHING += ["\ufffd", "\ue000", "\u2800"]


@pytest.mark.parametrize("text", ["。", "1", "❤\ufe0f", "\u200b红", "👩\u200d🔬", "é", "e\u0301", "𠮷"])
def test_what_is_seen_is_a_caption(text):
    assert is_caption(text)


def test_rows_without_text_are_left_out_and_counted(data, processor):
    rows = "".join(f'"{text}",0.png\n' for text in NOTHING)
    path = table(data / "t.csv", f"text,filename\n{rows}小狗,2.png\n")
    dataset = PairDataset(path, str(data / "images"), processor, max_seq_length=8)
    assert len(dataset) == 1 and dataset.table.num_empty_texts == len(NOTHING)
    findings = PairCheck(FilterRules())(ImageFolder(""), NOTHING, [""] * len(NOTHING))
    assert [finding.reason for finding in findings] == ["empty_text"] * len(NOTHING)
    assert dataset.table.filename(0) == "2.png"
    with pytest.raises(ValueError, match="no row with a text"):
        PairDataset(table(data / "e.csv", "text,filename\n,0.png\n"), str(data), processor, max_seq_length=8)


def test_bad_images_leave_the_batch_with_a_reason(data, processor):
    path = table(data / "t.csv", "text,filename\n小狗,0.png\n小猪,none.png\n小狗,../train.csv\n小狗,../t.csv\n")
    dataset = PairDataset(path, str(data / "images"), processor, max_seq_length=8)
    collate = PairCollator(0)
    batch = collate(dataset.__getitems__(range(4)))
    assert batch["rows"].tolist() == [0] and len(batch["model_inputs"]["pixels"]) == 1
    assert list(batch["bad_images"]) == [1, 2, 3]
    assert "none.png: no such file" in batch["bad_images"][1] and ".." in batch["bad_images"][2]
    assert len(collate(dataset.__getitems__([1, 2]))["model_inputs"]["input_ids"]) == 0


def test_a_data_loader_gives_every_pair_with_its_own_text_and_image(data, processor):
    """Whatever the order, and with a text that is the longest in one batch only."""
    dataset = PairDataset(str(data / "train.csv"), str(data / "images"), processor, max_seq_length=16)
    loader = torch.utils.data.DataLoader(dataset, batch_size=3, shuffle=True, collate_fn=PairCollator(0))
    rows = []
    for batch in loader:
        inputs = (batch["model_inputs"][key] for key in ("input_ids", "attention_mask", "pixels"))
        for row, input_ids, mask, pixels in zip(batch["rows"], *inputs, strict=True):
            example = dataset[row.item()]
            assert input_ids[mask.bool()].tolist() == example["tokens"].tolist()
            assert not input_ids[~mask.bool()].any()
            assert torch.equal(pixels[None], example["images"]["pixels"])
            rows.append(row.item())
    assert sorted(rows) == list(range(8))


def hash_(word: str) -> int:
    return pd.util.hash_array(np.array([word], object)).view(np.int64).item()


@pytest.mark.parametrize("group_size", [1, 3, 8, 100])
def test_groups_hold_texts_of_like_lengths(data, processor, group_size):
    dataset = PairDataset(str(data / "train.csv"), str(data / "images"), processor, max_seq_length=16)
    batch = PairCollator(0, group_size)(dataset.__getitems__(range(8)))
    lengths = batch["model_inputs"]["attention_mask"].sum(dim=1)
    assert lengths.tolist() == sorted((len(caption) + 2 for caption in CAPTIONS), reverse=True)
    sizes, widths = zip(*batch["model_inputs"]["text_groups"], strict=True)
    assert len(sizes) == -(-8 // group_size) and max(sizes) <= group_size
    assert list(widths) == [group.max().item() for group in lengths.split(sizes)]


def test_under_a_tenth_of_a_shuffled_batch_is_padding(data, processor):
    """Captions of 5 to 40 characters."""
    random = np.random.default_rng(0)
    rows = "".join(f"{'小' * random.integers(5, 41)},0.png\n" for _ in range(1024))
    path = table(data / "t.csv", "text,filename\n" + rows)
    dataset = PairDataset(path, str(data / "images"), processor, max_seq_length=100)
    inputs = PairCollator(0, 64)(dataset.__getitems__(random.permutation(1024)[:768]))["model_inputs"]
    positions = sum(texts * tokens for texts, tokens in inputs["text_groups"])
    assert inputs["attention_mask"].sum() > 0.9 * positions


def test_a_set_without_any_good_image_is_an_error(data, processor):
    path = table(data / "t.csv", "text,filename\n小狗,none.png\n小猪,gone.png\n")
    with pytest.raises(ValueError, match="None of the 2 images.*none.png: no such file.*image_path"):
        PairDataset(path, str(data / "images"), processor, max_seq_length=8).require_an_image()
    path = table(data / "t.csv", "text,filename\n小狗,none.png\n小猪,1.png\n")
    PairDataset(path, str(data / "images"), processor, max_seq_length=8).require_an_image()


def test_repeated_captions_are_counted(data, processor):
    path = table(data / "t.csv", "text,filename\n小狗,0.png\n小狗,1.png\n小猪,2.png\n小狗,3.png\n")
    dataset = PairDataset(path, str(data / "images"), processor, max_seq_length=8)
    assert dataset.table.share_of_repeated_captions == 0.5


def test_a_row_of_a_table_takes_a_few_hundred_bytes(tmp_path, bert_clip_path):
    """1.4 million rows, as in the published recipe, fit into 600 MB."""
    script = (
        "import resource, sys\n"
        "from component.dataset import PairDataset\n"
        "from component.processor import load_processor\n"
        f"processor = load_processor({bert_clip_path!r})\n"
        "dataset = PairDataset(sys.argv[1], '.', processor, 100)\n"
        "print(len(dataset), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)\n"
    )
    bytes_with = {}
    for rows in (50_000, 250_000):
        file = tmp_path / f"{rows}.csv"
        captions = (f"一只小狗在摇尾巴红色的圆{n},http://example.com/a/long/path/{n}.jpg" for n in range(rows))
        lines = (f"{caption},images/{n:08d}.jpg\n" for n, caption in enumerate(captions))
        file.write_text("text,url,filename\n" + "".join(lines), encoding="utf-8")
        result = run_python("-c", script, file)
        assert result.returncode == 0, result.stderr
        found, bytes_with[rows] = map(int, result.stdout.split())
        assert found == rows
    assert (bytes_with[250_000] - bytes_with[50_000]) / 200_000 < 600e6 / 1.4e6


def test_worker_processes_do_not_copy_the_table(data, processor):
    """A forked worker that reads every row must not grow by the size of the table."""
    rows = "".join(f"一只小狗在摇尾巴{'红色的圆' * 20},{'x' * 200}{n}.png\n" for n in range(30_000))
    dataset = PairDataset(table(data / "t.csv", "text,filename\n" + rows), "", processor, max_seq_length=100)
    loader = torch.utils.data.DataLoader(_WorkerMemory(dataset), batch_size=None, num_workers=1)
    before, after = list(loader)[0]
    assert after - before < 5_000  # KiB; the table holds 16 MB


class _WorkerMemory(torch.utils.data.Dataset):
    """One item: the worker's private memory in KiB before and after it has read all rows of a dataset."""

    def __init__(self, dataset):
        self.dataset = dataset

    def __len__(self):
        return 1

    def __getitem__(self, _):
        before = _private_memory()
        for row in range(len(self.dataset)):
            self.dataset.table.filename(row)
            self.dataset.table.tokens(np.array([row]))
        return before, _private_memory()


def _private_memory() -> int:
    with open("/proc/self/smaps_rollup") as file:
        return sum(int(line.split()[1]) for line in file if line.startswith(("Private_Dirty", "Private_Clean")))
