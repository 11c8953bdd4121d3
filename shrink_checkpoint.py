"""Write a BertCLIP checkpoint with some of its layers: the start of a smaller model that learns from it."""

import sys

from component.ground.command import Parser, output_folder, run_script
from component.ground.quick_imports import quick_imports


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("--model", required=True, help="BertCLIP folder, such as output/demo/checkpoint-final")
    parser.add_argument(
        "--text_layers",
        type=int,
        nargs="+",
        metavar="N",
        help="layers of the text tower to keep, from 0 (default: all)",
    )
    parser.add_argument(
        "--image_layers", type=int, nargs="+", metavar="N", help="layers of the image tower to keep (default: all)"
    )
    parser.add_argument("--output", required=True, type=output_folder, help="new folder, such as output/student")
    parser.add_argument("--overwrite", action="store_true", help="write into a folder that is not empty")
    args = parser.parse_args()
    if args.text_layers is None and args.image_layers is None:
        parser.error("give --text_layers or --image_layers")

    with quick_imports():
        from component.export.fewer_layers import save_fewer_layers

    save_fewer_layers(args.model, args.output, args.text_layers, args.image_layers, args.overwrite)
    print(f"Saved to {args.output}. Train it with load_from_bert_clip, and with distill_from {args.model}.")


if __name__ == "__main__":
    sys.exit(run_script(main, stopped="Stopped; nothing was written."))
