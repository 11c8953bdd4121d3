"""Keep the pairs of a CSV `text,...,filename` that are worth training on; see --help and the README."""

import argparse
import os
import sys

from component.ground.command import Parser, input_folder, number, output_file, run_script, share, whole_number


def parse_args() -> argparse.Namespace:
    parser = Parser(
        description="Keep the rows whose text is not empty and whose picture exists, decodes to its end and is not a "
        "GIF; every further rule is off until asked for. Nothing is deleted unless --delete_bad_images."
    )
    parser.add_argument("--train_file", required=True, help="CSV with the columns text and filename")
    parser.add_argument("--image_path", required=True, type=input_folder, help="folder of the pictures")
    parser.add_argument(
        "--out_file", type=output_file, help="CSV for the kept rows; order and columns stay as they are"
    )
    parser.add_argument("--report", type=output_file, help="CSV that names each dropped row and the reason")
    parser.add_argument("--dry_run", action="store_true", help="print the funnel; write no out_file, delete nothing")
    parser.add_argument(
        "--delete_bad_images", action="store_true", help="delete GIFs and files that no program would show"
    )
    parser.add_argument(
        "--num_workers", type=whole_number("processes", most=1000), help="processes; default: one per core"
    )

    rules = parser.add_argument_group("rules")
    rules.add_argument(
        "--min_text", type=whole_number("characters", 0), metavar="N", help="least characters of a text"
    )
    rules.add_argument("--max_text", type=whole_number("characters", 0), metavar="N", help="most characters of a text")
    rules.add_argument("--min_chinese", type=share, metavar="SHARE", help="least share of Chinese characters, 0 to 1")
    rules.add_argument(
        "--min_side", type=whole_number("pixels", 0), metavar="PIXELS", help="least shorter side of a picture"
    )
    rules.add_argument(
        "--max_aspect", type=number("a ratio", 1), metavar="RATIO", help="most longer side / shorter side"
    )
    rules.add_argument("--exact_duplicates", action="store_true", help="drop pairs of the same text and file content")
    rules.add_argument("--near_duplicates", action="store_true", help="drop pictures that look like an earlier one")

    clip = parser.add_argument_group("similarity of picture and text")
    clip.add_argument("--clip_model", metavar="PATH", help="BertCLIP checkpoint; writes a histogram of the cosines")
    clip.add_argument(
        "--min_similarity", type=number("a cosine", -1, 1), metavar="COSINE", help="least cosine, such as 0.2"
    )
    clip.add_argument("--batch_size", type=whole_number("pairs"), default=64, help="(%(default)s)")
    clip.add_argument(
        "--histogram", type=output_file, metavar="PNG", help="default: beside out_file or train_file, *-similarity.png"
    )
    args = parser.parse_args()

    if not args.out_file and not args.dry_run:
        parser.error("give --out_file, or --dry_run to see what would be dropped")
    if args.min_similarity is not None and not args.clip_model:
        parser.error("--min_similarity needs --clip_model, the checkpoint that measures it")
    if args.clip_model and not args.histogram:
        args.histogram = os.path.splitext(args.out_file or args.train_file)[0] + "-similarity.png"
    parser.require_distinct(args, "train_file", "out_file", "report", "histogram")
    for path in filter(None, (args.out_file, args.report)):
        if path.lower().endswith((".gz", ".bz2", ".xz", ".zst", ".zip", ".parquet", ".xlsx")):
            parser.error(f"{path} will be a plain CSV; give a name that ends in .csv, and pack it afterwards")
    return args


def main() -> None:
    args = parse_args()

    from tqdm import tqdm

    from component.filter.judge import FilterOutput, Funnel, count_rows, judge_pairs
    from component.filter.rules import FilterRules
    from component.ground.files import require_writable
    from component.ground.lock import sole_writer

    names = "min_text max_text min_chinese min_side max_aspect exact_duplicates near_duplicates".split()
    rules = FilterRules(**{name: getattr(args, name) for name in names})
    histogram, score = None, None
    out_file = None if args.dry_run else args.out_file
    delete_in = args.image_path if args.delete_bad_images and not args.dry_run else None
    funnel = Funnel()
    with sole_writer(args.histogram), FilterOutput(out_file, args.report, delete_in) as output:
        total = count_rows(args.train_file)
        if args.clip_model:
            from component.filter.clip_score import ClipScorer
            from component.report.histogram import ScoreHistogram

            require_writable(args.histogram)
            histogram = ScoreHistogram()
            score = ClipScorer(args.clip_model, args.batch_size, histogram.add)
        judged = judge_pairs(args.train_file, args.image_path, rules, score, args.min_similarity, args.num_workers)
        with tqdm(total=total, unit="row") as bar:
            for chunk, reasons in judged:
                output.add(chunk, reasons)
                funnel.add(reasons)
                bar.update(len(chunk))
    print(f"\n{funnel}")
    if delete_in:
        spared = f"; {output.num_spared} changed since or cannot be read now, and stay" if output.num_spared else ""
        print(f"Deleted {output.num_deleted} bad images{spared}")
    if histogram:
        histogram.save(args.histogram, args.min_similarity)
        print(f"Histogram of the similarities: {args.histogram}")


if __name__ == "__main__":
    sys.exit(run_script(main, stopped="Stopped; nothing was written."))
