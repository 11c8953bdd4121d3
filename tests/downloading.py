"""Downloads in the process of a test, and what they leave."""

import contextlib
import csv
import os
from pathlib import Path

from component.download.job import DownloadSettings
from component.download.limits import FetchLimits
from component.download.main_loop import download_images
from component.download.report import Report
from component.download.rows import Rows
from component.download.tally import Tally, summary
from component.download.worker import work

HALF_A_MESSAGE = (100).to_bytes(4, "big") + b"50 bytes are missing".ljust(50)  # its length goes first


def report(folder, name="download_report.csv") -> dict[str, dict]:
    """The last report row of each file name."""
    with open(folder / name, newline="", encoding="utf-8") as file:
        return {row["filename"]: row for row in csv.DictReader(file)}


LOCAL = FetchLimits(allow_private_hosts=True)


@contextlib.contextmanager
def downloading(
    folder,
    table="train.csv",
    part=(1, 1),
    report_name="download_report.csv",
    columns=None,
    limits=LOCAL,
    again=None,
    **settings,
):
    """The outcomes of a download in this process, and its report. `again`: options of download_images."""
    settings = DownloadSettings(**{"num_threads": 4, "retries": 0, "patience": 1.0, "limits": limits} | settings)
    with (
        Rows(str(folder / table), str(folder / "images"), part, columns, str(folder)) as rows,
        Report(str(folder / report_name)) as report,
        contextlib.closing(download_images(rows, report, settings, **(again or {}))) as outcomes,
    ):
        yield outcomes, report


def download(folder, **options) -> tuple[dict, str]:
    """A whole download: rows by status and reason, and the summary."""
    with downloading(folder, **options) as (outcomes, report):
        tally = Tally()
        for outcome in outcomes:
            tally.add(outcome)
        return dict(tally.by_reason), summary(tally, report, options.get("limits", LOCAL))


def files(folder) -> list[str]:
    images = folder / "images"
    return sorted(str(path.relative_to(images)) for path in images.rglob("*") if path.is_file())


def work_but_first_die_in_a_message(pipe, settings, report_path, decoded) -> None:
    """A worker process; the first one of a download is killed while it sends a message."""
    try:
        Path(f"{report_path}.first").touch(exist_ok=False)
    except FileExistsError:
        work(pipe, settings, report_path, decoded)
    else:
        pipe.recv()  # otherwise, the system says that the connection was reset
        os.write(pipe.fileno(), HALF_A_MESSAGE)
