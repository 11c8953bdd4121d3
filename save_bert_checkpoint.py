"""Save the text tower of a BertCLIP checkpoint as a BERT that BertModel and BertTokenizer load."""

import sys

from component.ground.command import Parser, output_folder, run_script
from component.ground.quick_imports import quick_imports


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("--model", required=True, help="BertCLIP folder, such as output/demo/checkpoint-final")
    parser.add_argument(
        "--output", required=True, type=output_folder, help="new folder for the BERT, such as output/bert"
    )
    parser.add_argument("--overwrite", action="store_true", help="write into a folder that is not empty")
    args = parser.parse_args()

    with quick_imports():
        from component.export.bert import save_bert

    save_bert(args.model, args.output, args.overwrite)
    print(f"Saved to {args.output}. Load it with BertModel.from_pretrained and BertTokenizer.from_pretrained.")


if __name__ == "__main__":
    sys.exit(run_script(main, stopped="Stopped; nothing was written."))
