"""Write a BertCLIP checkpoint with some of its layers: the start of a smaller model that learns from it."""

import sys

from component.ground.command import run_script
from component.ground.options import Parser, output_folder
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
    parser.add_argument("--text_width", type=int, metavar="N", help="a new, narrower text tower of this hidden size")
    parser.add_argument("--output", required=True, type=output_folder, help="new folder, such as output/student")
    parser.add_argument("--overwrite", action="store_true", help="write into a folder that is not empty")
    args = parser.parse_args()
    sizes = {key: getattr(args, key) for key in ("text_layers", "image_layers", "text_width")}
    if all(size is None for size in sizes.values()):
        parser.error("give --text_layers, --image_layers or --text_width")

    with quick_imports():
        from component.export.smaller import save_smaller

    save_smaller(args.model, args.output, **sizes, overwrite=args.overwrite)
    print(f"Saved to {args.output}. Train it with load_from_bert_clip, and with distill_from {args.model}.")


if __name__ == "__main__":
    sys.exit(run_script(main, stopped="Stopped; nothing was written."))
