"""Keep the pairs of a table `text,...,filename` that are worth training on; see --help and the README."""

import argparse
import os
import sys
from collections.abc import Iterator

from component.ground.command import run_script
from component.ground.options import Parser, input_folder, number, output_file, part, share, whole_number
from component.pairs.columns import columns_option

RULES = "min_text max_text min_chinese min_side max_aspect exact_duplicates near_duplicates".split()


def parse_args() -> argparse.Namespace:
    parser = Parser(
        description="Keep the rows whose caption is not empty and whose image exists, decodes to its end and is not a "
        "GIF. All other rules are off by default. Nothing is deleted without --delete_bad_images. With --verdicts, "
        "judge shards and tables file by file, and apply the rules afterwards."
    )
    parser.add_argument(
        "--train_file",
        help="table with a column of captions and one of file names: CSV, Parquet, JSON, a folder of such files or "
        "a pattern in quotes; with --verdicts also shards (.tar) and Parquet with images",
    )
    parser.add_argument(
        "--columns", type=columns_option, help="other names of its columns, such as text=caption,filename=path"
    )
    parser.add_argument("--image_path", type=input_folder, help="folder of the images; not for shards")
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

    shards = parser.add_argument_group("verdicts first, rules afterwards")
    shards.add_argument(
        "--verdicts",
        nargs="+",
        metavar="FOLDER",
        help="with --train_file: folder for a table of verdicts on each of its files, except those judged before; "
        "with --keep_list: folders of verdicts",
    )
    shards.add_argument(
        "--part", type=part, default=(1, 1), metavar="I/N", help="judge only this part of the files: 1/4 … 4/4"
    )
    shards.add_argument(
        "--keep_list",
        type=output_file,
        metavar="PARQUET",
        help="apply the rules to all verdicts, and write which pairs training, evaluation and search are to keep",
    )
    shards.add_argument("--memory", metavar="SIZE", help="for joining, such as 16GB; default: 80 %% of this machine's")

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

    for problem in problems_with_verdicts(args) if args.verdicts else problems_with_table(args):
        parser.error(problem)
    if args.clip_model and not args.histogram and not args.verdicts:
        from component.pairs.table_files import pair_files

        args.histogram = os.path.splitext(args.out_file or pair_files(args.train_file)[0])[0] + "-similarity.png"
    parser.require_distinct(args, "train_file", "out_file", "report", "histogram", "keep_list")
    return args


def problems_with_table(args: argparse.Namespace) -> Iterator[str]:
    from component.pairs.sources import needs_folder
    from component.pairs.table import check_table_name
    from component.pairs.table_files import pair_files

    missing = [f"--{name}" for name in ("train_file", "image_path") if not getattr(args, name)]
    if missing:
        yield f"the following arguments are required: {', '.join(missing)}"
    if args.keep_list or args.part != (1, 1):
        yield f"--{'keep_list' if args.keep_list else 'part'} needs --verdicts"
    if not all(needs_folder(file, args.columns) for file in pair_files(args.train_file)):
        yield "files with images are not written again: judge them with --verdicts FOLDER, then write a --keep_list"
    if not args.out_file and not args.dry_run:
        yield "give --out_file, or --dry_run to see what would be dropped"
    if not args.clip_model and (args.min_similarity is not None or args.histogram):
        option = "min_similarity" if args.min_similarity is not None else "histogram"
        yield f"--{option} needs --clip_model, the checkpoint that measures the similarity"
    if args.report and not args.report.lower().endswith((".csv", ".txt")):
        yield f"--report {args.report} will be a plain CSV; give a name that ends in .csv"
    if args.out_file:
        try:
            check_table_name(args.out_file)
        except ValueError as error:
            yield f"--out_file {error}"


def problems_with_verdicts(args: argparse.Namespace) -> Iterator[str]:
    for name in ("out_file", "report", "dry_run", "delete_bad_images", "histogram"):
        if getattr(args, name):
            yield f"--{name} is for filtering a table in one go, not for --verdicts"
    if not args.train_file and not args.keep_list:
        yield "--verdicts needs --train_file, the data to judge, or --keep_list, which the verdicts are joined into"
    if args.train_file and len(args.verdicts) > 1:
        yield "--verdicts: give one folder for the verdicts on --train_file"
    if args.train_file and args.keep_list:
        yield "--keep_list is a step of its own, after all files are judged: give it without --train_file"
    given = [name for name in (*RULES, "min_similarity") if getattr(args, name) not in (None, False)]
    if given and not args.keep_list:
        yield f"--{given[0]}: verdicts are without rules; give it with --keep_list"
    given = [name for name in ("image_path", "columns", "clip_model") if getattr(args, name)]
    if given and args.keep_list:
        yield f"--{given[0]} is for judging files, not for joining verdicts into a --keep_list"
    if args.keep_list and not args.keep_list.lower().endswith(".parquet"):
        yield f"--keep_list {args.keep_list} will be Parquet; give a name that ends in .parquet"


def main() -> int | None:
    args = parse_args()
    if args.verdicts:
        return join(args) if args.keep_list else judge(args)
    return filter_table(args)


def judge(args: argparse.Namespace) -> int:
    from tqdm import tqdm

    from component.filter.output import Funnel
    from component.filter.verdicts import judge_files, verdict_files
    from component.pairs.sources import check_pair_files
    from component.pairs.table_files import pair_files

    (folder,), (index, count) = args.verdicts, args.part
    files = pair_files(args.train_file)
    verdicts = verdict_files(files, folder)
    mine = files[index - 1 :: count]
    check_pair_files(mine, args.image_path, args.columns)
    os.makedirs(folder, exist_ok=True)
    scorer = None
    if args.clip_model:
        from component.filter.clip_score import ClipScorer

        scorer = ClipScorer(args.clip_model, args.batch_size)
    with tqdm(unit="row") as bar:
        mine = {file: verdicts[file] for file in mine}
        judged = judge_files(mine, args.image_path, args.columns, scorer, args.num_workers, bar.update)
    print(f"\n{Funnel(judged.reasons)}")
    print(
        f"Files judged: {judged.files}; judged before (remove their verdicts to judge again): {judged.judged_before}"
    )
    for error in judged.errors.values():
        print(f"not judged: {error}", file=sys.stderr)
    return int(bool(judged.errors))


def join(args: argparse.Namespace) -> None:
    from component.filter.join import write_keep_list
    from component.filter.output import Funnel
    from component.filter.rules import FilterRules
    from component.filter.verdicts import find_verdicts
    from component.ground.lock import sole_writer

    rules = FilterRules(**{name: getattr(args, name) for name in RULES})
    with sole_writer(args.keep_list):
        verdicts = find_verdicts(args.verdicts)
        reasons = write_keep_list(verdicts, args.keep_list, rules, args.min_similarity, args.memory)
    print(Funnel(reasons))
    print(f"Keep-list: {args.keep_list}")


def filter_table(args: argparse.Namespace) -> None:
    from tqdm import tqdm

    from component.filter.bad_images import BadImages
    from component.filter.judge import count_rows, judge_pairs
    from component.filter.output import Funnel, filter_output
    from component.filter.rules import FilterRules
    from component.ground.lock import sole_writer
    from component.ground.output_paths import require_not_an_input, require_writable
    from component.pairs.table_files import pair_files

    rules = FilterRules(**{name: getattr(args, name) for name in RULES})
    out_file = None if args.dry_run else args.out_file
    for path in filter(None, (out_file, args.report, args.histogram)):
        require_not_an_input(path, pair_files(args.train_file))
    bad_images = BadImages(args.image_path) if args.delete_bad_images and not args.dry_run else None
    scorer = histogram = None
    funnel = Funnel()
    total = count_rows(args.train_file, args.columns)
    with sole_writer(args.histogram), filter_output(out_file, args.report) as write:
        if args.clip_model:
            from component.filter.clip_score import ClipScorer
            from component.report.histogram import ScoreHistogram

            require_writable(args.histogram)
            histogram = ScoreHistogram()
            scorer = ClipScorer(args.clip_model, args.batch_size, histogram.add)
        with tqdm(total=total, unit="row") as bar:
            for chunk, reasons in judge_pairs(
                args.train_file, args.image_path, rules, scorer, args.min_similarity, args.num_workers, args.columns
            ):
                write(chunk, reasons)
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
