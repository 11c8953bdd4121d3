"""Keep the pairs of a table `text,...,filename` that are worth training on; see --help and the README."""

import argparse
import os
import sys

from component.ground.command import Parser, input_folder, number, output_file, run_script, share, whole_number
from component.pairs.columns import columns_option

RULES = "min_text max_text min_chinese min_side max_aspect exact_duplicates near_duplicates".split()


def parse_args() -> argparse.Namespace:
    parser = Parser(
        description="Keep the rows whose caption is not empty and whose image exists, decodes to its end and is not a "
        "GIF. All other rules are off by default. Nothing is deleted without --delete_bad_images."
    )
    parser.add_argument(
        "--train_file",
        required=True,
        help="table with a column of captions and one of file names: CSV, Parquet, JSON, a folder of such files or "
        "a pattern in quotes",
    )
    parser.add_argument(
        "--columns", type=columns_option, help="other names of its columns, such as text=caption,filename=path"
    )
    parser.add_argument("--image_path", required=True, type=input_folder, help="folder of the images")
    parser.add_argument(
        "--out_file", type=output_file, help="table for the kept rows, in the same order: .csv, .tsv or .parquet"
    )
    parser.add_argument("--report", type=output_file, help="CSV that lists each dropped row and the reason")
    parser.add_argument("--dry_run", action="store_true", help="print the funnel; write no out_file, delete nothing")
    parser.add_argument(
        "--delete_bad_images",
        action="store_true",
        help="delete image files that are empty or cut off, or hold a web page or a text",
    )
    parser.add_argument(
        "--num_workers", type=whole_number("processes", most=1000), help="processes; default: one per core"
    )

    rules = parser.add_argument_group("rules")
    rules.add_argument("--min_text", type=whole_number("characters", 0), metavar="N", help="shortest caption to keep")
    rules.add_argument("--max_text", type=whole_number("characters", 0), metavar="N", help="longest caption to keep")
    rules.add_argument("--min_chinese", type=share, metavar="SHARE", help="least share of Chinese characters, 0 to 1")
    rules.add_argument(
        "--min_side", type=whole_number("pixels", 0), metavar="PIXELS", help="least shorter side of an image"
    )
    rules.add_argument(
        "--max_aspect", type=number("a ratio", 1), metavar="RATIO", help="largest longer side / shorter side"
    )
    rules.add_argument("--exact_duplicates", action="store_true", help="drop pairs of equal caption and file content")
    rules.add_argument("--near_duplicates", action="store_true", help="drop images that look like an earlier one")

    clip = parser.add_argument_group("similarity of image and caption")
    clip.add_argument("--clip_model", metavar="PATH", help="BertCLIP checkpoint; writes a histogram of the cosines")
    clip.add_argument(
        "--min_similarity", type=number("a cosine", -1, 1), metavar="COSINE", help="least cosine, such as 0.2"
    )
    clip.add_argument("--batch_size", type=whole_number("pairs"), default=64, help="per forward pass (%(default)s)")
    clip.add_argument(
        "--histogram",
        type=output_file,
        metavar="PNG",
        help="default: *-similarity.png next to out_file, or to train_file without one",
    )
    args = parser.parse_args()

    if not args.out_file and not args.dry_run:
        parser.error("give --out_file, or --dry_run to see what would be dropped")
    if args.min_similarity is not None and not args.clip_model:
        parser.error("--min_similarity needs --clip_model, the checkpoint that measures it")
    if args.clip_model and not args.histogram:
        args.histogram = os.path.splitext(args.out_file or args.train_file)[0] + "-similarity.png"
    parser.require_distinct(args, "train_file", "out_file", "report", "histogram")
    if args.report and not args.report.lower().endswith((".csv", ".txt")):
        parser.error(f"--report {args.report} will be a plain CSV; give a name that ends in .csv")
    if args.out_file:
        from component.pairs.table import check_table_name

        try:
            check_table_name(args.out_file)
        except ValueError as error:
            parser.error(f"--out_file {error}")
    return args


def main() -> None:
    args = parse_args()

    from tqdm import tqdm

    from component.filter.bad_images import BadImages
    from component.filter.judge import count_rows, judge_pairs
    from component.filter.output import FilterOutput, Funnel
    from component.filter.rules import FilterRules, PairCheck
    from component.ground.files import require_writable
    from component.ground.lock import sole_writer

    rules = FilterRules(**{name: getattr(args, name) for name in RULES})
    out_file = None if args.dry_run else args.out_file
    bad_images = BadImages(args.image_path) if args.delete_bad_images and not args.dry_run else None
    scorer = histogram = None
    funnel = Funnel()
    with sole_writer(args.histogram), FilterOutput(out_file, args.report) as output:
        total = count_rows(args.train_file, args.columns)
        if args.clip_model:
            from component.filter.clip_score import ClipScorer
            from component.report.histogram import ScoreHistogram

            require_writable(args.histogram)
            histogram = ScoreHistogram()
            scorer = ClipScorer(args.clip_model, args.batch_size, histogram.add)
        check = PairCheck(args.image_path, rules, scorer.crop if scorer else None)
        with tqdm(total=total, unit="row") as bar:
            for chunk, reasons in judge_pairs(
                args.train_file, check, scorer, args.min_similarity, args.num_workers, args.columns
            ):
                output.add(chunk, reasons)
                funnel.add(reasons)
                if bad_images:
                    bad_images.add(chunk["filename"], reasons)
                bar.update(len(chunk))
    print(f"\n{funnel}")
    if bad_images:
        num_deleted, num_kept = bad_images.delete()
        kept = f"; kept {num_kept} that have changed or cannot be read any more" if num_kept else ""
        print(f"Deleted {num_deleted} bad images{kept}")
    if histogram:
        histogram.save(args.histogram, args.min_similarity)
        print(f"Histogram of the similarities: {args.histogram}")


if __name__ == "__main__":
    sys.exit(run_script(main, stopped="Stopped; nothing was written."))
