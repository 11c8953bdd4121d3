"""Downloads in the process of a test, and what they leave."""

import contextlib
import csv

from component.download.job import DownloadSettings
from component.download.limits import FetchLimits
from component.download.main_loop import download_images
from component.download.report import Report
from component.download.rows import Rows
from component.download.tally import Tally, summary


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
