"""Write a BertCLIP checkpoint in another format, and compare what was written with the model."""

import argparse
import sys

from component.command import Parser, output_folder, run
from component.export.formats import FORMATS, export


def parse_args() -> argparse.Namespace:
    parser = Parser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="formats:\n" + "\n".join(f"  {name:<26}{what}" for name, what in FORMATS.items()),
    )
    parser.add_argument("--model", required=True, help="BertCLIP folder, such as output/demo/checkpoint-final")
    parser.add_argument("--format", required=True, choices=FORMATS, metavar="FORMAT", help="one of those below")
    parser.add_argument(
        "--output", required=True, type=output_folder, help="new or empty folder, such as output/export"
    )
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    export(args.model, args.format, args.output)
    print(f"Saved to {args.output}, and compared with the model.")


if __name__ == "__main__":
    sys.exit(run(main, stopped="Stopped; nothing was written."))
