"""Speed and memory of download and filter compared with other tools, on a local server that misbehaves.

    python benchmarks/data_bench.py --img2dataset_python ~/venv-img2dataset/bin/python --out data_bench.json

All numbers of a table come from one call on one machine; the candidates run one after another. Linux only.

download: 16 servers (ports) on the loopback interface send 300 x 300 JPEGs after 20 or 200 ms. "faulty": 2% of
  requests get no answer, 5% get 404 or 500, 2% get their body one byte at a time; a faulty answer lasts 60 s.
  "clean": no faults.
  - ours: download_image.py with its defaults, 64 threads
  - img2dataset: 2 processes x 32 threads, output_format=files, defaults otherwise
  - plain: 20 processes that loop over requests.get without a timeout
filter: filter_data.py compared with a bare Pillow decoding loop in one process per core.
pixels: from a JPEG to pixel_values of 224 x 224, in one thread: the HF image processor, one image at a time, as in the
published recipe; ours, which is bit-equal; ours with draft decoding, used for augmented and unlocked training.
scaling: what --resize does to a JPEG, with simplejpeg and OpenCV and with Pillow alone: CPU time of one thread, the
distance to Lanczos, and whether the verdicts on 1,500 damaged JPEGs agree.
memory: both scripts on a table of 1,000,000 rows; peak of all processes together (PSS: shared pages count once).
"""

import argparse
import asyncio
import csv
import io
import json
import math
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
NUM_SERVERS = 16
HELD_SECONDS = 60.0  # how long a faulty answer lasts; if it never ended, the plain loop would never finish
DRIP_SECONDS = 0.5  # between two bytes of a body sent one byte at a time
START_UP_ROWS = 64


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--img2dataset_python", help="python of an environment with requirements-bench.txt installed")
    parser.add_argument("--parts", nargs="+", default=["download", "filter", "pixels", "scaling", "memory"])
    parser.add_argument("--servers", nargs="+", choices=["clean", "faulty"], default=["clean", "faulty"])
    parser.add_argument("--rows", type=int, default=4000, help="images per download")
    parser.add_argument("--rounds", type=int, default=1, help="times that each download runs, in turn with the others")
    parser.add_argument("--plain_rows", type=int, default=400, help="the same for the plain loop, which is slow")
    parser.add_argument("--filter_rows", type=int, default=20_000)
    parser.add_argument("--memory_rows", type=int, default=1_000_000)
    parser.add_argument("--out", help="JSON file with the results")
    args = parser.parse_args()

    parts = {"download": bench_download, "filter": bench_filter, "pixels": bench_pixels}
    parts |= {"scaling": bench_scaling, "memory": bench_memory}
    results = {"cores": os.cpu_count(), "load_at_start": os.getloadavg()[0], "python": sys.version.split()[0]}
    with tempfile.TemporaryDirectory() as folder:
        for part in args.parts:
            results[part] = parts[part](args, Path(folder))
    results["load_at_end"] = os.getloadavg()[0]
    if args.out:
        Path(args.out).write_text(json.dumps(results, indent=2) + "\n")
        print(f"\nwritten: {args.out}")


# --- download ----------------------------------------------------------------------------------------------------


def bench_download(args, folder: Path) -> list[dict]:
    candidates = {"ours": run_ours}
    if args.img2dataset_python:
        candidates["img2dataset"] = run_img2dataset
    table = []
    print(f"\n{'server':<14} resize {'candidate':<12}{'rows':>7}{'kept':>7}{'seconds':>9}{'img/s':>8}", end="")
    print(f"{'ratio':>7}{'CPU ms':>8}{'ratio':>7}")
    for name, latency, faulty, resize in [
        ("20 ms clean", 0.02, False, None),
        ("20 ms clean", 0.02, False, 256),
        ("20 ms faulty", 0.02, True, None),
        ("20 ms faulty", 0.02, True, 256),
        ("200 ms faulty", 0.2, True, None),
        ("200 ms faulty", 0.2, True, 256),
    ]:
        if name.split()[-1] not in args.servers:
            continue
        with Servers(latency, faulty) as servers:
            runs = {candidate: [] for candidate in candidates}
            for _ in range(args.rounds):
                for candidate, run in candidates.items():
                    work = new(folder / f"{len(table)}-{candidate}-{len(runs[candidate])}")
                    write_table(work / "warm.csv", servers.urls(START_UP_ROWS, healthy=True))
                    write_table(work / "train.csv", servers.urls(args.rows))
                    start_up = run(args, work / "warm.csv", work / "warm", resize)
                    runs[candidate].append((run(args, work / "train.csv", work / "images", resize), start_up))
            for candidate, pairs in runs.items():
                row = {"server": name, "resize": resize, "candidate": candidate, "rows": args.rows}
                table.append(row | best(pairs) | {"load": os.getloadavg()[0]})
            ours = table[-len(runs)]
            for row in table[-len(runs) :]:
                print_row(row, ours)
            if faulty and resize is None:
                work = new(folder / f"{len(table)}-plain")
                seconds, kept = run_plain(servers.urls(args.plain_rows), work)
                row = {"server": name, "resize": None, "candidate": "plain", "rows": args.plain_rows, "kept": kept}
                table.append(row | {"seconds": seconds, "images_per_second": kept / seconds, "cpu_ms": math.nan})
                print_row(table[-1], ours)
    print("img/s: images kept ÷ (seconds - seconds for 64 rows, which is the start-up of the program)")
    print(
        "CPU ms: the same with the CPU time of the program and its processes, per image; each the best of the rounds"
    )
    print("ratio: ours compared with this candidate, above 1 if ours is faster")
    return table


class Download(NamedTuple):
    """What one call of a program took, all its processes together."""

    seconds: float
    cpu_seconds: float
    kept: int


def best(pairs: list[tuple[Download, Download]]) -> dict:
    """Figures of a candidate from (download, start-up) of each round."""
    kept = pairs[0][0].kept
    seconds = min(download.seconds - start_up.seconds for download, start_up in pairs)
    cpu_seconds = min(download.cpu_seconds - start_up.cpu_seconds for download, start_up in pairs)
    figures = {"images_per_second": kept / max(seconds, 1e-3), "cpu_ms": 1000 * cpu_seconds / (kept - START_UP_ROWS)}
    return {"kept": kept, "seconds": min(download.seconds for download, _ in pairs), **figures}


def print_row(row: dict, ours: dict) -> None:
    print(
        f"{row['server']:<14} {row['resize'] or 'no':>6} {row['candidate']:<12}{row['rows']:>7}{row['kept']:>7}"
        f"{row['seconds']:>9.1f}{row['images_per_second']:>8.1f}"
        f"{ours['images_per_second'] / row['images_per_second']:>7.2f}"
        f"{row['cpu_ms']:>8.2f}{row['cpu_ms'] / ours['cpu_ms']:>7.2f}",
        flush=True,
    )


def run_ours(args, table: Path, images: Path, resize: int | None) -> Download:
    command = [sys.executable, ROOT / "download_image.py", "--train_file", table, "--image_path", images]
    command += ["--num_threads", "64", "--allow_private_hosts", "--report", table.with_suffix(".report.csv")]
    return measured(command + (["--resize", str(resize)] if resize else []), images)


def run_img2dataset(args, table: Path, images: Path, resize: int | None) -> Download:
    with open(table) as file:
        rows = sum(1 for _ in file) - 1
    command = [args.img2dataset_python, "-c", "from img2dataset.main import main; main()", "--url_list", table]
    command += ["--input_format", "csv", "--url_col", "url", "--caption_col", "text", "--output_folder", images]
    command += ["--output_format", "files", "--processes_count", "2", "--thread_count", "32"]
    # one shard per process: a process waits for the slowest row of a shard before it starts the next
    command += ["--number_sample_per_shard", str(-(-rows // 2)), "--enable_wandb", "False"]
    command += ["--resize_mode", "keep_ratio", "--image_size", str(resize)] if resize else ["--resize_mode", "no"]
    return measured(command, images)


def measured(command: list, images: Path) -> Download:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = timed(command)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Download(seconds, cpu_seconds, count_images(images))


def run_plain(urls: list[str], folder: Path) -> tuple[float, int]:
    started = time.monotonic()
    with multiprocessing.Pool(20) as pool:
        pool.starmap(plain_download, [(url, folder / f"{i}.jpg") for i, url in enumerate(urls)], chunksize=1)
    return time.monotonic() - started, count_images(folder)


def plain_download(url: str, path: Path) -> None:
    import requests

    try:
        body = requests.get(url).content
    except requests.RequestException:
        return
    path.write_bytes(body)


def timed(command: list) -> float:
    started = time.monotonic()
    done = subprocess.run([str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode:
        sys.exit(f"{command} failed:\n{done.stdout[-3000:]}")
    return time.monotonic() - started


def count_images(folder: Path) -> int:
    """Count the files that start like a JPEG; the plain loop also saves error pages as .jpg."""
    return sum(path.read_bytes()[:2] == b"\xff\xd8" for path in folder.rglob("*.jpg"))


def write_table(path: Path, urls: list[str]) -> None:
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "url", "filename"])
        writer.writerows([f"caption {i}", url, f"{i}.jpg"] for i, url in enumerate(urls))


def new(folder: Path) -> Path:
    """Make a folder. Folders are removed only at the end: after a removal ext4 searches for a free inode, which takes
    longer than downloading an image."""
    folder.mkdir()
    return folder


class Servers:
    """The servers, in a separate process."""

    def __init__(self, latency: float, faulty: bool):
        self._faulty = faulty
        self._pipe, far_end = multiprocessing.Pipe()
        self._process = multiprocessing.Process(target=serve, args=(far_end, latency), daemon=True)

    def __enter__(self):
        self._process.start()
        self._ports = self._pipe.recv()
        return self

    def __exit__(self, *exc_info):
        self._process.kill()
        self._process.join()

    def urls(self, count: int, healthy: bool = False) -> list[str]:
        faults = ["hang"] * 2 + ["404"] * 3 + ["500"] * 2 + ["drip"] * 2
        kinds = ["ok"] * (100 if healthy or not self._faulty else 91)
        kinds += faults[: 100 - len(kinds)]
        np.random.default_rng(0).shuffle(kinds)
        ports = self._ports
        return [f"http://127.0.0.1:{ports[i % len(ports)]}/{kinds[i % 100]}/{i}.jpg" for i in range(count)]


def serve(pipe, latency: float) -> None:
    images = [example_image(seed, (300, 300)) for seed in range(64)]

    class Answer(asyncio.Protocol):
        """Minimal HTTP/1.1: GET, keep-alive, no pipelining. It must be fast: it shares the cores with the clients."""

        def connection_made(self, transport):
            self.transport, self.received = transport, b""

        def data_received(self, data):
            self.received += data
            if b"\r\n\r\n" in self.received:
                _, kind, name = self.received.split(b" ", 2)[1].split(b"/")
                self.close = b"Connection: close" in self.received
                self.received = b""
                image = images[int(name.partition(b".")[0]) % len(images)]
                loop.call_later(HELD_SECONDS if kind == b"hang" else latency, self.answer, kind, image)

        def answer(self, kind, body):
            if kind == b"hang":
                return self.transport.close()
            status = b"200"
            if kind in (b"404", b"500"):
                status, body = kind, b"<html>sorry</html>"
            head = b"HTTP/1.1 %s x\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % (status, len(body))
            if kind == b"drip":
                self.transport.write(head)
                return self.drip(body, loop.time() + HELD_SECONDS)
            self.transport.write(head + body)
            if self.close:
                self.transport.close()

        def drip(self, body, until):
            if loop.time() > until or self.transport.is_closing():
                return self.transport.close()
            self.transport.write(body[:1])
            loop.call_later(DRIP_SECONDS, self.drip, body[1:], until)

    async def run():
        servers = [await loop.create_server(Answer, "127.0.0.1", 0, backlog=512) for _ in range(NUM_SERVERS)]
        pipe.send([server.sockets[0].getsockname()[1] for server in servers])
        await asyncio.Event().wait()

    loop = asyncio.new_event_loop()
    loop.run_until_complete(run())


def example_image(seed: int, size: tuple[int, int]) -> bytes:
    """A JPEG with the file size of a photograph: smooth shapes with a little noise."""
    random = np.random.default_rng(seed)
    smooth = Image.fromarray(random.integers(0, 255, (8, 8, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    grain = random.normal(0, 8, (size[1], size[0], 3))
    image = Image.fromarray((np.asarray(smooth) + grain).clip(0, 255).astype(np.uint8))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=85)
    return buffer.getvalue()


# --- filter ------------------------------------------------------------------------------------------------------


def bench_filter(args, folder: Path) -> list[dict]:
    images = new(folder / "filter")
    paths = [images / f"{i}.jpg" for i in range(args.filter_rows)]
    contents = [example_image(seed, (300, 300)) for seed in range(256)]
    for i, path in enumerate(paths):
        path.write_bytes(contents[i % len(contents)])
    write_table(images / "train.csv", [f"http://example.com/{i}" for i in range(args.filter_rows)])
    with multiprocessing.Pool(os.cpu_count()) as pool:
        # The workers are running and the files are in the page cache, as for filter_data.py.
        pool.map(decode, paths[:256])
        started = time.monotonic()
        for _ in pool.imap(decode, paths, chunksize=64):
            pass
        bare = args.filter_rows / (time.monotonic() - started)
    command = [sys.executable, ROOT / "filter_data.py", "--train_file", images / "train.csv", "--image_path", images]
    table = [{"what": "bare Pillow, full decoding", "images_per_second": bare}]
    everything = "--min_side 64 --max_aspect 3 --exact_duplicates --near_duplicates"
    for what, options in (("filter_data.py", []), ("filter_data.py " + everything, everything.split())):
        seconds = timed([*command, "--out_file", images / "out.csv", *options])  # start-up included
        table.append({"what": what, "images_per_second": args.filter_rows / seconds})
    print(f"\n{'filter, ' + str(args.filter_rows) + ' images of 300 x 300':<88} {'img/s':>8} {'share':>6}")
    for row in table:
        print(f"{row['what']:<88} {row['images_per_second']:>8.0f} {row['images_per_second'] / bare:>6.2f}")
    return table


def decode(path: Path) -> None:
    with Image.open(path) as image:
        image.load()


# --- pixels ------------------------------------------------------------------------------------------------------


def bench_pixels(args, folder: Path) -> list[dict]:
    sys.path.insert(0, str(ROOT))
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    from component.image.batch import ImageBatch
    from component.image.transform import ImageTransform

    processor = CLIPImageProcessorPil()

    def published(paths):
        return np.concatenate(
            [processor(images=Image.open(path), return_tensors="np")["pixel_values"] for path in paths]
        )

    def ours(draft: bool):
        transform = ImageTransform(processor, draft=draft)

        def way(paths):
            batch = ImageBatch.read(range(len(paths)), lambda row: transform.read(paths[row]))
            return transform.pixel_values(batch.columns["pixels"]).numpy()

        return way

    ways = {"image processor": published, "ours": ours(False), "ours, draft": ours(True)}
    table = []
    print(f"\n{'JPEG':<10} {'candidate':<16} {'img/s':>7} {'ratio':>6} {'mean |difference|':>18}")
    for size in ((400, 300), (1600, 1200), (4000, 3000)):
        paths = [str(folder / f"{seed}.jpg") for seed in range(max(16, 16_000_000 // (size[0] * size[1])))]
        for seed, path in enumerate(paths):
            Path(path).write_bytes(example_image(seed, size))
        wanted = first = None
        for name, way in ways.items():
            way(paths[:2])
            start = time.perf_counter()
            pixel_values = way(paths)
            speed = len(paths) / (time.perf_counter() - start)
            wanted, first = (pixel_values, speed) if wanted is None else (wanted, first)
            difference = float(np.abs(pixel_values - wanted).mean())
            row = {"size": size, "candidate": name, "images_per_second": speed, "mean_difference": difference}
            table.append(row)
            jpeg = f"{size[0]}x{size[1]}"
            print(f"{jpeg:<10} {name:<16} {speed:>7.1f} {speed / first:>6.2f} {difference:>18.4f}")
    return table


# --- scaling -----------------------------------------------------------------------------------------------------

DAMAGED = 1500


def bench_scaling(args, folder: Path) -> list[dict]:
    sys.path.insert(0, str(ROOT))
    from component.image import check, fast_jpeg

    ways = {"simplejpeg, OpenCV": fast_jpeg.packages, "Pillow": lambda: None}
    if not fast_jpeg.packages():
        sys.exit("scaling compares two packages with Pillow: pip install -r requirements-extras.txt")

    def shrunk(way: str, jpeg: bytes, side: int) -> bytes | str:
        check.packages = ways[way]
        try:
            check.shrink_image(jpeg, out := io.BytesIO(), side)
        except check.BadImageError as error:
            return str(error)
        return out.getvalue()

    photos = [path.read_bytes() for path in sorted((ROOT / "images/test").glob("photo_*.jpg"))]
    table = []
    print(f"\n{'JPEG':<22} {'side':>5} {'candidate':<20} {'CPU ms':>7} {'PSNR dB':>8}")
    for name, jpegs, side in [
        *(("photo_*.jpg, 267 high", photos, side) for side in (240, 160, 100)),
        *((f"{w}x{h}", [example_image(i, (w, h)) for i in range(16)], 256) for w, h in ((300, 300), (640, 480))),
        ("1600x1200", [example_image(i, (1600, 1200)) for i in range(4)], 256),
    ]:
        for way in ways:
            results, cpu_seconds = [], math.inf
            for _ in range(5):
                start = time.process_time()
                results = [shrunk(way, jpeg, side) for jpeg in jpegs]
                cpu_seconds = min(cpu_seconds, time.process_time() - start)
            psnr = float(np.mean(list(map(distance_to_lanczos, jpegs, results))))
            table.append(dict(jpeg=name, side=side, candidate=way, cpu_ms=1000 * cpu_seconds / len(jpegs), psnr=psnr))
            print(f"{name:<22} {side:>5} {way:<20} {table[-1]['cpu_ms']:>7.2f} {psnr:>8.2f}", flush=True)
    differ = refused = 0
    for seed in range(DAMAGED):
        first, second = (shrunk(way, damaged_jpeg(seed), 48) for way in ways)
        refused += isinstance(second, str)
        differ += (first if isinstance(first, str) else "") != (second if isinstance(second, str) else "")
    table.append({"damaged": DAMAGED, "refused": refused, "verdicts_differ": differ})
    print(f"{DAMAGED} damaged JPEGs, {refused} refused: {differ} verdicts differ")
    return table


def distance_to_lanczos(jpeg: bytes, shrunk: bytes) -> float:
    """PSNR in dB."""
    small = Image.open(io.BytesIO(shrunk))
    wanted = Image.open(io.BytesIO(jpeg)).convert("RGB").resize(small.size, Image.Resampling.LANCZOS)
    return 10 * math.log10(255**2 / np.square(np.asarray(wanted, float) - np.asarray(small)).mean())


def damaged_jpeg(seed: int) -> bytes:
    """A JPEG of one of several kinds, damaged in one of several ways."""
    random = np.random.default_rng(seed)
    image = Image.open(io.BytesIO(example_image(seed % 16, tuple(random.integers(60, 200, 2).tolist()))))
    image = image.convert(random.choice(["RGB", "RGB", "RGB", "L", "CMYK"]))
    options = [{}, {"progressive": True}, {"subsampling": 0}, {"restart_marker_blocks": 3}, {"optimize": True}]
    image.save(buffer := io.BytesIO(), "JPEG", **options[random.integers(len(options))])
    jpeg = bytearray(buffer.getvalue())
    at, size = int(random.integers(2, len(jpeg))), int(random.integers(1, 50))
    noise = random.bytes(size)
    match seed % 8:
        case 0:
            del jpeg[at:]
        case 1:
            del jpeg[-1 - size % 2 :]  # the end marker
        case 2:
            jpeg[at] ^= 1 << size % 8
        case 3:
            for byte in noise:
                jpeg[int(random.integers(2, len(jpeg)))] = byte
        case 4:
            jpeg[int(random.integers(2, 600))] = noise[0]  # in the tables
        case 5:
            jpeg[at : at + size] = bytes(size)
        case 6:
            jpeg[at:at] = noise
        case 7:
            jpeg[at : at + 2] = bytes([0xFF, noise[0]])  # a marker
    return bytes(jpeg)


# --- memory ------------------------------------------------------------------------------------------------------


def bench_memory(args, folder: Path) -> list[dict]:
    work = new(folder / "memory")
    (work / "images").mkdir()
    for i in range(100):
        (work / "images" / f"{i}.jpg").write_bytes(example_image(i, (16, 16)))
    text = "一张用来测量内存的图片,说明文字的长度和网上常见的差不多"
    query = "&".join(f"parameter{i}=%E5%9B%BE{i}" for i in range(12))
    refused, present = work / "refused.csv", work / "present.csv"
    with open(refused, "w", newline="") as one, open(present, "w", newline="") as two:
        writers = csv.writer(one), csv.writer(two)
        for writer in writers:
            writer.writerow(["text", "url", "filename"])
        for i in range(args.memory_rows):
            # Private addresses are refused: every row passes the queue, a thread and the report, but reaches no host.
            url = f"http://10.0.0.{i % 256}/it/u={i}?{query}"
            writers[0].writerow([text, url, f"{i // 10_000}/{i}.jpg"])
            writers[1].writerow([f"{text}{i}", url, f"{i % 100}.jpg"])
    download = [sys.executable, ROOT / "download_image.py", "--train_file", refused, "--image_path", work / "none"]
    filters = [sys.executable, ROOT / "filter_data.py", "--train_file", present, "--image_path", work / "images"]
    filters += ["--out_file", work / "out.csv"]
    table = []
    print(f"\n{f'memory, {args.memory_rows} rows':<44} {'seconds':>8} {'peak MB':>8}")
    for what, command in {
        "download_image.py": download,
        "download_image.py, resumed": download,
        "filter_data.py --exact_duplicates": [*filters, "--exact_duplicates"],
    }.items():
        started = time.monotonic()
        with PeakMemory() as memory:
            command = [str(part) for part in command]
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
            memory.watch(process.pid)
            _, stderr = process.communicate()
        if process.returncode:
            sys.exit(f"{command} failed:\n{stderr.decode()[-3000:]}")
        table.append({"what": what, "seconds": time.monotonic() - started, "peak_megabytes": memory.peak / 2**20})
        print(f"{what:<44} {table[-1]['seconds']:>8.0f} {table[-1]['peak_megabytes']:>8.0f}", flush=True)
    return table


class PeakMemory:
    """Peak memory of a process and its descendants, measured ten times a second."""

    def __enter__(self):
        self.peak, self._over = 0, threading.Event()
        return self

    def __exit__(self, *exc_info):
        self._over.set()
        self._thread.join()

    def watch(self, pid: int) -> None:
        self._thread = threading.Thread(target=self._look, args=(pid,))
        self._thread.start()

    def _look(self, pid: int) -> None:
        while not self._over.wait(0.1):
            self.peak = max(self.peak, sum(map(proportional_set_size, family(pid))))


def family(pid: int) -> list[int]:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [pid] + [member for child in children for member in family(int(child))]


def proportional_set_size(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)


if __name__ == "__main__":
    main()
