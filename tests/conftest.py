"""Small towers and small data, made once per test session: no network, seconds on a CPU."""

import atexit
import csv
import functools
import json
import logging
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

# Set before torch is imported. Sums depend on the number of threads, and several processes with one thread per core
# would slow each other down: this process and those that the tests start use one thread unless the user sets another.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# With it, each argument of print is a write of its own, and lines of several processes mix.
os.environ.pop("PYTHONUNBUFFERED", None)
# The Hub's libraries and ours write their caches to a temporary folder of this session.
os.environ["HF_HOME"] = tempfile.mkdtemp(prefix="clip-chinese-")

import numpy as np
import pytest
import torch
from fork_server import ForkServer
from PIL import Image

atexit.register(shutil.rmtree, os.environ["HF_HOME"], ignore_errors=True)

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)
# A shell starts background jobs with SIGINT ignored, and the processes of the tests would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # which nohup ignores, for all that it starts

CAPTIONS = [
    "一只小狗在摇尾巴",
    "一只小猪在吃饭",
    "红色的圆",
    "蓝色的方块",
    "绿色的树",
    "黄色的花",
    "白色的云",
    "黑色的夜",
]
COLOURS = ["brown", "pink", "red", "blue", "green", "yellow", "white", "black"]

ENVIRONMENT = {**os.environ, "TOKENIZERS_PARALLELISM": "false"}

# Environments that load our checkpoints: transformers as installed, and 4.57 placed before it on the path.
# TRANSFORMERS_4 is the folder that `pip install --target` installed 4.57 into, see .ci/run.
TRANSFORMERS_4 = os.environ.get("TRANSFORMERS_4")
_is_there = pytest.mark.skipif(not TRANSFORMERS_4, reason="TRANSFORMERS_4 names no folder")
EVERY_TRANSFORMERS = [
    pytest.param({}, id="as installed"),
    pytest.param({"PYTHONPATH": TRANSFORMERS_4}, id="4.57", marks=_is_there),
]


def python(*arguments, processes: int = 1) -> list[str]:
    """A command line that runs these arguments with Python, or with torchrun in several processes."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    return [sys.executable, *(torchrun if processes > 1 else []), *map(str, arguments)]


@functools.cache
def fork_server() -> ForkServer:
    server = ForkServer(ENVIRONMENT)
    atexit.register(server.close)
    return server


def run_python(*arguments, processes: int = 1) -> subprocess.CompletedProcess:
    """Run a script, or -c and code, to its end in the root of the repository."""
    if arguments[0] != "-X":  # an option of a new interpreter
        return fork_server().run([str(argument) for argument in arguments], processes)
    return subprocess.run(python(*arguments), capture_output=True, text=True, cwd=ROOT, env=ENVIRONMENT)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup():
    """Each test, with the fixtures that it is the first to use, draws and logs the same, whatever ran before it."""
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(0)
    logging.getLogger("component").setLevel(logging.NOTSET)


def write_csv(path, rows, header=("text", "url", "filename"), encoding="utf-8") -> Path:
    """Write rows below a header line, quoted where necessary, and return the path."""
    with open(path, "w", newline="", encoding=encoding) as file:
        csv.writer(file).writerows([header, *rows])
    return Path(path)


def write_pairs(folder: Path, *rows: str) -> str:
    """Write t.csv with the columns text and filename, and return its path."""
    (folder / "t.csv").write_text("\n".join(["text,filename", *rows]) + "\n", encoding="utf-8")
    return str(folder / "t.csv")


@pytest.fixture(scope="module")
def browser():
    """A real browser; the test is skipped if none is installed."""
    playwright = pytest.importorskip("playwright.sync_api")
    names = ("chromium", "chromium-browser", "google-chrome")
    path = next(filter(None, map(shutil.which, names)), None) or pytest.skip("no Chromium")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def bert_path(tmp_path_factory) -> str:
    """A BERT folder as on the Hub: config.json, weights, vocab.txt. Hidden width 32, 24 positions."""
    from transformers import BertConfig, BertModel

    path = str(tmp_path_factory.mktemp("bert"))
    characters = sorted(set("".join(CAPTIONS)))
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *characters]
    with open(os.path.join(path, "vocab.txt"), "w", encoding="utf-8") as file:
        file.writelines(f"{token}\n" for token in vocabulary)
    torch.manual_seed(0)
    BertModel(
        BertConfig(
            vocab_size=len(vocabulary),
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=24,
            initializer_range=0.2,
        )
    ).save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def clip_path(tmp_path_factory) -> str:
    """A CLIPModel folder with its image processor. Vision width 48, projection 16, images of 32 px."""
    from transformers import CLIPConfig, CLIPModel
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    path = str(tmp_path_factory.mktemp("clip"))
    tower = dict(num_hidden_layers=2, num_attention_heads=2)
    torch.manual_seed(1)
    CLIPModel(
        CLIPConfig(
            text_config=dict(
                hidden_size=24, intermediate_size=24, vocab_size=9, bos_token_id=1, eos_token_id=2, **tower
            ),
            vision_config=dict(hidden_size=48, intermediate_size=96, image_size=32, patch_size=16, **tower),
            projection_dim=16,
        )
    ).save_pretrained(path)
    size = {"height": 32, "width": 32}
    CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=size).save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def bert_clip_path(tmp_path_factory, clip_path, bert_path) -> str:
    """A BertCLIP folder as training writes it."""
    from component.checkpoint import save_checkpoint
    from component.model import BertCLIPModel
    from component.processor import load_processor

    path = str(tmp_path_factory.mktemp("bert_clip"))
    torch.manual_seed(2)
    model = BertCLIPModel.from_vision_text_pretrained(clip_path, bert_path)
    save_checkpoint(model, load_processor(clip_path, bert_path, max_length=24), path)
    return path


@pytest.fixture(scope="session")
def chinese_clip_path(tmp_path_factory, bert_path) -> str:
    """A Chinese-CLIP folder as on the Hub: ChineseCLIPModel, vocab.txt, images resized to squares of 32 px."""
    from transformers import BertConfig, ChineseCLIPConfig, ChineseCLIPModel
    from transformers.models.chinese_clip.image_processing_pil_chinese_clip import ChineseCLIPImageProcessorPil

    path = str(tmp_path_factory.mktemp("chinese_clip"))
    bert = BertConfig.from_pretrained(bert_path)
    tower = dict(num_hidden_layers=2, num_attention_heads=2)
    torch.manual_seed(3)
    model = ChineseCLIPModel(
        ChineseCLIPConfig(
            text_config=dict(
                hidden_size=32,
                intermediate_size=64,
                vocab_size=bert.vocab_size,
                max_position_embeddings=24,
                initializer_range=0.2,
                **tower,
            ),
            vision_config=dict(hidden_size=48, intermediate_size=96, image_size=32, patch_size=16, **tower),
            projection_dim=16,
        )
    )
    model.save_pretrained(path)
    shutil.copy(os.path.join(bert_path, "vocab.txt"), path)
    size = {"height": 32, "width": 32}
    ChineseCLIPImageProcessorPil(size=size, do_center_crop=False).save_pretrained(path)
    return path


@pytest.fixture
def data(tmp_path):
    """A folder with eight captioned images in `images/` and a `train.csv`."""
    folder = tmp_path / "data"
    (folder / "images").mkdir(parents=True)
    rows = ["text,url,filename"]
    for number, (caption, colour) in enumerate(zip(CAPTIONS, COLOURS, strict=True)):
        noise = np.random.default_rng(number).integers(0, 60, (40, 50, 3), dtype=np.uint8)
        pixels = np.asarray(Image.new("RGB", (50, 40), colour)) // 2 + noise
        Image.fromarray(pixels.astype(np.uint8)).save(folder / "images" / f"{number}.png")
        rows.append(f"{caption},http://example.com/{number}.png,{number}.png")
    (folder / "train.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder


@pytest.fixture
def train_args(tmp_path, data, clip_path, bert_path):
    """Write a JSON of training arguments for two quick epochs on `data`; keyword arguments override keys."""

    def write(**keys) -> str:
        arguments = {
            "output_dir": str(tmp_path / "output"),
            "clip_pretrain_path": clip_path,
            "bert_pretrain_path": bert_path,
            "train_file": str(data / "train.csv"),
            "image_path": str(data / "images"),
            "num_train_epochs": 2,
            "per_device_train_batch_size": 4,
            "learning_rate": 1e-3,
            "max_seq_length": 16,
            "logging_steps": 1,
            "dataloader_num_workers": 0,
            "use_cpu": True,
            "disable_tqdm": True,
            **keys,
        }
        path = tmp_path / "train_args.json"
        path.write_text(json.dumps(arguments, ensure_ascii=False), encoding="utf-8")
        return str(path)

    return write


@pytest.fixture
def train_here(train_args, monkeypatch, caplog):
    """Run train_clip.py in this process with these keys of the JSON, and return its status."""
    import train_clip

    def train(**keys) -> int | None:
        args_file = train_args(**{"report_to": "none", **keys})
        monkeypatch.setattr(sys, "argv", ["train_clip.py", "--train_args_file", args_file])
        # The script sets these levels for good.
        monkeypatch.setattr(train_clip, "log_on_first_process", lambda process_index: None)
        for name in ("train_clip", "component"):
            caplog.set_level(logging.INFO, name)
        return train_clip.main()

    return train


def build_trainer(args):
    """The CLIPTrainer that train_clip.py builds from these arguments."""
    from component.trainer import CLIPTrainer
    from component.training.build import load_model
    from component.training.data import load_datasets
    from component.training.locked_towers import cache_images, cache_texts
    from component.training.teacher import load_teacher, with_teacher

    model, processor = load_model(args)
    train, test = cache_images(args, model, *load_datasets(args, processor))
    train, test = cache_texts(args, model, processor.tokenizer, train, test)
    if teacher := load_teacher(args, model, processor):
        train = with_teacher(args, teacher, processor.tokenizer, train)
    return CLIPTrainer(model=model, args=args, train_dataset=train, eval_dataset=test, processing_class=processor)


@pytest.fixture
def trainer(train_args, bert_clip_path):
    """Build a CLIPTrainer in this process; keyword arguments are keys of the JSON."""
    from component.argument import load_arguments

    start = {"clip_pretrain_path": bert_clip_path, "load_from_bert_clip": True}
    quick = {"report_to": "none", "save_strategy": "no", "image_feature_cache": "off", "pair_table": "off"}

    def build(**keys):
        return build_trainer(load_arguments(train_args(**{**start, **quick, **keys})))

    return build
