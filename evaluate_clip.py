"""Evaluate a checkpoint by the numbers that others publish: retrieval recall, or zero-shot accuracy."""

import argparse
import sys
from functools import partial

from component.evaluation.phrasings import SHIPPED
from component.ground.command import run_script
from component.ground.options import Parser, input_file, output_file, output_folder, whole_number
from component.ground.plain_text import one_line
from component.ground.quick_imports import quick_imports
from component.pairs.columns import columns_option


def parse_args() -> argparse.Namespace:
    parser = Parser(
        description=__doc__,
        epilog="The exit status is 1 if an image could not be read.",
        usage="%(prog)s --model FOLDER (--test_file FILE... | --class_names FILE) [--image_path PATH] [options]",
    )
    parser.add_argument("--model", required=True, help="BertCLIP folder, such as output/demo/checkpoint-final")
    data = parser.add_mutually_exclusive_group(required=True)
    data.add_argument(
        "--test_file",
        nargs="+",
        metavar="FILE",
        help=".csv or .parquet (text, filename), .tar shards, Chinese-CLIP's .jsonl, COCO-caption .json; or a pattern",
    )
    data.add_argument(
        "--class_names",
        type=input_file,
        help="zero-shot: text file, one class per line: folder<TAB>name, or names in folder order",
    )
    parser.add_argument(
        "--columns",
        type=columns_option,
        metavar="NAMES",
        help="names of the columns, such as text=caption,url=URL",
    )
    parser.add_argument(
        "--image_path",
        help="folder of the images (zero-shot: of one folder per class), or the .tsv; not needed for shards",
    )
    parser.add_argument(
        "--keep_list", metavar="PARQUET", help="evaluate only the pairs that it keeps; filter_data.py writes it"
    )
    parser.add_argument(
        "--phrasings",
        nargs="?",
        type=input_file,
        const=SHIPPED,
        metavar="FILE",
        help="also ask as people do: in sentences, with a question mark, with slips; one way per line of FILE "
        "(component/evaluation/phrasings.txt)",
    )
    parser.add_argument(
        "--output", type=output_folder, default="output/evaluation", help="folder for the results (%(default)s)"
    )
    parser.add_argument("--html", type=output_file, metavar="FILE", help="also write a page with curves and mistakes")
    parser.add_argument("--batch_size", type=whole_number("items"), default=64, help="per forward pass (%(default)s)")
    args = parser.parse_args()
    if args.class_names and not args.image_path:
        parser.error("--class_names needs --image_path, a folder with one folder of images per class")
    for name in ("keep_list", "columns"):
        if args.class_names and getattr(args, name):
            parser.error(f"--{name} is for pairs, which --test_file has and --class_names has not")
    if args.class_names and args.phrasings:
        parser.error("--phrasings needs --test_file; zero-shot classification has sentences of its own")
    parser.require_distinct(args, "test_file", "class_names", "phrasings", "html")
    return args


def main() -> int:
    args = parse_args()

    from component.ground.lock import sole_writer

    with sole_writer(args.output, inside=True), sole_writer(args.html):
        return evaluate(args)


def evaluate(args: argparse.Namespace) -> int:
    with quick_imports():
        from tqdm import tqdm

        from component.checkpoint import load_checkpoint
        from component.evaluation.image_folder import read_image_folder
        from component.evaluation.phrasings import read_phrasings
        from component.evaluation.retrieval import evaluate_retrieval
        from component.evaluation.retrieval_data import read_retrieval_data
        from component.evaluation.zero_shot import evaluate_zero_shot
        from component.ground.files import write_text
        from component.pairs.keep_list import open_keep_list
        from component.prompts import PROMPTS
        from component.report import evaluation as report
        from component.report.evaluation_page import retrieval_page, zero_shot_page

    if args.test_file:
        keep_list = open_keep_list(args.keep_list, args.test_file)
        data = read_retrieval_data(args.test_file, args.image_path, args.columns, keep_list)
        phrasings = read_phrasings(args.phrasings) if args.phrasings else []
        names, num_texts = data.image_names, len(data.texts) * (1 + len(phrasings))
        measure = partial(evaluate_retrieval, phrasings=phrasings)
        table, write, page = report.retrieval_table, report.write_retrieval_report, retrieval_page
    else:
        data = read_image_folder(args.image_path, args.class_names)
        names, num_texts, measure = data.images, len(data.class_names) * len(PROMPTS), evaluate_zero_shot
        table, write, page = report.classification_table, report.write_zero_shot_report, zero_shot_page

    model, processor = load_checkpoint(args.model)
    with tqdm(total=num_texts + len(data.images), unit="item", leave=False, delay=1) as bar:
        result = measure(model, processor, data, args.batch_size, on_batch=bar.update)
    print(table(result))
    test_data = " ".join(args.test_file or [args.class_names])
    about = {"model": args.model, "test_data": test_data, "image_path": args.image_path}
    if args.phrasings:
        about["phrasings_file"] = args.phrasings
    if args.keep_list:
        about["keep_list"] = args.keep_list
    if args.html:
        write_text(args.html, page(data, result, about))
    try:
        write(args.output, data, result, about)
    except ModuleNotFoundError as error:
        print(f"{args.output} has the numbers, but no figures: {error}", file=sys.stderr)
    else:
        print(f"Written to {args.output}")
    for row, reason in result.bad_images.items():
        print(one_line(f"left out: {names[row]}: {reason}"), file=sys.stderr)
    return int(bool(result.bad_images))


if __name__ == "__main__":
    sys.exit(run_script(main))
