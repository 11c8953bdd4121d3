"""A process that imports torch and our modules once, then forks a child for each script that a test runs to its end.

Starting Python and importing torch takes five seconds, which is most of the time of a small script. A forked child
runs the same code with its own arguments, output files and exit status. Tests of signals, of start-up and of several
processes start real processes.
"""

import atexit
import importlib
import json
import os
import pkgutil
import runpy
import subprocess
import sys
import tempfile
import threading
import traceback

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


class ForkServer:
    """Starts the server and sends it one request at a time."""

    def __init__(self, environment: dict[str, str]):
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self._process = subprocess.Popen([sys.executable, __file__], cwd=ROOT, env=environment, text=True, **pipes)

    def run(self, arguments: list[str], processes: int = 1) -> subprocess.CompletedProcess:
        """Run a script and its arguments, or -c and code, as `python` or as `torchrun` of several processes does."""
        with tempfile.NamedTemporaryFile("r") as stdout, tempfile.NamedTemporaryFile("r") as stderr:
            request = json.dumps([arguments, processes, stdout.name, stderr.name])
            print(request, file=self._process.stdin, flush=True)
            status = os.waitstatus_to_exitcode(int(self._process.stdout.readline()))
            return subprocess.CompletedProcess(arguments, status, stdout.read(), stderr.read())

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()


def serve() -> None:
    """Fork a child for each line of stdin and answer with its wait status."""
    sys.path[0] = ROOT
    import component

    for module in pkgutil.walk_packages(component.__path__, "component."):
        importlib.import_module(module.name)
    answers = os.dup(1)
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            os.close(answers)
            _run(*json.loads(line))
        os.write(answers, b"%d\n" % os.waitpid(pid, 0)[1])


def _run(arguments: list[str], processes: int, stdout: str, stderr: str) -> None:
    """Run as the interpreter would, but exit without finalizing the interpreter, which takes a second."""
    for number, path in enumerate((os.devnull, stdout, stderr)):
        file = os.open(path, os.O_RDWR)
        os.dup2(file, number)
        os.close(file)
    status = _execute(arguments) if processes == 1 else _launch(arguments, processes)
    threading._shutdown()  # joins the threads, as at the end of Python
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _execute(arguments: list[str]) -> int:
    """Run a script, or -c and code, and return its exit status."""
    try:
        if arguments[0] == "-c":
            sys.argv = ["-c", *arguments[2:]]
            exec(compile(arguments[1], "<string>", "exec"), {"__name__": "__main__"})
        else:
            sys.argv = list(arguments)
            sys.path[0] = os.path.dirname(os.path.abspath(arguments[0]))
            runpy.run_path(arguments[0], run_name="__main__")
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def _launch(arguments: list[str], processes: int) -> int:
    """Like `torchrun --standalone`, but with forked workers."""
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        start_method="fork",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        monitor_interval=0.1,
    )
    try:
        elastic_launch(config, _work)(arguments)
    except ChildFailedError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _work(arguments: list[str]) -> None:
    if status := _execute(arguments):
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    serve()
