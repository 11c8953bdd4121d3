"""Run the commands and Python snippets of the documentation as a newcomer would: in order, in a fresh clone and venv.

python benchmarks/run_docs.py [--pages docs/search_EN.md ...] [--folder output/docs]

Every block marked bash, python or py runs, from the root of the clone; the README is first, because the other pages
use the model that it trains. Comments on the lines before a block, which do not show on the rendered page, say more:

    <!-- not run: REASON -->     the block is left out
    <!-- before: COMMANDS -->    shell commands that prepare the block; several lines are allowed
    <!-- until: URL -->          the block runs until this address answers, and is then stopped
    <!-- exact: 0.02 -->         before a text block: the last block that ran printed these lines, one after the other;
                                 decimal numbers may differ by that much (99.3% is 0.993), all else is equal
"""

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
README = "README_EN.md"
COMMENT = r"<!-- (?:not run|before|until|exact): .*? -->\n"
BLOCK = re.compile(rf"^((?: *{COMMENT})*)( *)```(\w*)\n(.*?)^\2```$", re.MULTILINE | re.DOTALL)
NUMBER = re.compile(r"(-?\d+\.\d+%?)")
ELSEWHERE = "/home/me/CLIP-Chinese"  # the clone, in the output that pages show


@dataclass(frozen=True)
class Block:
    """A fenced block, and the comments before it as mark → value."""

    line: int
    marks: dict[str, str]
    language: str
    code: str

    @property
    def is_command(self) -> bool:
        return self.language in ("bash", "python", "py") and "not run" not in self.marks


def blocks(text: str) -> Iterator[Block]:
    """The fenced blocks of a page in Markdown."""
    for found in BLOCK.finditer(text):
        marks, indent, language, code = found.groups()
        line = text.count("\n", 0, found.start(3)) + 1
        values = dict(re.findall(r"<!-- (.*?): (.*?) -->", marks, re.DOTALL))
        yield Block(line, values, language, re.sub(f"^{indent}", "", code, flags=re.MULTILINE))


class Newcomer:
    """A folder with a venv and a clone, and the commands that run there.

    Attributes:
        failures: `page:line` of each block that failed.
    """

    def __init__(self, folder: Path):
        self.failures: list[str] = []
        self._clone = folder / "CLIP-Chinese"
        venv = folder / "venv"
        if not venv.exists():
            subprocess.run([sys.executable, "-m", "venv", venv], check=True)
        self._environment = {**os.environ, "HOME": str(folder), "PATH": f"{venv / 'bin'}:{os.environ['PATH']}"}
        self._environment.pop("PYTHONPATH", None)

    def has_model(self) -> bool:
        return (self._clone / "output/demo/checkpoint-final").exists()

    def follow(self, page: str) -> None:
        """Run the blocks of a page in their order. The README begins with a new clone."""
        if page.startswith("README"):
            shutil.rmtree(self._clone, ignore_errors=True)
        else:
            self._update()
        printed = ""
        for block in blocks((ROOT / page).read_text(encoding="utf-8")):
            name, start = f"{page}:{block.line}", time.monotonic()
            if block.is_command:
                fault, printed = self._run(block)
            elif "exact" in block.marks:
                shown = block.code.replace(ELSEWHERE, str(self._clone))
                fault = "" if shows(printed, shown, float(block.marks["exact"])) else f"the page shows\n{shown}"
            else:
                if reason := block.marks.get("not run"):
                    print(f"{name}: not run: {reason}", flush=True)
                continue
            print(f"{name}: {'FAILED' if fault else 'ok'}, {time.monotonic() - start:.0f} s", flush=True)
            if fault:
                self.failures.append(name)
                print(f"{block.code}---- printed\n{printed}---- {fault}", flush=True)

    def _update(self) -> None:
        for command in (["fetch", "--quiet", "origin", "HEAD"], ["checkout", "--quiet", "--force", "FETCH_HEAD"]):
            subprocess.run(["git", *command], cwd=self._clone, check=True)

    def _run(self, block: Block) -> tuple[str, str]:
        """What went wrong, if anything, and what was printed."""
        code = block.code.replace("<this repository>", f"{ROOT} {self._clone.name}")
        command = ["bash", "-ec", code] if block.language == "bash" else ["python", "-c", code]
        where = self._clone if self._clone.exists() else self._clone.parent
        with tempfile.TemporaryFile("w+", errors="replace", newline="") as output:
            options = {"cwd": where, "env": self._environment, "stdout": output, "stderr": subprocess.STDOUT}
            status = subprocess.run(["bash", "-ec", block.marks.get("before", "")], **options).returncode
            if not status:
                process = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True, **options)
                status = _stop_when_served(process, block.marks["until"]) if "until" in block.marks else process.wait()
            output.seek(0)
            return f"exit status {status}" if status else "", as_shown(output.read())


def _stop_when_served(process: subprocess.Popen, url: str) -> int:
    """0 when the address has answered; otherwise the status that the process ended with before."""
    while process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=10):
                os.killpg(process.pid, signal.SIGINT)
                process.wait(60)
                return 0
        except OSError:
            time.sleep(0.5)
    return process.returncode or 1


def as_shown(printed: str) -> str:
    """What a terminal shows: after a carriage return, the line is written again, as progress bars do."""
    return re.sub(r"[^\n]*\r(?!\n)", "", printed)


def shows(printed: str, expected: str, tolerance: float) -> bool:
    """Whether the lines expected were printed, one after the other. Widths of columns do not count."""
    lines = [_parts(line) for line in printed.splitlines()]
    wanted = [_parts(line) for line in expected.splitlines()]
    return any(
        all(_alike(*pair, tolerance) for pair in zip(lines[start:], wanted, strict=False))
        for start in range(len(lines) - len(wanted) + 1)
    )


def _parts(line: str) -> list[str]:
    """Text and numbers, in turn."""
    return NUMBER.split(re.sub("-{2,}", "--", " ".join(line.split())))


def _alike(printed: list[str], expected: list[str], tolerance: float) -> bool:
    if printed[::2] != expected[::2]:
        return False
    return all(
        abs(_value(one) - _value(other)) <= tolerance + 1e-9
        for one, other in zip(printed[1::2], expected[1::2], strict=True)
    )


def _value(number: str) -> float:
    return float(number[:-1]) / 100 if number.endswith("%") else float(number)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    english = [README, *sorted(str(page.relative_to(ROOT)) for page in ROOT.glob("docs/*_EN.md"))]
    parser.add_argument("--pages", nargs="+", default=english, help="default: README and docs, in English")
    parser.add_argument("--folder", type=Path, help="keep venv and clone there, for the next run (default: temporary)")
    options = parser.parse_args()
    # A shell lets its background jobs ignore Ctrl-C, which what they start would inherit.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with tempfile.TemporaryDirectory() as scratch:
        folder = (options.folder or Path(scratch)).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        newcomer = Newcomer(folder)
        if not newcomer.has_model() and not options.pages[0].startswith("README"):
            newcomer.follow(README)
        for page in options.pages:
            newcomer.follow(page)
    print(f"failed: {' '.join(newcomer.failures)}" if newcomer.failures else "all blocks passed")
    return 1 if newcomer.failures else 0


if __name__ == "__main__":
    sys.exit(main())
