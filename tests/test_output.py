"""Scripts whose stdout or stderr no one can read: a closed pipe, a full disk."""

import os
import subprocess
import sys

import pytest
from conftest import ROOT

from component.ground.output import LastingStream


def test_writing_to_a_stream_without_a_reader_does_nothing():
    reader, writer = os.pipe()
    os.close(reader)
    full = os.open("/dev/full", os.O_WRONLY)
    for descriptor in (writer, full):
        stream = LastingStream(open(descriptor, "w", closefd=False, buffering=1))
        for _ in range(3):
            print("text", file=stream, flush=True)
        stream.fileno()
        os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)
    closed = open(os.devnull, "w")
    closed.close()
    print("text", file=LastingStream(closed), flush=True)


SCRIPT = """
import sys
from component.ground.command import run_script

def main():
    for _ in range(1000):
        print("text")
        print("text", file=sys.stderr)
    with open(sys.argv[1], "w") as file:
        file.write("done")

sys.exit(run_script(main, needs_stdout=False))
"""


@pytest.mark.parametrize("redirection", [">&-", ">&- 2>&- <&-", ">/dev/full 2>/dev/full", "2>&1 | head -1"])
def test_a_script_finishes_without_its_output(tmp_path, redirection):
    (tmp_path / "script.py").write_text(SCRIPT)
    command = f"set -o pipefail; PYTHONPATH={ROOT} {sys.executable} script.py out {redirection}"
    done = subprocess.run(["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out").read_text() == "done" and "Traceback" not in done.stderr
