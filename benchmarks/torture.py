"""Stress tests of the scripts: counts attempts, survivals and losses. Uses loopback addresses only.

    python benchmarks/torture.py kills --times 100
    python benchmarks/torture.py pipes
    python benchmarks/torture.py servers --times 2000
    python benchmarks/torture.py images --times 2000
    python benchmarks/torture.py disks

`kills`: each script is started repeatedly and killed at a random moment by SIGKILL or SIGTERM. After each kill every
file it has written is complete or absent, and a final undisturbed run gives the result of a run that was never killed.
`pipes`: train_clip.py writes to an output that no one reads (tee or head that exits, closed, full) and is ended at a
random moment by Ctrl-C, SIGTERM or SIGHUP, or finishes. It exits with the signal's status, and the next run continues
to the same result.
`servers`: download_image.py gets `--times` random answers from a server, then `--times` images from servers that
refuse connections or freeze at random, one or all of them at once. `images`: `--times` damaged files of each format.
`disks`: each script on a disk that fills up; needs permission to mount a tmpfs.
"""

import argparse
import csv
import filecmp
import io
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

IMAGES = 60
HANGING = 300  # seconds
DOWNLOAD_THREADS = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("campaign", choices=CAMPAIGNS)
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", help="only these scripts, outputs or formats")
    args = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it for background jobs
    for number in (signal.SIGTERM, signal.SIGHUP):  # so that mounts and folders are removed, as after Ctrl-C
        signal.signal(number, lambda number, frame: sys.exit(128 + number))
    random.seed(args.seed)
    print(f"| {args.campaign} | tried | survived | lost |\n|---|--:|--:|--:|", flush=True)
    lost = 0
    with tempfile.TemporaryDirectory() as folder:
        for name, tried, faults in CAMPAIGNS[args.campaign](Path(folder), args):
            print(f"| {name} | {tried} | {tried - len(faults)} | {len(faults)} |", flush=True)
            for fault in faults[:3]:
                print(f"  {name}: {fault}", file=sys.stderr)
            lost += len(faults)
    sys.exit(int(lost > 0))


# ---- kills ----


@dataclass
class Case:
    """A script and the checks on the folder that it writes to.

    Attributes:
        command: folder to write to → command line.
        check: raises AssertionError or ValueError if anything in the folder is incomplete; must pass at any moment.
        result: the result of a finished run, to compare with that of another run.
    """

    command: Callable[[Path], list[str]]
    check: Callable[[Path], None]
    result: Callable[[Path], object]


def kills(folder: Path, args) -> Iterator[tuple[str, int, list[str]]]:
    make_inputs(folder)
    with image_server() as server:
        cases = make_cases(folder, server)
        for name, case in cases.items():
            if args.only and name not in args.only:
                continue
            started = time.monotonic()
            run(case.command(folder / name / "whole"))
            seconds = time.monotonic() - started
            expected, faults, tried, attempt = case.result(folder / name / "whole"), [], 0, 0
            while tried < args.times:
                attempt += 1
                output = folder / name / str(attempt)
                finished = False
                while tried < args.times and not finished:
                    number = end_once(case.command(output), random.uniform(0.3, 1) * seconds)
                    finished = number is None
                    kills_of[output] += number == signal.SIGKILL
                    tried += not finished
                    faults += fault_of(case.check, output)
                run(case.command(output))
                if case.result(output) != expected:
                    faults.append(f"after the last run, {output.name} differs from a run that was never killed")
            yield name, tried, faults


kills_of: Counter[Path] = Counter()  # output folder → number of SIGKILLs


def end_once(command: list[str], seconds: float) -> int | None:
    """Start the command and kill it and its workers after some seconds; returns the signal, or None if it finished."""
    process = subprocess.Popen(
        [sys.executable, *command],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        process.wait(seconds)
        return None
    except subprocess.TimeoutExpired:
        number = random.choice([signal.SIGKILL, signal.SIGTERM])
        os.killpg(process.pid, number)
        process.wait(HANGING)
        return number


def fault_of(check: Callable[[Path], None], output: Path) -> list[str]:
    try:
        check(output)
        return []
    except Exception as error:  # an incomplete file can raise anything
        return [f"{type(error).__name__}: {error}"]


# ---- pipes ----

READERS = {"tee": ["tee", os.devnull], "head": ["head", "-3"], "closed": None, "full": None}
ENDINGS = (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, None)


def pipes(folder: Path, args) -> Iterator[tuple[str, int, list[str]]]:
    make_inputs(folder)
    with image_server() as server:
        case = make_cases(folder, server)["train_clip.py"]
    started = time.monotonic()
    run(case.command(folder / "whole"))
    seconds, expected = time.monotonic() - started, case.result(folder / "whole")
    for number, output in enumerate(READERS):
        if args.only and output not in args.only:
            continue
        faults = []
        for attempt in range(args.times):
            written, ending = folder / f"{number}-{attempt}", ENDINGS[(number + attempt) % len(ENDINGS)]
            status = end_with_output(case.command(written), output, ending, random.uniform(0.2, 1) * seconds)
            faults += fault_of(case.check, written)
            # Outside of training, a signal ends the process at once; during it, a checkpoint is saved first.
            if status not in ((0,) if ending is None else (0, -ending, 128 + ending)):
                faults.append(f"{output} and {ending}: ended with {status}")
            if ending and status == 128 + ending and not list(written.glob("run/checkpoint-*")):
                faults.append(f"{output} and {ending}: no checkpoint")
            run(case.command(written))
            if case.result(written) != expected:
                faults.append(f"{output} and {ending}: the next run differs from one that never ended")
        yield f"train_clip.py, {output}", args.times, faults


def end_with_output(command: list[str], output: str, ending: signal.Signals | None, seconds: float) -> int:
    """Start the command with this output, send the signal after some seconds, and return the exit status.

    Reader and script form one process group, as in a terminal, so that Ctrl-C and a hang-up reach both.
    """
    reader = None
    if READERS[output]:
        reader = subprocess.Popen(
            READERS[output], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, preexec_fn=lambda: os.setpgid(0, 0)
        )
    group = reader.pid if reader else 0

    def prepare() -> None:
        os.setpgid(0, group)
        if output == "closed":
            os.close(1)
            os.close(2)

    with open("/dev/full", "w") as full:
        stream = reader.stdin if reader else full
        process = subprocess.Popen(
            [sys.executable, *command], cwd=ROOT, stdout=stream, stderr=stream, preexec_fn=prepare
        )
    if reader:
        reader.stdin.close()
    try:
        process.wait(seconds if ending else HANGING)
    except subprocess.TimeoutExpired:
        if ending == signal.SIGTERM:
            process.send_signal(ending)
        else:
            os.killpg(os.getpgid(process.pid), ending or signal.SIGKILL)
    try:
        status = process.wait(HANGING)
    except subprocess.TimeoutExpired:
        process.kill()
        status = process.wait()
    if reader:
        reader.wait()
    return status


def run(command: list[str], expect: tuple[int, ...] = (0,)) -> subprocess.CompletedProcess:
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, timeout=HANGING)
    if done.returncode not in expect:
        raise RuntimeError(f"{command[0]} ended with {done.returncode}: {done.stderr[-500:]}")
    return done


def make_inputs(folder: Path) -> None:
    """Write a tiny model, images with captions, and train.csv with a URL for each image."""
    from synthetic import make_data, make_model, make_processor

    from component.processor import save_processor

    (folder / "images").mkdir()
    captions = make_data(folder / "images", IMAGES)
    model, processor = make_model("tiny"), make_processor(folder)
    model.save_pretrained(folder / "model")
    save_processor(processor, str(folder / "model"))
    rows = "".join(f"{caption},http://ADDRESS/slow/{n},{n}.jpg\n" for n, caption in enumerate(captions))
    (folder / "train.csv").write_text("text,url,filename\n" + rows, encoding="utf-8")


def image_server():
    from image_server import ImageServer

    return ImageServer()


def make_cases(folder: Path, server) -> dict[str, Case]:
    table, images, model = folder / "train.csv", folder / "images", folder / "model"
    urls = folder / "urls.csv"
    urls.write_text(table.read_text(encoding="utf-8").replace("ADDRESS", server.address), encoding="utf-8")
    hits_of_whole: dict[tuple[Path, str], int] = {}
    train_args = folder / "train_args.json"
    keys = {
        "clip_pretrain_path": str(model),
        "load_from_bert_clip": True,
        "train_file": str(table),
        "image_path": str(images),
        "max_steps": 40,
        "per_device_train_batch_size": 8,
        "save_steps": 3,
        "save_total_limit": 2,
        "logging_steps": 1,
        "dataloader_num_workers": 1,
        "resume_from_checkpoint": "auto",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
    }
    train_args.write_text(json.dumps(keys), encoding="utf-8")

    def train(output: Path) -> list[str]:
        return ["train_clip.py", "--train_args_file", str(train_args), "--set", f"output_dir={output / 'run'}"]

    def check_training(output: Path) -> None:
        from component.checkpoint import load_model
        from component.training.checkpoint_files import require_whole, saved_checkpoints

        for path in saved_checkpoints(str(output / "run")):
            require_whole(path)
        if (output / "run" / "checkpoint-final").exists():
            load_model(str(output / "run" / "checkpoint-final"))
        for path in (output / "run").glob("*.json"):
            json.loads(path.read_text(encoding="utf-8"))

    def losses(output: Path) -> list[float]:
        state = json.loads((output / "run" / "trainer_state.json").read_text(encoding="utf-8"))
        return [round(entry["loss"], 5) for entry in state["log_history"] if "loss" in entry]

    def filter_data(output: Path) -> list[str]:
        output.mkdir(parents=True, exist_ok=True)
        options = ["--near_duplicates", "--report", str(output / "report.csv"), "--out_file", str(output / "kept.csv")]
        return ["filter_data.py", "--train_file", str(table), "--image_path", str(images), *options]

    def check_filter(output: Path) -> None:
        for name in ("kept.csv", "report.csv"):
            if (output / name).exists():
                assert filecmp.cmp(output / name, folder / "filter_data.py" / "whole" / name, shallow=False), name

    def download(output: Path) -> list[str]:
        output.mkdir(parents=True, exist_ok=True)
        options = ["--allow_private_hosts", "--report", str(output / "report.csv")]
        options += ["--num_threads", str(DOWNLOAD_THREADS)]
        return ["download_image.py", "--train_file", str(urls), "--image_path", str(output / "images"), *options]

    def check_download(output: Path) -> None:
        """Images are complete and not fetched again; only SIGKILL leaves rows in the report without their image."""
        from component.image.load import load_image

        whole = {path.name for path in (output / "images").glob("*.jpg")}
        for name in whole:
            load_image(str(output / "images" / name))
            hits = server.hits[f"/slow/{Path(name).stem}"]
            assert hits_of_whole.setdefault((output, name), hits) == hits, f"{name} is fetched again"
        if (output / "report.csv").exists():
            with open(output / "report.csv", encoding="utf-8", newline="") as file:
                noted = {row["filename"] for row in csv.DictReader(file) if row["status"] == "ok"}
            assert whole <= noted, f"without a row: {whole - noted}"
            assert len(noted - whole) <= DOWNLOAD_THREADS * kills_of[output], f"image missing: {noted - whole}"

    def index(output: Path) -> list[str]:
        options = ["--gallery", str(output), "--device", "cpu", "--num_workers", "1", "--batch_size", "4"]
        return ["search_image.py", "index", "--model", str(model), "--images", str(images), *options]

    def check_gallery(output: Path) -> None:
        from component.gallery.reader import Gallery, is_gallery

        if is_gallery(str(output)):
            list(Gallery(str(output)).images())

    def paths(output: Path) -> list[str]:
        from component.gallery.reader import Gallery

        return sorted(image.path for image in Gallery(str(output)).images())

    def save_bert(output: Path) -> list[str]:
        return ["save_bert_checkpoint.py", "--model", str(model), "--output", str(output / "bert"), "--overwrite"]

    def check_bert(output: Path) -> None:
        from transformers import BertModel, BertTokenizer

        if (output / "bert").exists():
            _, info = BertModel.from_pretrained(output / "bert", output_loading_info=True)
            assert not info["missing_keys"], info["missing_keys"]
            assert len(BertTokenizer.from_pretrained(output / "bert")) > 1000

    return {
        "train_clip.py": Case(train, check_training, losses),
        "filter_data.py": Case(filter_data, check_filter, lambda output: (output / "kept.csv").read_bytes()),
        "download_image.py": Case(download, check_download, lambda o: sorted(p.name for p in o.rglob("*.jpg"))),
        "search_image.py": Case(index, check_gallery, paths),
        "save_bert_checkpoint.py": Case(
            save_bert, check_bert, lambda o: sorted(p.name for p in (o / "bert").iterdir())
        ),
    }


# ---- servers ----


def servers(folder: Path, args) -> Iterator[tuple[str, int, list[str]]]:
    yield random_answers(folder, args.times)
    yield blinking_network(folder, args.times)


def random_answers(folder: Path, count: int) -> tuple[str, int, list[str]]:
    """Download `count` raw answers, each assembled from valid and invalid parts."""
    with image_server() as server:
        server.answers = {str(number): answer() for number in range(count)}
        urls = [server.url(f"raw/{number}") for number in range(count)]
        done, report = download_all(folder / "random", urls, "--timeout", "2", "--retries", "0", "--patience", "5")
    faults = [] if done.returncode == 0 and "Traceback" not in done.stderr else [done.stderr[-300:]]
    faults += [str(row) for row in report if "internal_error" in row["reason"]]
    if len(report) != count:
        faults.append(f"{len(report)} rows in the report, {count} expected")
    memory = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss // 1024
    return f"random answers (peak memory {memory} MB)", count, faults


def blinking_network(folder: Path, count: int) -> tuple[str, int, list[str]]:
    """Download `count` images from four servers; repeatedly, one or all of them refuse connections or freeze."""
    from image_server import ImageServer

    servers, is_over, blinks = [ImageServer().__enter__() for _ in range(4)], threading.Event(), Counter()

    def blink() -> None:
        while not is_over.wait(random.uniform(0.5, 1.5)):
            chosen = random.choice([range(4), [random.randrange(4)]])
            kind, seconds = random.choice(["refuse", "freeze"]), random.uniform(0.1, 3)
            blinks[kind, len(chosen)] += 1
            for index in chosen:
                servers[index].__exit__() if kind == "refuse" else servers[index].thawed.clear()
            time.sleep(seconds)
            for index in chosen:
                if kind == "refuse":
                    servers[index] = ImageServer(port=servers[index].server_port).__enter__()
                else:
                    servers[index].thawed.set()

    urls = [servers[number % 4].url(f"slow/{number}") for number in range(count)]
    thread = threading.Thread(target=blink)
    thread.start()
    try:
        done, report = download_all(folder / "blinking", urls, "--patience", "15", "--per_host", "4")
    finally:
        is_over.set()
        thread.join()
        for server in servers:
            server.__exit__()
    faults = [] if done.returncode == 0 else [done.stderr[-300:]]
    faults += [f"{row['filename']}: {row['reason']}" for row in report if row["status"] != "ok"]
    if len(report) != count:
        faults.append(f"{len(report)} rows in the report, {count} expected")
    return f"images, {blinks.total()} blinks", count, faults


def download_all(folder: Path, urls: list[str], *options: str) -> tuple[subprocess.CompletedProcess, list[dict]]:
    """Run the script to its end and return it with its report."""
    folder.mkdir()
    rows = "".join(f"一只小狗,{url},{number}.jpg\n" for number, url in enumerate(urls))
    (folder / "urls.csv").write_text("text,url,filename\n" + rows, encoding="utf-8")
    paths = ["--train_file", str(folder / "urls.csv"), "--image_path", str(folder / "images")]
    paths += ["--report", str(folder / "report.csv")]
    done = run(["download_image.py", *paths, "--allow_private_hosts", *options], (0, 1, 2))
    with open(folder / "report.csv", encoding="utf-8", newline="") as file:
        return done, list(csv.DictReader(file))


STATUS_LINES = [
    *[b"HTTP/1.1 200 OK"] * 6,
    b"HTTP/1.1 302 Found",
    b"HTTP/1.0 200",
    b"HTTP/9.9 999 \xff",
    b"GARBAGE",
    b"",
]
HEADERS = [
    *(b"Content-Length: " + value for value in (b"99999999", b"-1", b"1e3", b"0")),
    *(b"Location: " + value for value in (b"/raw/\xb9\xe3", b"http://[::", b"//%00/")),
    *(b"Retry-After: " + value for value in (b"99999999999", b"Fri, 99 Foo")),
    *(b"Content-Encoding: " + value for value in (b"gzip", b"br")),
    b"Transfer-Encoding: chunked",
    b"Content-Type: image/jpeg",
    b"Connection: close",
    b"Set-Cookie: a=b; Expires=\xff",
    b"X-Long: " + b"y" * 70_000,
    b"\xff\xfe: \x00",
    b"NoColon",
    b" folded",
]


def answer() -> list[bytes]:
    from image_server import image_bytes

    body = random.choice(
        [image_bytes(random.randrange(9)), b"", os.urandom(300), image_bytes()[:200], b"<html>" + b"x" * 99]
    )
    headers = random.choices([*HEADERS, *[b"Content-Length: %d" % len(body)] * 4], k=random.randrange(6))
    content = b"\r\n".join([random.choice(STATUS_LINES), *headers]) + b"\r\n\r\n" + body
    for _ in range(random.choice([0, 0, 1, 3])):
        start = random.randrange(len(content))
        content = content[:start] + os.urandom(random.randrange(3)) + content[start + random.randrange(3) :]
    return [content]


# ---- images ----


def images(folder: Path, args) -> Iterator[tuple[str, int, list[str]]]:
    """Download and filter use `check_image`, training and prediction `load_image`: their verdicts must agree."""
    import numpy as np
    from PIL import Image

    from component.image.check import check_image
    from component.image.load import load_image
    from component.image.reading import BadImageError

    pixels = np.random.default_rng(args.seed).integers(0, 255, (60, 80, 3), dtype=np.uint8)
    formats = {"JPEG": {}, "progressive": {"format": "JPEG", "progressive": True}, "PNG": {}, "GIF": {}, "WEBP": {}}
    formats |= {"AVIF": {}, "BMP": {}, "TIFF": {"compression": "tiff_lzw"}, "JPEG2000": {}}
    for name, options in formats.items():
        if args.only and name not in args.only:
            continue
        buffer = io.BytesIO()
        Image.fromarray(pixels).resize((32, 32)).save(buffer, **{"format": name, **options})
        faults, verdicts = [], Counter()
        for _ in range(args.times):
            content = damaged(buffer.getvalue())
            found = []
            for read in (load_image, check_image):
                started = time.monotonic()
                try:
                    read(content)
                    found.append(True)
                except BadImageError:
                    found.append(False)
                except Exception as error:
                    faults.append(f"{read.__name__}: {type(error).__name__}: {error}")
                if time.monotonic() - started > 10:
                    faults.append(f"{read.__name__} took {time.monotonic() - started:.0f} s")
            verdicts[tuple(found)] += 1
        disagreed = verdicts[True, False] + verdicts[False, True]
        # GIFs and animations are refused as training data, but a prediction accepts them.
        faults += ["check_image and load_image disagree"] * (0 if name == "GIF" else disagreed)
        yield f"{name} ({verdicts[True, True]} still good)", args.times, faults


def damaged(content: bytes) -> bytes:
    content = bytearray(content)
    kind = random.randrange(4)
    if kind == 0:
        return bytes(content[: random.randrange(len(content))])
    for _ in range(random.choice([1, 2, 5, 20])):
        index = random.randrange(len(content))
        if kind == 1:
            content[index] ^= 1 << random.randrange(8)
        elif kind == 2:
            content[index] = random.randrange(256)
        else:
            content[index:index] = os.urandom(random.randrange(1, 9))
    return bytes(content)


# ---- disks ----


def disks(folder: Path, args) -> Iterator[tuple[str, int, list[str]]]:
    """Each script on a disk that is too small: it prints one line and leaves nothing incomplete."""
    make_inputs(folder)
    with image_server() as server:
        cases = make_cases(folder, server)
        sizes = {"train_clip.py": 30_000, "filter_data.py": 4, "download_image.py": 100, "search_image.py": 60}
        for name, kilobytes in {**sizes, "save_bert_checkpoint.py": 2_000}.items():
            case, disk, faults = cases[name], folder / "disk" / name, []
            run(case.command(folder / name / "whole"))
            disk.mkdir(parents=True)
            mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(disk)]
            if subprocess.run(mount, capture_output=True).returncode:
                raise SystemExit("torture.py: no permission to mount a tmpfs here")
            try:
                done = run(case.command(disk / "output"), (0, 1, 2))
                if done.returncode != 2 or "Traceback" in done.stderr:
                    faults.append(f"ended with {done.returncode}: {done.stderr[-400:]}")
                faults += fault_of(case.check, disk / "output")
                subprocess.run(["mount", "-o", "remount,size=500m", str(disk)], check=True)
                run(case.command(disk / "output"))
                if case.result(disk / "output") != case.result(folder / name / "whole"):
                    faults.append("with enough space again, the result differs")
            finally:
                subprocess.run(["umount", "--lazy", str(disk)], check=True)
            yield name, 1, faults


CAMPAIGNS = {"kills": kills, "pipes": pipes, "servers": servers, "images": images, "disks": disks}

if __name__ == "__main__":
    main()
