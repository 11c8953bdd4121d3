"""Save the text tower of a BertCLIP checkpoint as a BERT that BertModel and BertTokenizer load."""

import sys

from component.export.formats import export
from component.ground.command import run_script
from component.ground.options import Parser, output_folder


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("--model", required=True, help="BertCLIP folder, such as output/demo/checkpoint-final")
    parser.add_argument(
        "--output", required=True, type=output_folder, help="new folder for the BERT, such as output/bert"
    )
    parser.add_argument("--overwrite", action="store_true", help="write into a folder that is not empty")
    args = parser.parse_args()

    export(args.model, "bert", args.output, args.overwrite)
    print(f"Saved to {args.output}. Load it with BertModel.from_pretrained and BertTokenizer.from_pretrained.")


if __name__ == "__main__":
    sys.exit(run_script(main, stopped="Stopped; nothing was written."))
