"""What all scripts share: invalid options are refused before any work starts, and exit statuses."""

import gc
import logging
import os
import signal
import subprocess
import sys

import pytest
import torch
from conftest import ROOT

import download_image
import evaluate_clip
import filter_data
import predict_similarity
from component.ground.command import LineFormatter, run_script
from component.ground.options import decode_argument
from component.ground.plain_text import cell_text, one_line, spreadsheet_cell
from component.ground.quick_imports import quick_imports

NO_NUMBER = ["-5", "abc", "nan", "inf", "", "1/2"]
NO_WHOLE_NUMBER = [*NO_NUMBER, "1e3", "0.5", "9" * 30]
REQUIRED = {
    download_image: ["--train_file", "t.csv", "--image_path", "images"],
    evaluate_clip: ["--model", "m", "--test_file", "t.csv", "--image_path", "images"],
    filter_data: ["--train_file", "t.csv", "--image_path", "images", "--dry_run"],
    predict_similarity: ["--model", "m"],
}
OPTIONS = {
    download_image: {
        **dict.fromkeys(["num_threads", "per_host", "max_bytes", "resize"], [*NO_WHOLE_NUMBER, "0"]),
        "retries": NO_WHOLE_NUMBER,
        "timeout": [*NO_NUMBER, "0", "1e300"],
        "fail_over": [*NO_NUMBER, "1.5"],
        "part": ["0/4", "5/4", "1", "a/b", "²/4", "1/0", "-1/4"],
        "report": ["images", "gone/r.csv", "", "n" * 300, "pipe"],
        "image_path": ["t.csv", "t.csv/images", ""],
    },
    evaluate_clip: {
        "batch_size": [*NO_WHOLE_NUMBER, "0"],
        "output": ["t.csv", "t.csv/deep/er", ""],
    },
    filter_data: {
        **dict.fromkeys(["min_text", "max_text", "min_side"], NO_WHOLE_NUMBER),
        **dict.fromkeys(["num_workers", "batch_size"], [*NO_WHOLE_NUMBER, "0"]),
        "min_chinese": [*NO_NUMBER, "1.01"],
        "max_aspect": [*NO_NUMBER, "0.9"],
        "min_similarity": [*NO_NUMBER, "1.1"],
        "image_path": ["t.csv", "gone", ""],
        **dict.fromkeys(["out_file", "report", "histogram"], ["images", "gone/out", "", "n" * 300, "pipe", "t.csv"]),
    },
    predict_similarity: {
        **dict.fromkeys(["top_k", "batch_size"], [*NO_WHOLE_NUMBER, "0"]),
        **dict.fromkeys(["json", "csv", "html"], ["images", "gone/out", "", "n" * 300, "pipe", "/dev/null"]),
        "text_file": ["images", "gone.txt", "pipe"],
    },
}
CASES = [
    pytest.param(script, name, text, id=f"{script.__name__} {name} {text[:20]}")
    for script, options in OPTIONS.items()
    for name, texts in options.items()
    for text in texts
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    (tmp_path / "t.csv").write_text("text,filename\n")
    subprocess.run(["mkfifo", "pipe"], check=True)
    return tmp_path


@pytest.mark.parametrize(
    ("script", "words", "message"),
    [
        (
            predict_similarity,
            ["--modle", "m"],
            "unrecognized arguments: --modle; the following arguments are required",
        ),
        (evaluate_clip, ["--model", "m", "--test_files=t.csv"], "unrecognized arguments: --test_files; one of the"),
        (filter_data, ["--image", "images"], "filter_data.py: the following arguments are required: --train_file"),
    ],
)
def test_a_mistyped_required_option_is_named(script, words, message, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", [f"{script.__name__}.py", *words])
    with pytest.raises(SystemExit):
        script.parse_args()
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("script, name, text", CASES)
def test_an_invalid_option_is_refused_in_one_line(folder, monkeypatch, capsys, script, name, text):
    before = sorted(folder.iterdir())
    monkeypatch.setattr(sys, "argv", [f"{script.__name__}.py", *REQUIRED[script], f"--{name}", text])
    with pytest.raises(SystemExit) as end:
        script.parse_args()
    error = capsys.readouterr().err
    assert end.value.code == 2 and error.startswith(f"{script.__name__}.py: --{name}") and error.count("\n") == 1
    assert sorted(folder.iterdir()) == before


def test_the_message_shows_the_value_and_what_was_expected(folder, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["filter_data.py", *REQUIRED[filter_data], "--min_side", "-5"])
    with pytest.raises(SystemExit):
        filter_data.parse_args()
    assert "filter_data.py: --min_side -5: expected a number of pixels from 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    "error, status, said",
    [
        (ValueError("no \x1b[31mcolumn\n`filename`"), 2, r"x.py: no \x1b[31mcolumn `filename`"),
        (FileNotFoundError(2, "No such file", "a"), 2, "x.py: [Errno 2] No such file: 'a'"),
        (ImportError("needs pyarrow"), 2, "x.py: needs pyarrow"),
        (MemoryError(), 2, "x.py: not enough memory"),
        (torch.OutOfMemoryError("CUDA"), 2, "x.py: not enough memory on the GPU; take smaller batches"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
            2,
            "x.py: not enough memory; take smaller batches or fewer workers",
        ),
        (KeyboardInterrupt(), 130, "\nStopped."),
    ],
)
def test_every_error_is_one_line_and_one_status(monkeypatch, capsys, error, status, said):
    def main():
        raise error

    monkeypatch.setattr(sys, "argv", ["there/x.py"])
    assert run_script(main) == status
    assert capsys.readouterr().err == f"{said}\n"


def start(code: str, **options) -> subprocess.Popen:
    """Start Python in the repository, without torch, which takes seconds to import."""
    return subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, text=True, **options)


# Sets SIGHUP, because the tests may run under nohup.
WAITING = """
import signal, sys, time
from component.ground.command import run_script
from component.ground.files import new_file
signal.signal(signal.SIGHUP, getattr(signal, sys.argv[2]))
def main():
    with new_file(sys.argv[1]) as file:
        print("begun", flush=True)
        time.sleep(100)
sys.exit(run_script(main))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_removes_unfinished_output(tmp_path, number):
    command = [sys.executable, "-c", WAITING, str(tmp_path / "out"), "SIG_DFL"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.readline()
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    assert (process.returncode, error) == (128 + number, "\nStopped.\n")
    assert not list(tmp_path.iterdir())


def test_under_nohup_sighup_is_ignored(tmp_path):
    command = [sys.executable, "-c", WAITING, str(tmp_path / "out"), "SIG_IGN"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.readline()
    process.send_signal(signal.SIGHUP)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=1)
    process.send_signal(signal.SIGTERM)
    _, error = process.communicate(timeout=60)
    assert (process.returncode, error) == (128 + signal.SIGTERM, "\nStopped.\n")


def test_a_reader_that_stops_reading_is_not_an_error():
    code = "from component.ground.command import run_script\nexit(run_script(lambda: print('x' * 100_000)))"
    process = start(code, stderr=subprocess.PIPE)
    process.stdout.close()
    assert (process.wait(), process.stderr.read()) == (141, "")


def test_a_full_output_is_reported_in_one_line():
    code = "import sys\nfrom component.ground.command import run_script\nsys.exit(run_script(lambda: print('x')))"
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 2 and "No space left on device" in done.stderr.splitlines()[0]
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "text, shown",
    [
        ("红色 的\t圆\r\n", "红色 的 圆"),
        ("a\x1b]0;title\x07\x00\x9b", r"a\x1b]0;title\x07\x00\x9b"),
        ("invoice\u202egpj.exe\u2066", r"invoice\u202egpj.exe\u2066"),
        ("b\udcb5", r"b\udcb5"),
        ("👩\u200d🚀 ❤\ufe0f", "👩\u200d🚀 ❤\ufe0f"),
    ],
)
def test_control_characters_are_escaped(text, shown):
    assert one_line(text) == shown


def test_a_log_record_is_one_line():
    record = logging.LogRecord(
        "component", logging.WARNING, "", 0, "left out: %s", ("\x1b[2J\n12:00:00 done.png",), None
    )
    assert LineFormatter("%(message)s").format(record) == r"left out: \x1b[2J 12:00:00 done.png"


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@a", "\t=1", "\r", "'=1", "''-", "红", "'a'", "", "a=1"])
def test_no_cell_is_a_formula_and_every_text_is_restored(text):
    cell = spreadsheet_cell(text)
    assert not cell.startswith(("=", "+", "-", "@", "\t", "\r")) and cell_text(cell) == text


# Bytes of the command line, and how Python decodes them in a locale with this encoding → the text that was typed.
@pytest.mark.parametrize(
    "content, encoding, typed",
    [
        ("小狗".encode(), "latin-1", "小狗"),
        ("小狗".encode(), "ascii", "小狗"),
        ("小狗".encode(), "utf-8", "小狗"),
        ("café".encode("latin-1"), "latin-1", "café"),
        ("联通".encode("gbk"), "gbk", "联通"),
    ],
)
def test_a_text_of_the_command_line_is_what_was_typed_in_any_locale(content, encoding, typed):
    assert decode_argument(content.decode(encoding, "surrogateescape"), encoding) == typed


def test_a_process_in_a_locale_without_chinese_reads_its_texts():
    code = "import sys; from component.ground.options import unicode_text; print(ascii(unicode_text(sys.argv[1])))"
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", code, "小狗"], capture_output=True, text=True, cwd=ROOT, env=environment
    )
    assert done.stdout == ascii("小狗") + "\n"


def test_a_python_without_the_packages_is_named():
    words = ["--train_file", "data/demo/test.csv", "--image_path", "data/demo/images", "--dry_run"]
    bare = [sys.executable, "-S", "filter_data.py", *words]
    done = subprocess.run(bare, cwd=ROOT, capture_output=True, text=True)
    missing = f"No module named 'pandas' in {sys.executable}: pip install -r requirements.txt"
    assert done.returncode == 2 and missing in done.stderr and done.stderr.count("\n") == 1


def test_garbage_is_collected_again_after_imports():
    with pytest.raises(ImportError), quick_imports():
        assert not gc.isenabled()
        import no_such_module  # noqa: F401
    assert gc.isenabled()
