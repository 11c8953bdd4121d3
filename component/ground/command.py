"""What all scripts share: options that are checked before any work, and one way to end.

A script ends with 0 when all went well; 1 when it ran to its end and has something to say of the data, as its --help
tells; 2 after a mistake or a fault of the machine, which one line names; 128 + n after signal n.
"""

import argparse
import logging
import math
import os
import re
import signal
import sys
from collections.abc import Callable, Iterable

from component.ground.files import require_writable, require_writable_folder
from component.ground.plain_text import one_line

MOST = 2**31 - 1  # of what is counted, where nothing lower is said


class Parser(argparse.ArgumentParser):
    """Says a mistake in one line, as all scripts say theirs: `filter_data.py: --min_side -5: expected a number …`."""

    def error(self, message: str):
        message = message.removeprefix("argument ")
        if ": expected " in message:  # from the types below, which begin with the value
            message = message.replace(": ", " ", 1)
        self.exit(2, f"{self.prog}: {one_line(message)} (see --help)\n")

    def require_distinct(self, args: argparse.Namespace, *names: str) -> None:
        """End with an error where two of these options, each a path or several, name the same file."""
        option_of = {}
        for name in names:
            given = getattr(args, name) or []
            for path in [given] if isinstance(given, str) else given:
                other = option_of.setdefault(os.path.realpath(path), name)
                if other != name:
                    self.error(f"--{name} is --{other}; give another name, so that both are kept")


def whole_number(of: str, least: int = 1, most: int = MOST) -> Callable[[str], int]:
    """Type of an option: a whole number `of` things."""

    def parse(text: str) -> int:
        if not re.fullmatch(r"[+-]?[0-9]{1,20}", text) or not least <= int(text) <= most:
            raise expected(text, f"a number of {of} {_range(least, most)}")
        return int(text)

    return parse


def number(what: str, least: float = -math.inf, most: float = math.inf, above: float = -math.inf):
    """Type of an option: a finite number, from `least` or above `above`, to `most`."""

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


def output_file(text: str) -> str:
    """Type of an option: a file that can be written."""
    if not text:
        raise expected(text, "a file")
    try:
        require_writable(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def output_folder(text: str) -> str:
    """Type of an option: a folder that is there, or whose nearest parent that is there can be written."""
    if not text:
        raise expected(text, "a folder")
    try:
        require_writable_folder(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def input_file(text: str) -> str:
    """Type of an option: a file that is there, and no pipe, which could keep the script waiting for ever."""
    if not os.path.isfile(text):
        raise expected(text, "a file" + ("" if os.path.exists(text) else ", but there is none of that name"))
    return text


def input_folder(text: str) -> str:
    """Type of an option: a folder that is there."""
    if not os.path.isdir(text):
        raise expected(text, "a folder" + ("" if os.path.exists(text) else ", but there is none of that name"))
    return text


def expected(text: str, what: str) -> argparse.ArgumentTypeError:
    return argparse.ArgumentTypeError(f"{text or repr(text)}: expected {what}")


def _range(least: float, most: float, above: float = -math.inf) -> str:
    low = f"above {above:g}" if above > -math.inf else f"from {least:g}" if least > -math.inf else ""
    return f"{low} to {most:,}" if most not in (MOST, math.inf) else low


class LineFormatter(logging.Formatter):
    """One record, one line, and nothing in it that a terminal would obey: names of files stand in log lines too."""

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
) -> int:
    """Run a script and give its exit status; what a user can mend is one line on stderr.

    Args:
        main: gives the status, None for 0.
        stopped: what to say after Ctrl-C, or one of `signals`.
        signals: those that end the script as Ctrl-C does, so that it clears away what it has begun; unless they are
            ignored, as under nohup.
    """

    def end(number: int, frame) -> None:
        raise _Ended(number)

    log = logging.StreamHandler()
    log.setFormatter(LineFormatter(log_format, datefmt="%H:%M:%S"))
    logging.basicConfig(handlers=[log])
    handlers = {}
    for name in signals:
        if (number := getattr(signal, name, None)) and signal.getsignal(number) == signal.SIG_DFL:
            handlers[number] = signal.signal(number, end)
    if hasattr(sys.stdout, "reconfigure"):  # names of files need not be text, and a terminal need not know Chinese
        sys.stdout.reconfigure(errors="backslashreplace")
    script = os.path.basename(sys.argv[0])
    try:
        status = main() or 0
        sys.stdout.flush()
        return status
    except KeyboardInterrupt as stop:
        print(f"\n{stopped}", file=sys.stderr)
        return 128 + getattr(stop, "number", signal.SIGINT)
    except BrokenPipeError:  # whoever read the output has read enough
        return 128 + 13  # SIGPIPE
    except MemoryError:
        print(f"{script}: not enough memory", file=sys.stderr)
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # torch's, which is not to be imported for its sake
            raise
        print(f"{script}: not enough memory on the GPU; take smaller batches", file=sys.stderr)
    except (ValueError, OSError, ImportError) as error:
        print(f"{script}: {one_line(error)}", file=sys.stderr)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        _give_up_output()
    return 2


def _give_up_output() -> None:
    """Where stdout takes nothing more, let Python not try it again, and speak of it, when it ends."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
