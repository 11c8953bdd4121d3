"""Write a BertCLIP checkpoint in another format, and compare the result with the model."""

import argparse
import sys

from component.export.formats import FORMATS, export
from component.ground.command import run_script
from component.ground.options import Parser, output_folder, whole_number
from component.ground.quick_imports import quick_imports


def parse_args() -> argparse.Namespace:
    parser = Parser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="formats:\n" + "\n".join(f"  {name:<26}{what}" for name, what in FORMATS.items()),
    )
    parser.add_argument("--model", required=True, help="BertCLIP folder, such as output/demo/checkpoint-final")
    parser.add_argument("--format", required=True, choices=FORMATS, metavar="FORMAT", help="one of the formats below")
    parser.add_argument(
        "--output", required=True, type=output_folder, help="new or empty folder, such as output/export"
    )
    parser.add_argument(
        "--int8", action="store_true", help="onnx: also write int8 files of about a third of the size, _quantized"
    )
    parser.add_argument("--dim", type=whole_number("dimensions"), help="checkpoint: length of its vectors, such as 64")
    parser.add_argument(
        "--train_file", nargs="+", metavar="FILE", help="with --dim: pairs by which the best dimensions are found"
    )
    parser.add_argument(
        "--test_file", nargs="+", metavar="FILE", help="with --int8 or --dim: pairs on which to measure lost recall"
    )
    parser.add_argument("--image_path", help="folder of the images of these pairs; not needed for shards")
    args = parser.parse_args()
    if args.int8 and args.format != "onnx":
        parser.error(f"--int8 works with --format onnx only, not with {args.format}")
    if args.dim and args.format != "checkpoint":
        parser.error("--dim works with --format checkpoint only; export that checkpoint in the other format")
    if bool(args.dim) != bool(args.train_file):
        parser.error("give --dim and --train_file together, or neither")
    if args.test_file and not (args.int8 or args.dim):
        parser.error("--test_file works with --int8 or --dim only: no other export loses recall")
    if args.image_path and not (args.test_file or args.train_file):
        parser.error("--image_path works with --test_file or --train_file only")
    return args


def main() -> None:
    args = parse_args()
    options = {"int8": True} if args.int8 else {}
    if args.test_file or args.train_file:
        with quick_imports():
            from component.checkpoint import load_checkpoint
            from component.evaluation.retrieval import evaluate_retrieval
            from component.evaluation.retrieval_data import read_retrieval_data
            from component.export.folder import require_free

        require_free(args.model, args.output)
    if args.test_file:
        test = read_retrieval_data(args.test_file, args.image_path)
        model, processor = load_checkpoint(args.model)
        whole = evaluate_retrieval(model, processor, test).metrics  # first: it finds what is wrong with the pairs
        del model
    if args.train_file:
        train = read_retrieval_data(args.train_file, args.image_path)
        options = {"dim": args.dim, "texts": train.texts, "images": train.images}
    export(args.model, args.format, args.output, **options)
    print(
        f"Saved to {args.output}; its embeddings equal those of the model{' in its main dimensions' * bool(args.dim)}."
    )
    if args.test_file:
        print(recall_lost(args, whole, evaluate_retrieval(load_smaller(args), processor, test).metrics))


def load_smaller(args: argparse.Namespace):
    """The exported model that may have lost recall."""
    from component.checkpoint import load_checkpoint
    from component.export.onnx import load_graphs

    return load_graphs(args.output, "_quantized") if args.int8 else load_checkpoint(args.output)[0]


def recall_lost(args: argparse.Namespace, whole: dict[str, float], smaller: dict[str, float]) -> str:
    """A line for people, from the metrics of the model and of the export."""
    before, after = 100 * whole["mean_recall"], 100 * smaller["mean_recall"]
    what = "int8" if args.int8 else f"{args.dim} dimensions"
    return (
        f"Mean recall with {what}: {after:.1f}, {after - before:+.1f} points against the model's {before:.1f}, on "
        f"{whole['texts']:,} texts and {whole['images']:,} images ({whole['bad_images']:,} could not be read)."
    )


if __name__ == "__main__":
    sys.exit(run_script(main, stopped="Stopped; nothing was written."))
