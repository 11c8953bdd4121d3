"""Save the text tower of a BertCLIP checkpoint, so that BertModel and BertTokenizer load it from then on."""

import argparse
import sys


def main() -> str | None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="BertCLIP folder, such as output/demo/checkpoint-final")
    parser.add_argument("--output", required=True, help="new folder for the BERT, such as output/bert")
    parser.add_argument("--overwrite", action="store_true", help="write into a folder that is not empty")
    args = parser.parse_args()

    from component.export.bert import save_bert

    try:
        save_bert(args.model, args.output, args.overwrite)
    except (ValueError, OSError) as error:
        return f"save_bert_checkpoint.py: {error}"
    print(f"Saved to {args.output}. Load it with BertModel.from_pretrained and BertTokenizer.from_pretrained.")


if __name__ == "__main__":
    sys.exit(main())
