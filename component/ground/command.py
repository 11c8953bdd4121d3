"""What all scripts share: options that are checked before any work starts, and exit statuses.

A script exits with 0 on success; 1 if it finished but found problems in the data, as its --help says; 2 after a user's
mistake or a fault of the machine, with one line on stderr; 75 likewise, if the same command may succeed when it is
started again; 128 + n after signal n.
"""

import argparse
import gc
import logging
import math
import os
import re
import signal
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress

from component.ground.cores import spin_briefly
from component.ground.output import LastingStream, give_up_stdout, open_closed_streams
from component.ground.output_paths import require_writable, require_writable_folder
from component.ground.plain_text import one_line

TRY_AGAIN = 75  # EX_TEMPFAIL of sysexits.h
MOST = 2**31 - 1  # default upper limit of counts


class Parser(argparse.ArgumentParser):
    """Reports a mistake in one line: `filter_data.py: --min_side -5: expected a number …`."""

    def parse_known_args(self, args=None, namespace=None):
        self._words = sys.argv[1:] if args is None else list(args)
        return super().parse_known_args(args, namespace)

    def error(self, message: str):
        message = message.removeprefix("argument ")
        if message.endswith(" required") or " are required: " in message:
            # argparse looks for missing options first, so that a mistyped `--modle` would only be a missing `--model`.
            options = [word.partition("=")[0] for word in self._words if word.startswith("--")]
            unknown = [
                word for word in options if not any(known.startswith(word) for known in self._option_string_actions)
            ]
            if unknown:
                message = f"unrecognized arguments: {', '.join(unknown)}; {message}"
        if ": expected " in message:  # from the types below, whose messages begin with the value
            message = message.replace(": ", " ", 1)
        self.exit(2, f"{self.prog}: {one_line(message)} (see --help)\n")

    def require_distinct(self, args: argparse.Namespace, *names: str) -> None:
        """Exit with an error if two of these options, each with one path or several, name the same file."""
        option_of = {}
        for name in names:
            given = getattr(args, name) or []
            for path in [given] if isinstance(given, str) else given:
                other = option_of.setdefault(os.path.realpath(path), name)
                if other != name:
                    self.error(f"--{name} and --{other} name the same file; give each its own")


def whole_number(of: str, least: int = 1, most: int = MOST) -> Callable[[str], int]:
    """Option type: a whole number `of` things.

    >>> whole_number("pixels", least=0, most=100)("64")
    64
    """

    def parse(text: str) -> int:
        if not re.fullmatch(r"[+-]?[0-9]{1,20}", text) or not least <= int(text) <= most:
            raise expected(text, f"a number of {of} {_range(least, most)}")
        return int(text)

    return parse


def number(what: str, least: float = -math.inf, most: float = math.inf, above: float = -math.inf):
    """Option type: a finite number from `least` (or above `above`) to `most`.

    >>> number("a share", 0, 1)("0.5")
    0.5
    """

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and least <= value <= most and value > above):
            raise expected(text, f"{what} {_range(least, most, above)}")
        return value

    return parse


share = number("a share", 0, 1)


def part(text: str) -> tuple[int, int]:
    """Option type: i/n, the i-th of n parts, counted from 1.

    >>> part("1/4")
    (1, 4)
    """
    match = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise expected(text, "a part such as 1/4; four machines take 1/4, 2/4, 3/4 and 4/4")
    return int(match[1]), int(match[2])


def _output(what: str, require: Callable[[str], None]) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if not text:
            raise expected(text, what)
        try:
            require(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
        return text

    return parse


output_file = _output("a file", require_writable)
output_folder = _output("a folder", require_writable_folder)  # that exists, or that can be created


def _input(what: str, is_there: Callable[[str], bool]) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if not is_there(text):
            raise expected(text, what + ("" if os.path.exists(text) else ", but it does not exist"))
        return text

    return parse


input_file = _input("a file", os.path.isfile)  # a regular one: a pipe could keep the script waiting forever
input_folder = _input("a folder", os.path.isdir)


def unicode_text(given: str) -> str:
    """Option type: a text that is not empty, in Unicode whatever the terminal's encoding.

    Python decodes the command line by the locale. A locale such as Latin-1 makes mojibake of UTF-8 without an error.
    """
    if not given.strip():
        raise expected(given, "a text")
    try:
        return decode_argument(given, sys.getfilesystemencoding())
    except UnicodeError:
        raise expected(
            given, "a text in UTF-8 (the terminal uses another encoding, such as GBK: use UTF-8, or a text file)"
        ) from None


def decode_argument(given: str, encoding: str) -> str:
    """A word of the command line that Python decoded by `encoding`; read as UTF-8 if that encoding has no Chinese.

    Raises:
        UnicodeError: the bytes are not text in `encoding`.

    >>> decode_argument("小狗".encode().decode("latin-1"), "latin-1")
    '小狗'
    """
    content = given.encode(encoding, "surrogateescape")
    try:
        "中".encode(encoding)
    except UnicodeEncodeError:
        with suppress(UnicodeDecodeError):
            return content.decode()
    given.encode()
    return given


def expected(text: str, what: str) -> argparse.ArgumentTypeError:
    """The error of an option type: the value, and what was expected instead."""
    return argparse.ArgumentTypeError(f"{text or repr(text)}: expected {what}")


def _range(least: float, most: float, above: float = -math.inf) -> str:
    low = f"above {above:g}" if above > -math.inf else f"from {least:g}" if least > -math.inf else ""
    return f"{low} to {most:,}" if most not in (MOST, math.inf) else low


class LineFormatter(logging.Formatter):
    """Writes each record in one line without control characters: log lines contain file names."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return one_line(super().formatMessage(record))


class _Ended(KeyboardInterrupt):
    def __init__(self, number: int):
        self.number = number


def run_script(
    main: Callable[[], int | None],
    stopped: str = "Stopped.",
    signals: Iterable[str] = ("SIGTERM", "SIGHUP"),
    log_format: str = "%(message)s",
    needs_stdout: bool = True,
) -> int:
    """Run a script and return its exit status. An error that the user can fix becomes one line on stderr.

    Args:
        main: returns the status, None for 0.
        stopped: message after Ctrl-C or one of `signals`.
        signals: treated like Ctrl-C, so that the script removes unfinished output; not if they are ignored, as under
            nohup.
        log_format: of the log lines on stderr.
        needs_stdout: stdout is the result, so the script ends with its reader. Otherwise it is a log that the
            script outlives, as it always outlives stderr.
    """

    def end(number: int, frame) -> None:
        raise _Ended(number)

    spin_briefly()  # before `main` imports torch
    open_closed_streams()
    sys.stderr = LastingStream(sys.stderr)
    if not needs_stdout:
        sys.stdout = LastingStream(sys.stdout)
    log = logging.StreamHandler()
    log.setFormatter(LineFormatter(log_format, datefmt="%H:%M:%S"))
    logging.basicConfig(handlers=[log])
    handlers = {}
    for name in signals:
        if (number := getattr(signal, name, None)) and signal.getsignal(number) == signal.SIG_DFL:
            handlers[number] = signal.signal(number, end)
    if hasattr(sys.stdout, "reconfigure"):  # file names may not be UTF-8, and a terminal may not show Chinese
        sys.stdout.reconfigure(errors="backslashreplace")
    script = os.path.basename(sys.argv[0])
    try:
        status = main() or 0
        sys.stdout.flush()
        return status
    except KeyboardInterrupt as stop:
        print(f"\n{stopped}", file=sys.stderr)
        return 128 + getattr(stop, "number", signal.SIGINT)
    except BrokenPipeError:  # the reader of the output is gone, as with | head
        return 128 + 13  # SIGPIPE
    except MemoryError:
        print(f"{script}: not enough memory", file=sys.stderr)
    except RuntimeError as error:
        # torch's errors, by name and text, because importing torch takes seconds.
        if type(error).__name__ == "OutOfMemoryError":
            print(f"{script}: not enough memory on the GPU; take smaller batches", file=sys.stderr)
        elif "DefaultCPUAllocator" in str(error):
            print(f"{script}: not enough memory; take smaller batches or fewer workers", file=sys.stderr)
        else:
            raise
    except (ValueError, OSError, ImportError) as error:
        print(f"{script}: {one_line(error)}{_where_packages_are(error)}", file=sys.stderr)
        return getattr(error, "status", 2)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        give_up_stdout()
        if not _has_process_group():
            gc.freeze()  # or the interpreter looks at a million objects for the last time, which takes a second
    return 2


def _where_packages_are(error: Exception) -> str:
    """What to do if Python itself raised it for want of a package; `import_optional` says it in its own message."""
    if not str(error).startswith("No module named "):
        return ""
    return f" in {sys.executable}: pip install -r requirements.txt, or activate the environment that has it"


def _has_process_group() -> bool:
    """Whether torch connects this process with others. Its threads must end before the interpreter does."""
    distributed = sys.modules.get("torch.distributed")
    return distributed is not None and distributed.is_available() and distributed.is_initialized()
