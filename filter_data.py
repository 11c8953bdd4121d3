"""Keep the pairs of a CSV `text,...,filename` that are worth training on; see --help and the README."""

import argparse
import os
import sys
from collections import Counter
from collections.abc import Sequence


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Keep the rows whose text is not empty and whose picture exists, decodes to its end and is not a "
        "GIF; every further rule is off until asked for. Nothing is deleted unless --delete_bad_images."
    )
    parser.add_argument("--train_file", required=True, help="CSV with the columns text and filename")
    parser.add_argument("--image_path", required=True, help="folder of the pictures")
    parser.add_argument("--out_file", help="CSV for the kept rows; order and columns stay as they are")
    parser.add_argument("--report", help="CSV that names each dropped row and the reason")
    parser.add_argument("--dry_run", action="store_true", help="print the funnel; write no out_file, delete nothing")
    parser.add_argument("--delete_bad_images", action="store_true", help="delete GIFs and files that do not decode")
    parser.add_argument("--num_workers", type=int, help="processes; default: one per core")

    rules = parser.add_argument_group("rules")
    rules.add_argument("--min_text", type=int, metavar="N", help="least characters of a text")
    rules.add_argument("--max_text", type=int, metavar="N", help="most characters of a text")
    rules.add_argument("--min_chinese", type=float, metavar="SHARE", help="least share of Chinese characters, 0 to 1")
    rules.add_argument("--min_side", type=int, metavar="PIXELS", help="least shorter side of a picture")
    rules.add_argument("--max_aspect", type=float, metavar="RATIO", help="most longer side / shorter side")
    rules.add_argument("--exact_duplicates", action="store_true", help="drop pairs of the same text and file content")
    rules.add_argument("--near_duplicates", action="store_true", help="drop pictures that look like an earlier one")

    clip = parser.add_argument_group("similarity of picture and text")
    clip.add_argument("--clip_model", metavar="PATH", help="BertCLIP checkpoint; writes a histogram of the cosines")
    clip.add_argument("--min_similarity", type=float, metavar="COSINE", help="least cosine, such as 0.2")
    clip.add_argument("--batch_size", type=int, default=64, help="(%(default)s)")
    clip.add_argument("--histogram", metavar="PNG", help="default: beside out_file or train_file, *-similarity.png")
    args = parser.parse_args()

    if not args.out_file and not args.dry_run:
        parser.error("give --out_file, or --dry_run to see what would be dropped")
    if args.min_similarity is not None and not args.clip_model:
        parser.error("--min_similarity needs --clip_model, the checkpoint that measures it")
    if args.out_file and os.path.realpath(args.out_file) == os.path.realpath(args.train_file):
        parser.error("--out_file is --train_file; give another name, so that the original stays")
    return args


def filter_data(args: argparse.Namespace) -> None:
    from tqdm import tqdm

    from component.filter.rules import FilterRules
    from component.filter.run import REASONS, FilterOutput, count_rows, judge_pairs

    names = "min_text max_text min_chinese min_side max_aspect exact_duplicates near_duplicates".split()
    rules = FilterRules(**{name: getattr(args, name) for name in names})
    total = count_rows(args.train_file)
    histogram, score = None, None
    if args.clip_model:
        from component.filter.clip_score import ClipScorer
        from component.report.histogram import ScoreHistogram

        histogram = ScoreHistogram()
        score = ClipScorer(args.clip_model, args.batch_size, histogram.add)

    out_file = None if args.dry_run else args.out_file
    delete_in = args.image_path if args.delete_bad_images and not args.dry_run else None
    funnel = Counter()
    with FilterOutput(out_file, args.report, delete_in) as output, tqdm(total=total, unit="row") as bar:
        judged = judge_pairs(args.train_file, args.image_path, rules, score, args.min_similarity, args.num_workers)
        for chunk, reasons in judged:
            output.add(chunk, reasons)
            funnel.update(reason.partition(":")[0] for reason in reasons)
            bar.update(len(chunk))
    print_funnel(funnel, REASONS)
    if histogram:
        path = args.histogram or os.path.splitext(args.out_file or args.train_file)[0] + "-similarity.png"
        histogram.save(path, args.min_similarity)
        print(f"Histogram of the similarities: {path}")


def print_funnel(funnel: Counter, order: Sequence[str]) -> None:
    total = left = funnel.total()
    print(f"\n{'':<20} {'rows':>10} {'left':>10}\n{'rows in':<31} {left:>10}")
    for reason in order:
        if rows := funnel[reason]:
            left -= rows
            print(f"- {reason:<18} {rows:>10} {left:>10}")
    print(f"{'rows out':<31} {left:>10} {left / max(total, 1):>7.1%}")


if __name__ == "__main__":
    arguments = parse_args()
    try:
        filter_data(arguments)
    except KeyboardInterrupt:
        print("\nStopped; nothing was written.", file=sys.stderr)
        sys.exit(130)
    except (ValueError, OSError, ImportError) as error:
        print(f"filter_data.py: {error}", file=sys.stderr)
        sys.exit(2)
