"""Blend a checkpoint with its fine-tuned version and save the best blend (WiSE-FT).

Blends of the two know the data of the fine-tuning, and have forgotten less than the tuned model. Each alpha from 0
(before) to 1 (after) is measured, and the one with the highest mean recall is saved as a checkpoint.
"""

import argparse
import itertools
import os
import re
import sys
from decimal import Decimal

from component.ground.command import run_script
from component.ground.options import Parser, expected, output_folder, whole_number
from component.ground.plain_text import one_line
from component.ground.quick_imports import quick_imports

MOST_ALPHAS = 1000


def alphas(text: str) -> list[float]:
    """Option type: increasing numbers from 0 to 1, as start:stop:step (stop included) or as a list, 0,0.4,1."""
    wanted = expected(text, f"at most {MOST_ALPHAS} increasing numbers from 0 to 1, such as 0:1:0.1 or 0,0.4,1")
    try:  # decimal, so that ten steps of 0.1 make 1
        numbers = [Decimal(item) for item in re.split("[:,]", text)]
        if not all(number.is_finite() and 0 <= number <= 1 for number in numbers):
            raise wanted
        if ":" in text:
            start, stop, step = numbers
            if "," in text or not step or not 0 <= (stop - start) / step < MOST_ALPHAS:
                raise wanted
            numbers = [start + i * step for i in range(int((stop - start) / step) + 1)]
    except (ArithmeticError, ValueError):
        raise wanted from None
    found = [abs(float(number)) for number in numbers]  # abs, for -0
    if len(found) > MOST_ALPHAS or any(low >= high for low, high in itertools.pairwise(found)):
        raise wanted
    return found


def parse_args() -> argparse.Namespace:
    parser = Parser(description=__doc__, epilog="The exit status is 1 if an image could not be read.")
    parser.add_argument("--before", required=True, help="BertCLIP folder before fine-tuning")
    parser.add_argument("--after", required=True, help="the folder after it, such as output/finetune/checkpoint-final")
    files = ".csv or .parquet (text, filename), .tar shards, Chinese-CLIP's .jsonl, COCO-caption .json; or a pattern"
    parser.add_argument(
        "--test_file", nargs="+", required=True, metavar="FILE", help=f"pairs like those of the fine-tuning: {files}"
    )
    parser.add_argument("--image_path", help="folder of their images, or the .tsv; shards need none")
    parser.add_argument("--keep_file", nargs="+", metavar="FILE", help="pairs that should not be forgotten")
    parser.add_argument("--keep_path", help="folder of their images, or the .tsv; shards need none")
    parser.add_argument(
        "--alphas",
        type=alphas,
        default="0:1:0.1",
        help="start:stop:step, or a list such as 0,0.4,1; a single one is used as it is (%(default)s)",
    )
    parser.add_argument("--output", required=True, type=output_folder, help="new or empty folder for the best blend")
    parser.add_argument("--batch_size", type=whole_number("items"), default=64, help="per forward pass (%(default)s)")
    args = parser.parse_args()
    if args.keep_path and not args.keep_file:
        parser.error("--keep_path is for --keep_file")
    return args


def main() -> int:
    args = parse_args()

    from component.export.folder import export_folder

    with export_folder(args.after, args.output) as folder:
        status = blend(args, folder)
    print(f"Saved to {args.output}")
    return status


def blend(args: argparse.Namespace, folder: str) -> int:
    """Write the best blend into `folder`; the exit status."""
    with quick_imports():
        from tqdm import tqdm

        from component.blend import load_ends
        from component.evaluation.blend import measure_blends, num_items
        from component.evaluation.retrieval_data import read_retrieval_data
        from component.report.blend import blend_table, write_blend_report
        from component.report.figures import load_pyplot

    try:
        load_pyplot()
        with_curves = True
    except ModuleNotFoundError as error:
        print(f"The curves are not drawn: {error}", file=sys.stderr)
        with_curves = False
    own = read_retrieval_data(args.test_file, args.image_path)
    kept = read_retrieval_data(args.keep_file, args.keep_path) if args.keep_file else None
    ends = load_ends(args.before, args.after)
    with tqdm(total=num_items(ends, own, kept, args.alphas), unit="item", leave=False, delay=1) as bar:
        measured = measure_blends(ends, own, kept, args.alphas, args.batch_size, on_batch=bar.update)
    print(blend_table(measured))
    about = {
        key: getattr(args, key) for key in ("before", "after", "test_file", "image_path", "keep_file", "keep_path")
    }
    ends.save(measured.best.alpha, folder)
    about["name"] = os.path.basename(os.path.abspath(args.output))
    write_blend_report(folder, ends, measured, about, with_curves)
    for name, reason in measured.bad_images.items():
        print(one_line(f"left out: {name}: {reason}"), file=sys.stderr)
    return int(bool(measured.bad_images))


if __name__ == "__main__":
    sys.exit(run_script(main, stopped="Stopped; nothing was written."))
