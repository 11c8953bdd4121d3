"""How all scripts run and end: signals, errors in one line, exit statuses.

A script exits with 0 on success; 1 if it finished but found problems in the data, as its --help says; 2 after a user's
mistake or a fault of the machine, with one line on stderr; 75 likewise, if the same command may succeed when it is
started again; 128 + n after signal n.
"""

import gc
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterable

from component.ground.cores import spin_briefly
from component.ground.output import LastingStream, give_up_stdout, open_closed_streams
from component.ground.plain_text import one_line

TRY_AGAIN = 75  # EX_TEMPFAIL of sysexits.h


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
    """What to do if Python itself raised it because a package is missing; `import_optional` has its own message."""
    if not str(error).startswith("No module named "):
        return ""
    return f" in {sys.executable}: pip install -r requirements.txt, or activate the environment that has it"


def _has_process_group() -> bool:
    """Whether torch connects this process with others. Its threads must end before the interpreter does."""
    distributed = sys.modules.get("torch.distributed")
    return distributed is not None and distributed.is_available() and distributed.is_initialized()
