"""Write a BertCLIP checkpoint in another format, and compare the result with the model."""

import argparse
import sys

from component.export.formats import FORMATS, export
from component.ground.command import Parser, output_folder, run_script


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
    parser.add_argument(
        "--test_file", nargs="+", metavar="FILE", help="with --int8: pairs on which to measure the loss of recall"
    )
    parser.add_argument("--image_path", help="folder of their images; not needed for shards")
    args = parser.parse_args()
    if args.int8 and args.format != "onnx":
        parser.error(f"--int8 works with --format onnx only, not with {args.format}")
    if args.test_file and not args.int8:
        parser.error("--test_file works with --int8 only: no other export loses recall")
    if args.image_path and not args.test_file:
        parser.error("--image_path works with --test_file only")
    return args


def main() -> None:
    args = parse_args()
    data = None
    if args.test_file:
        from component.evaluation.retrieval_data import read_retrieval_data

        data = read_retrieval_data(args.test_file, args.image_path)
    export(args.model, args.format, args.output, **({"int8": True} if args.int8 else {}))
    print(f"Saved to {args.output}; its embeddings equal those of the model.")
    if data:
        print(recall_lost(args, data))


def recall_lost(args: argparse.Namespace, data) -> str:
    from component.checkpoint import load_checkpoint
    from component.evaluation.retrieval import evaluate_retrieval
    from component.export.onnx import load_graphs

    model, processor = load_checkpoint(args.model)
    whole, int8 = (
        evaluate_retrieval(one, processor, data).metrics for one in (model, load_graphs(args.output, "_quantized"))
    )
    before, after = 100 * whole["mean_recall"], 100 * int8["mean_recall"]
    return (
        f"Mean recall with int8: {after:.1f}, {after - before:+.1f} points against the model's {before:.1f}, on "
        f"{whole['texts']:,} texts and {whole['images']:,} images ({whole['bad_images']:,} could not be read)."
    )


if __name__ == "__main__":
    sys.exit(run_script(main, stopped="Stopped; nothing was written."))
