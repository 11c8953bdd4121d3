"""The road of a hundred million pairs, shrunk onto one machine with two nodes of a real Slurm.

    apt-get install slurmctld slurmd munge
    pip install -r requirements-extras.txt
    python -m venv ~/i2d && ~/i2d/bin/pip install -r requirements-bench.txt  # img2dataset, which pins older packages
    PATH="$PATH:$HOME/i2d/bin" python benchmarks/whole_road.py

URLs in Parquet → img2dataset → verdicts (an array job) → keep-list → training on two nodes, each of which sees only
its own copy of the shards → the time limit, saved, put back, resumed → vectors (an array job) → gallery. The commands
are those of the docs; what they print is shown. Needs root: each slurmd has mounts of its own. The towers are those of
the demo, the URLs are of a local server, and some are dead or repeated.
"""

import argparse
import functools
import http.server
import json
import re
import shlex
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pandas as pd
from slurm import NODES, ROOT, Job, cluster, run

DEMO = ROOT / "data" / "demo"
PER_SHARD, DEAD, REPEATED = 100, 20, 30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=400)
    parser.add_argument("--folder", help="keep everything in this folder")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(options.folder or temporary).resolve()
        folder.mkdir(exist_ok=True)
        (folder / "local").mkdir()  # another disk on each node
        urls = write_urls(folder, options.pairs)
        download(folder, urls)
        with cluster(folder, local=folder / "local"):
            clean(folder)
            checkpoint = train(folder)
            search(folder, checkpoint)


def say(step: str) -> None:
    print(f"\n== {step}", flush=True)


def script(*command, **options) -> str:
    """Run one of our scripts and show what it prints."""
    done = subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, capture_output=True, text=True, **options)
    print(done.stdout, end="", flush=True)
    if done.returncode:
        sys.exit(f"{command[0]} ended with status {done.returncode}: {done.stderr[-3000:]}")
    return done.stdout


def array(folder: Path, name: str, *command) -> None:
    """Run a script on every node, with a part of the work each, as an array job; show what it prints."""
    part = '--part "$((SLURM_ARRAY_TASK_ID + 1))/$SLURM_ARRAY_TASK_COUNT"'
    line = f"{sys.executable} {shlex.join(map(str, command))} {part}"
    log = f"--output={folder}/{name}-%a.log"
    where = ["--wait", "--nodes=1", f"--array=0-{len(NODES) - 1}", f"--chdir={ROOT}", log]
    # What an array job prints on stderr are progress bars.
    done = subprocess.run(["sbatch", *where, "--wrap", f"srun --cpus-per-task=1 {line} 2>/dev/null"])
    for task in range(len(NODES)):
        print(f"-- task {task}\n{(folder / f'{name}-{task}.log').read_text()}", end="", flush=True)
    if done.returncode:
        sys.exit(f"a task of {name} ended with status {done.returncode}")


def write_urls(folder: Path, pairs: int) -> Path:
    """The first captions of the demo with the URLs of their images on a local server."""
    handler = functools.partial(QuietHandler, directory=str(DEMO / "images"))
    server = QuietServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    table = pd.read_csv(DEMO / "train.csv").drop_duplicates("filename").head(pairs)
    urls = pd.DataFrame({"URL": address + "/" + table["filename"], "TEXT": table["text"]})
    urls.loc[urls.index[:DEAD], "URL"] = [f"{address}/dead/{number}.png" for number in range(DEAD)]
    urls = pd.concat([urls, urls.tail(REPEATED)])
    say(f"{len(urls)} URLs, of which {DEAD} are dead and {REPEATED} repeated")
    urls.to_parquet(folder / "urls.parquet")
    return folder / "urls.parquet"


class QuietServer(http.server.ThreadingHTTPServer):
    def handle_error(self, *args) -> None:
        """img2dataset gives up a slow answer."""


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args) -> None:
        """Nothing."""


def download(folder: Path, urls: Path) -> None:
    say("img2dataset")
    text = script("download_image.py", "--train_file", urls, "--to_img2dataset", folder / "table.parquet")
    command = re.search(r"^img2dataset(?: .*\\\n|.*\n)*?.*[^\\]$", text, re.MULTILINE)[0]
    command = re.sub(r"(number_sample_per_shard) \d+", rf"\1 {PER_SHARD}", command)
    done = subprocess.run(["bash", "-c", command], cwd=folder, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"img2dataset ended with status {done.returncode}: {done.stderr[-3000:]}")
    print("\n".join(path.name for path in sorted((folder / "shards").glob("*.tar"))))


def clean(folder: Path) -> None:
    say("verdicts, an array job")
    array(folder, "verdicts", "filter_data.py", "--train_file", folder / "shards", "--verdicts", folder / "verdicts")
    say("keep-list")
    rules = ["--exact_duplicates", "--min_text", "1"]
    script("filter_data.py", "--verdicts", folder / "verdicts", "--keep_list", folder / "keep.parquet", *rules)


def train(folder: Path) -> Path:
    """Train until the time limit and on after it; returns the last checkpoint."""
    say("each node copies the shards to its own disk, and training begins")
    copy = (
        f"cp {folder}/shards/*.tar {folder}/local && touch {folder}/local/*.tar && echo $(ls {folder}/local | wc -l)"
    )
    print(
        run("srun", f"--nodes={len(NODES)}", "--ntasks-per-node=1", "bash", "-c", f"{copy} shards on $SLURMD_NODENAME")
    )
    job = Job(folder / "training", folder)
    arguments = json.loads((DEMO.parent.parent / "train_args" / "train_demo.json").read_text())
    for key in ("num_train_epochs", "test_file", "image_path", "save_strategy"):
        arguments.pop(key)
    arguments |= {
        **{
            "output_dir": str(folder / "output"),
            "train_file": f"{folder}/local/*.tar",
            "keep_list": f"{folder}/keep.parquet",
        },
        **{"max_steps": 10**6, "per_device_train_batch_size": 64, "save_steps": 1000},
        **{"report_to": "none", "disable_tqdm": True, "use_cpu": True, "ddp_backend": "gloo"},
    }
    (job.folder / "train.json").write_text(json.dumps(arguments))
    job.submit(minutes=6)  # it is signalled after one
    saved = job.says(r"checkpoint-(\d+) is saved")
    say("after the time limit")
    resumed = job.says(r"resuming from .*checkpoint-(\d+)")
    assert saved[1] == resumed[1], (saved[0], resumed[0])
    run("scancel", job.id)
    job.ends_as("CANCELLED")
    lines = re.compile("keep-list|image features of|is saved|resuming from|time limit")
    print("\n".join(line for line in job.log.read_text().splitlines() if lines.search(line)))
    return max((folder / "output").glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]))


def search(folder: Path, checkpoint: Path) -> None:
    say("vectors, an array job")
    options = ["--model", checkpoint, "--vectors", folder / "vectors", "--keep_list", folder / "keep.parquet"]
    array(folder, "vectors", "search_image.py", "embed", *options, "--images", folder / "shards")
    say("gallery")
    images = ["--images", *sorted((folder / "shards").glob("*.tar"))]
    script("search_image.py", "index", *options, *images, "--gallery", folder / "gallery")


if __name__ == "__main__":
    main()
