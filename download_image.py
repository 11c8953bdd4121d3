"""Download the pictures of a CSV `text,url,filename`. Run it again to resume; see --help and the README."""

import argparse
import os
import sys
import warnings

from component.command import positive_int


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Download the pictures of a CSV with the columns text, url, filename. "
        "Run the same command again to resume: whole files are skipped, only missing ones are fetched.",
    )
    parser.add_argument("--train_file", required=True, help="CSV with the columns url and filename")
    parser.add_argument("--image_path", help="folder for the pictures")
    parser.add_argument("--num_threads", type=positive_int, default=64, help="pictures under way (%(default)s)")
    parser.add_argument("--per_host", type=positive_int, default=16, help="of these at one host (%(default)s)")
    parser.add_argument("--timeout", type=positive, default=30.0, help="seconds for one picture in all (%(default)s)")
    parser.add_argument("--retries", type=natural, default=2, help="after 429, 5xx or no answer (%(default)s)")
    parser.add_argument("--max_bytes", type=positive_int, default=20 * 2**20, help="per picture (%(default)s)")
    parser.add_argument("--resize", type=positive_int, help="shorter side in pixels; saves upright JPEGs")
    parser.add_argument("--retry_failed", action="store_true", help="try those again that an earlier run gave up")
    parser.add_argument("--fail_over", type=float, metavar="SHARE", help="exit with 1 if a larger share failed")
    parser.add_argument("--shard", type=shard, default=(1, 1), metavar="I/N", help="this machine's part: 1/4 … 4/4")
    parser.add_argument("--report", help="default: download_report.csv beside the CSV (one for each shard)")
    parser.add_argument("--user_agent", help="say who you are")
    parser.add_argument("--proxy", help="http://host:port; proxy variables of the environment are not read")
    parser.add_argument(
        "--allow_private_hosts", action="store_true", help="also fetch from loopback, link-local and private addresses"
    )
    parser.add_argument(
        "--to_webdataset_input", metavar="PARQUET", help="download nothing: write the table for img2dataset"
    )
    args = parser.parse_args()
    if not args.image_path and not args.to_webdataset_input:
        parser.error("the following arguments are required: --image_path")
    return args


def positive(text: str) -> float:
    number = float(text)
    if not number > 0:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return number


def natural(text: str) -> int:
    number = int(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{text} is below 0")
    return number


def shard(text: str) -> tuple[int, int]:
    index, _, count = text.partition("/")
    if not (index.isdigit() and count.isdigit() and 1 <= int(index) <= int(count)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a shard; four machines take 1/4, 2/4, 3/4 and 4/4")
    return int(index), int(count)


def report_path(args: argparse.Namespace) -> str:
    index, count = args.shard
    name = "download_report.csv" if count == 1 else f"download_report.{index}-of-{count}.csv"
    return args.report or os.path.join(os.path.dirname(args.train_file), name)


def download(args: argparse.Namespace) -> int:
    from tqdm import tqdm

    from component.download.fetch import FetchLimits
    from component.download.report import Report, Tally
    from component.download.run import DownloadSettings, download_images
    from component.download.url_table import count_rows

    warnings.filterwarnings("ignore", module="PIL")  # Pillow warns of what it repairs, in the middle of the bar
    limits = {"timeout": args.timeout, "max_bytes": args.max_bytes, "proxy": args.proxy}
    if args.user_agent:
        limits["user_agent"] = args.user_agent
    settings = DownloadSettings(
        num_threads=args.num_threads,
        per_host=args.per_host,
        retries=args.retries,
        resize=args.resize,
        limits=FetchLimits(**limits, allow_private_hosts=args.allow_private_hosts),
    )
    total = count_rows(args.train_file, args.shard)
    tally = Tally()
    with Report(report_path(args)) as report, tqdm(total=total, unit="img", miniters=1) as bar:
        outcomes = download_images(args.train_file, args.image_path, report, settings, args.shard, args.retry_failed)
        for outcome in outcomes:
            tally.add(outcome)
            bar.set_postfix(tally.by_status, refresh=False)
            bar.update()
    print_summary(tally, report.path)
    return int(args.fail_over is not None and tally.failed_share > args.fail_over)


def hand_over(args: argparse.Namespace) -> int:
    from component.download.img2dataset_table import write_img2dataset_table

    rows = write_img2dataset_table(args.train_file, args.to_webdataset_input)
    print(f"{rows} rows written. On the machine or cluster that is to download:\n")
    print(f"img2dataset --url_list {args.to_webdataset_input} --input_format parquet --url_col url \\")
    print("  --caption_col caption --save_additional_columns '[\"filename\"]' --output_format webdataset \\")
    print("  --output_folder shards --resize_mode keep_ratio --image_size 256 --resize_only_if_bigger True")
    return 0


def print_summary(tally, report: str) -> None:
    total = max(tally.by_status.total(), 1)
    print(f"\n{'status':<8} {'reason':<20} {'rows':>9} {'share':>7}")
    for (status, reason), rows in sorted(tally.by_reason.items(), key=lambda entry: (entry[0][0] != "ok", -entry[1])):
        print(f"{status:<8} {reason:<20} {rows:>9} {rows / total:>7.1%}")
    hosts = tally.worst_hosts(10)
    if hosts:
        print(f"\n{'host (most failures first)':<48} {'ok':>9} {'failed':>9}")
    for host, ok, failed in hosts:
        print(f"{host:<48} {ok:>9} {failed:>9}")
    print(f"\nReport: {report}")
    if tally.by_status["failed"] or tally.by_reason["skipped", "failed_before"]:
        print("Run again with --retry_failed to give the failed rows another chance.")


if __name__ == "__main__":
    arguments = parse_args()
    try:
        sys.exit(hand_over(arguments) if arguments.to_webdataset_input else download(arguments))
    except KeyboardInterrupt:
        print("\nStopped. Run the same command again to resume.", file=sys.stderr)
        sys.exit(130)
    except (ValueError, OSError, ImportError) as error:
        print(f"download_image.py: {error}", file=sys.stderr)
        sys.exit(2)
