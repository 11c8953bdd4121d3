"""How many cores a process may use, in containers too."""

import os
import subprocess
import sys

import pytest
from conftest import ROOT

from component.ground.cores import usable_cores

ALL = len(os.sched_getaffinity(0))


def machine(root, cgroup: str, **files: str) -> str:
    """A folder with proc/self/cgroup, and with files below sys/fs/cgroup; `__` in a name is a folder's end."""
    for name, content in {"proc/self/cgroup": cgroup, **files}.items():
        path = root / (name if name == "proc/self/cgroup" else "sys/fs/cgroup/" + name.replace("__", "/"))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return str(root)


@pytest.mark.parametrize(
    "cgroup, files, cores",
    [
        ("0::/\n", {}, ALL),
        ("0::/\n", {"cpu.max": "max 100000\n"}, ALL),
        ("0::/\n", {"cpu.max": "100000 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "50000 100000\n"}, 1),
        ("0::/\n", {"cpu.max": "150000 100000\n"}, min(2, ALL)),
        ("0::/\n", {"cpu.max": "6400000 100000\n"}, ALL),
        ("0::/job/step\n", {"job__cpu.max": "100000 100000", "job__step__cpu.max": "max 100000"}, 1),
        ("0::/docker/abc\n", {"cpu.max": "100000 100000"}, 1),  # the host's path, seen from inside
        (
            "4:cpu,cpuacct:/docker/abc\n3:memory:/\n",
            {"cpu__cpu.cfs_quota_us": "100000", "cpu__cpu.cfs_period_us": "100000"},
            1,
        ),
        ("4:cpu:/\n", {"cpu__cpu.cfs_quota_us": "-1\n", "cpu__cpu.cfs_period_us": "100000\n"}, ALL),
        ("", {}, ALL),
        ("0::/\n", {"cpu.max": "nonsense"}, ALL),
    ],
)
def test_no_more_cores_than_the_container_may_use(tmp_path, cgroup, files, cores):
    assert usable_cores(machine(tmp_path, cgroup, **files)) == cores


def test_without_control_groups_all_cores_of_the_affinity_mask_are_usable(tmp_path):
    assert usable_cores(str(tmp_path)) == ALL


@pytest.mark.parametrize(
    "variables, threads, spins", [({}, 1, "1000"), ({"OMP_NUM_THREADS": "3", "GOMP_SPINCOUNT": "5"}, 3, "5")]
)
def test_torch_uses_the_cores_it_may_and_spins_briefly_unless_the_user_says_otherwise(variables, threads, spins):
    code = (
        "import os\nfrom component.ground.command import run_script\n"
        "from component.ground.cores import limit_threads\n"
        "def main():\n import torch\n torch.set_num_threads(int(os.environ.get('OMP_NUM_THREADS', 16)))\n"
        " os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n limit_threads()\n print(torch.get_num_threads())\n"
        "run_script(main)"
    )
    theirs = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    environment = {key: value for key, value in os.environ.items() if key not in theirs}
    environment |= {"OMP_DISPLAY_ENV": "VERBOSE", **variables}  # GNU OpenMP prints what it has read
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert int(done.stdout) == threads
    assert f"GOMP_SPINCOUNT = '{spins}'" in done.stderr
