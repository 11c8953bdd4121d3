"""Download the images of a table of URLs. Run it again to resume; see --help and docs/download_and_filter_EN.md."""

import argparse
import contextlib
import os
import sys

from component.ground.command import run_script
from component.ground.options import Parser, number, output_file, output_folder, part, share, whole_number
from component.pairs.columns import columns_option


def parse_args() -> argparse.Namespace:
    parser = Parser(
        description="Download the images of a table with the columns url and filename. "
        "Run the same command again to resume: images that exist are skipped, only missing ones are fetched.",
    )
    parser.add_argument(
        "--train_file",
        required=True,
        help="table with a column of URLs: CSV, Parquet, JSON, a folder of such files or a pattern in quotes",
    )
    parser.add_argument(
        "--columns",
        type=columns_option,
        help="other names of its columns, such as url=link,filename=path,text=caption",
    )
    parser.add_argument("--image_path", type=output_folder, help="folder for the images")
    parser.add_argument(
        "--num_threads", type=whole_number("images", most=4096), default=64, help="images in progress (%(default)s)"
    )
    parser.add_argument(
        "--per_host", type=whole_number("images"), default=16, help="of these, at most from one host (%(default)s)"
    )
    parser.add_argument(
        "--timeout",
        type=number("seconds", above=0, most=86400),
        default=30.0,
        help="seconds for one image, retries included (%(default)s)",
    )
    parser.add_argument(
        "--retries",
        type=whole_number("attempts", 0, 100),
        default=2,
        help="after 5xx or a broken connection (%(default)s)",
    )
    parser.add_argument(
        "--patience",
        type=number("seconds", above=0, most=86400),
        default=60.0,
        help="seconds to wait for a host that does not answer, or answers 429 or 503; ten times as long for this "
        "machine's own network (%(default)s)",
    )
    parser.add_argument("--max_bytes", type=whole_number("bytes"), default=20 * 2**20, help="per image (%(default)s)")
    parser.add_argument("--resize", type=whole_number("pixels"), help="shorter side in pixels; saves upright JPEGs")
    parser.add_argument("--retry_failed", action="store_true", help="try again the rows that failed in an earlier run")
    parser.add_argument("--fail_over", type=share, metavar="SHARE", help="exit with 1 if a larger share failed")
    parser.add_argument(
        "--part",
        "--shard",
        type=part,
        default=(1, 1),
        metavar="I/N",
        help="this machine's part of the rows: 1/4 … 4/4",
    )
    parser.add_argument(
        "--report",
        type=output_file,
        help="default: download_report.csv next to the table, with --part one for each part",
    )
    parser.add_argument(
        "--verify", action="store_true", help="check files from elsewhere once, and fetch the broken ones again"
    )
    parser.add_argument("--user_agent", help="how to introduce yourself to servers")
    parser.add_argument("--referer", help="for hosts that require one: a URL, or '{origin}/' for the host's own pages")
    parser.add_argument(
        "--no_verify_tls", nargs="+", default=(), metavar="HOST", help="do not verify the certificates of these hosts"
    )
    parser.add_argument("--proxy", help="http://host:port; proxy variables of the environment are not read")
    parser.add_argument(
        "--allow_private_hosts", action="store_true", help="also fetch from loopback, link-local and private addresses"
    )
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument(
        "--to_img2dataset",
        "--to_webdataset_input",
        metavar="FOLDER",
        help="download nothing: write the table for img2dataset into this new folder, or into one file whose name "
        "ends in .parquet, and print its command",
    )
    instead.add_argument(
        "--join_reports", action="store_true", help="download nothing: write the reports of all parts into one"
    )
    args = parser.parse_args()
    downloads = not args.to_img2dataset and not args.join_reports
    if downloads and not args.image_path:
        parser.error("the following arguments are required: --image_path")
    if not downloads and args.part != (1, 1):
        parser.error("--part is for downloading; leave it out")
    parser.require_distinct(args, "train_file", "report", "to_img2dataset")
    return args


def main() -> int:
    args = parse_args()
    if args.join_reports:
        return join(args)
    return hand_over(args) if args.to_img2dataset else download(args)


def download(args: argparse.Namespace) -> int:
    from tqdm import tqdm

    from component.download.job import DownloadSettings
    from component.download.limits import FetchLimits
    from component.download.main_loop import download_images
    from component.download.report import Report, default_report
    from component.download.rows import Rows
    from component.download.tally import Tally, summary

    limits = FetchLimits(
        timeout=args.timeout,
        max_bytes=args.max_bytes,
        user_agent=args.user_agent or FetchLimits.user_agent,
        referer=args.referer,
        proxy=args.proxy,
        allow_private_hosts=args.allow_private_hosts,
        no_verify_tls=tuple(args.no_verify_tls),
    )
    settings = DownloadSettings(
        num_threads=args.num_threads,
        per_host=args.per_host,
        retries=args.retries,
        patience=args.patience,
        resize=args.resize,
        limits=limits,
    )
    tally, report_path = Tally(), args.report or default_report(args.train_file, args.part)
    folder = os.path.dirname(report_path) or "."
    with Rows(args.train_file, args.image_path, args.part, args.columns, folder) as rows:
        with Report(report_path) as report:
            outcomes = download_images(rows, report, settings, args.retry_failed, args.verify)
            with contextlib.closing(outcomes), tqdm(total=len(rows), unit="img", miniters=1) as bar:
                for outcome in outcomes:
                    tally.add(outcome)
                    bar.set_postfix(tally.by_status, refresh=False)
                    bar.update()
            print(f"\n{summary(tally, report, limits)}")
    return int(args.fail_over is not None and tally.failed_share > args.fail_over)


def join(args: argparse.Namespace) -> int:
    from component.download.joined_report import join_reports

    path, count = join_reports(args.train_file, args.report)
    print(f"The reports of {count} parts are in {path}")
    return 0


def hand_over(args: argparse.Namespace) -> int:
    from component.download.img2dataset_table import img2dataset_instructions, write_img2dataset_table
    from component.ground.cores import usable_cores

    table = write_img2dataset_table(args.train_file, args.to_img2dataset, args.columns)
    print(img2dataset_instructions(table, usable_cores()))
    return 0


if __name__ == "__main__":
    sys.exit(run_script(main, stopped="Stopped. Run the same command again to resume."))
