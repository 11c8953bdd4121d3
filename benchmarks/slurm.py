"""Runs train_args/slurm.sbatch on a real Slurm: slurmctld and two slurmd on this machine, with a process on each.

    apt-get install slurmctld slurmd munge
    python benchmarks/slurm.py

Needs root and the three daemons. They run on ports, in a folder and with a key of their own, and end with the script.
The towers are tiny, and the processes use the CPU.

time limit: the job is signalled before its time limit, saves, is put back into the queue and resumes there.
scancel: the job saves, and is not put back.
lost process: a process is killed. The job is put back and resumes, but not after the second failure in a row.
mistake: an unknown key in the arguments. The job ends and is not put back.
"""

import argparse
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from synthetic import make_data, make_model, make_processor

from component.processor import save_processor

ROOT = Path(__file__).resolve().parent.parent
NODES = ("node1", "node2")
PATIENCE = 600  # seconds until something happens

CONFIGURATION = """
ClusterName=check
SlurmctldHost={host}
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CryptoType=crypto/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
MpiDefault=none
ReturnToService=2
KillWait=30
NodeName=node1 NodeHostname={host} Port={ports[1]} CPUs={cpus}
NodeName=node2 NodeHostname={host} Port={ports[2]} CPUs={cpus}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", choices=[*CASES, []], help="default: all", metavar="CASE")
    parser.add_argument("--folder", help="keep everything in this folder")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that the daemons are ended
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(options.folder or temporary).resolve()
        folder.mkdir(exist_ok=True)
        make_model("tiny").save_pretrained(folder / "towers")
        save_processor(make_processor(folder), str(folder / "towers"))
        make_data(folder, 256, 64)
        with cluster(folder):
            for name in options.cases or CASES:
                job = Job(folder / name.replace(" ", "_"), folder)
                CASES[name](job)
                print(f"{name}: passed", flush=True)


@contextmanager
def cluster(folder: Path, local: Path | None = None) -> Iterator[None]:
    """A munged, a slurmctld and two slurmd; commands of this process find them by SLURM_CONF.

    Args:
        local: an empty folder that is another one for the jobs of each node, as a disk of its own is.
    """
    host = socket.gethostname().partition(".")[0]
    (folder / "slurm.conf").write_text(
        CONFIGURATION.format(host=host, folder=folder, ports=free_ports(3), cpus=os.cpu_count())
    )
    (folder / "munge.key").write_bytes(os.urandom(64))
    (folder / "munge.key").chmod(0o600)
    (folder / "state").mkdir()
    for node in NODES:
        (folder / f"spool-{node}").mkdir()
    os.environ["SLURM_CONF"] = str(folder / "slurm.conf")
    munge = {"key-file": "munge.key", "socket": "munge.socket", "pid-file": "munge.pid", "log-file": "munge.log"}
    munge["seed-file"] = "munge.seed"
    daemons = [
        ["munged", "--foreground", "--force", *(f"--{option}={folder / name}" for option, name in munge.items())],
        ["slurmctld", "-D"],
        *(_daemon_of(node, folder, local) for node in NODES),
    ]
    started = []
    try:
        for command in daemons:
            log = open(folder / f"daemon-{len(started)}.log", "w")
            started.append(subprocess.Popen(command, stdout=log, stderr=log))
            if command[0] == "munged":
                wait_for(lambda: (folder / "munge.socket").exists())
        wait_for(lambda: run("sinfo", "-h", "-t", "idle", "-o", "%D", check=False).strip() == str(len(NODES)))
        yield
    finally:
        run("scancel", "--user=root", check=False)
        time.sleep(5)
        for daemon in reversed(started):
            daemon.terminate()
            daemon.wait()


def _daemon_of(node: str, folder: Path, local: Path | None) -> list[str]:
    daemon = ["slurmd", "-D", "-N", node]
    if local is None:
        return daemon
    disk = folder / f"disk-{node}"
    disk.mkdir()
    # A mount of this daemon and of the jobs that it starts.
    return ["unshare", "--mount", "sh", "-c", f"mount --bind {disk} {local} && exec {' '.join(daemon)}"]


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def run(*command: str, check: bool = True, **options) -> str:
    return subprocess.run(command, check=check, capture_output=True, text=True, **options).stdout


def wait_for(fact: Callable[[], object]) -> object:
    """The first true result."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if found := fact():
            return found
        time.sleep(1)
    raise TimeoutError


class Job:
    """A job of slurm.sbatch that trains for longer than anyone waits."""

    def __init__(self, folder: Path, data: Path):
        self.folder = folder
        folder.mkdir()
        arguments = {
            "output_dir": str(folder / "output"),
            "clip_pretrain_path": str(data / "towers"),
            "load_from_bert_clip": True,
            "train_file": str(data / "train.csv"),
            "image_path": str(data),
            "max_steps": 10**6,
            "save_steps": 20,
            "save_total_limit": 2,
            "logging_steps": 20,
            "per_device_train_batch_size": 8,
            "report_to": "none",
            "disable_tqdm": True,
            "use_cpu": True,
            "ddp_backend": "gloo",
        }
        (folder / "train.json").write_text(json.dumps(arguments))

    def submit(self, *more: str, minutes: int = 60, **environment: str) -> None:
        nodes = [f"--nodes={len(NODES)}", "--ntasks-per-node=1", "--cpus-per-task=1", "--gpus-per-node=0"]
        # In the clone, as a user would; the log is elsewhere.
        command = ["sbatch", "--parsable", *nodes, f"--time={minutes}", f"--output={self.log}", f"--chdir={ROOT}"]
        script = [str(ROOT / "train_args" / "slurm.sbatch"), "--train_args_file", str(self.folder / "train.json")]
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1", **environment}
        self.id = run(*command, *script, *more, env=environment).strip()

    @property
    def log(self) -> Path:
        return self.folder / "job.log"

    @property
    def state(self) -> str:
        found = re.search(r"JobState=(\w+)", run("scontrol", "show", "job", self.id, check=False))
        return found[1] if found else "gone"

    def says(self, pattern: str, times: int = 1) -> re.Match:
        """Wait until the log has this line as often."""

        def found() -> re.Match | None:
            if self.state == "PENDING":  # a requeued job waits two minutes by default
                run("scontrol", "update", f"JobId={self.id}", "StartTime=now", check=False)
            matches = list(re.finditer(pattern, self.log.read_text() if self.log.exists() else ""))
            return matches[times - 1] if len(matches) >= times else None

        try:
            return wait_for(found)
        except TimeoutError:
            sys.exit(f"{self.folder.name}: no `{pattern}` ({times}) in\n{self.log.read_text()[-3000:]}")

    def ends_as(self, state: str) -> None:
        wait_for(lambda: self.state not in ("RUNNING", "COMPLETING", "PENDING", "CONFIGURING"))
        if self.state != state:
            sys.exit(f"{self.folder.name}: {self.state} instead of {state}:\n{self.log.read_text()[-3000:]}")

    def kill_a_process(self) -> None:
        pids = run("pgrep", "-f", f"train_clip.py.*{self.folder}/train.json").split()
        commands = {pid: Path(f"/proc/{pid}/cmdline").read_text().split("\0")[0] for pid in pids}
        victim = next(pid for pid, command in commands.items() if "python" in command)
        subprocess.run(["kill", "-KILL", victim], check=True)


def time_limit(job: Job) -> None:
    job.submit(minutes=6)  # it is signalled after one
    saved = job.says(r"checkpoint-(\d+) is saved")
    resumed = job.says(r"resuming from .*checkpoint-(\d+)")
    assert saved[1] == resumed[1], (saved, resumed)
    run("scancel", job.id)
    job.ends_as("CANCELLED")


def cancelled(job: Job) -> None:
    job.submit()
    job.says(r"'loss'")
    run("scancel", job.id)
    job.ends_as("CANCELLED")
    job.says(r"checkpoint-(\d+) is saved")


def lost_process(job: Job) -> None:
    job.submit(MAX_FAILURES="1")
    wait_for(lambda: list(job.folder.glob("output/checkpoint-*")))
    job.kill_a_process()
    job.says("failure 1 of at most 1 in a row")
    job.says(r"resuming from .*checkpoint-(\d+)")
    job.says(r"'loss'", times=job.log.read_text().count("'loss'") + 2)
    job.kill_a_process()
    job.says("failure 2 of at most 1 in a row")
    job.ends_as("FAILED")


def mistake(job: Job) -> None:
    job.submit("--set", "lerning_rate=1")
    job.ends_as("FAILED")
    job.says("learning_rate")


CASES = {"time limit": time_limit, "scancel": cancelled, "lost process": lost_process, "mistake": mistake}

if __name__ == "__main__":
    if not all(map(shutil.which, ("munged", "slurmctld", "slurmd"))):
        sys.exit("slurmctld, slurmd and munged are not installed")
    main()
