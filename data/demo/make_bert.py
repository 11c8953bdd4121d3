"""Write bert-emoji: a small Chinese BERT with random weights, in the layout of a pretrained folder.

    python data/demo/make_bert.py

The vocabulary has one entry per character: the 3,755 common characters of GB 2312 level 1, ASCII, punctuation, and
all other characters of the captions in train.csv. Weights start with a standard deviation of 0.05 and there is no
dropout: with BERT's own 0.02, a tower this small and shallow hardly learned in the few minutes of the demo, and with
BERT's dropout of 0.1, its loss after 100 of 1,206 steps was 4.1 instead of 3.3 (seed 1).
"""

import argparse
import string
import sys
from pathlib import Path

import torch
from transformers import BertConfig, BertModel, BertTokenizerFast

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # runs from a clone, without installation
from component.pairs.table import read_table  # noqa: E402

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
PUNCTUATION = "，。、；：？！…—·‘’“”（）《》〈〉【】「」％￥～"


def vocabulary(table: Path) -> list[str]:
    """Special tokens, ASCII, punctuation, common characters, other characters of the captions, ASCII word pieces."""
    printable = string.digits + string.ascii_lowercase + string.punctuation
    pieces = ["##" + letter for letter in string.digits + string.ascii_lowercase]
    common = bytes(code for row in range(0xB0, 0xD8) for cell in range(0xA1, 0xFF) for code in (row, cell))
    captions = "".join(sorted({letter for frame in read_table(table) for text in frame["text"] for letter in text}))
    letters = dict.fromkeys(printable + PUNCTUATION + common.decode("gb2312", "ignore") + captions.lower())
    return SPECIAL + [letter for letter in letters if letter.strip()] + pieces


def main() -> None:
    here = Path(__file__).parent
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", type=Path, default=here / "train.csv", help="CSV whose captions must be covered")
    parser.add_argument("--out", type=Path, default=here / "bert-emoji", help="folder to write")
    parser.add_argument("--seed", type=int, default=42)
    args = parser.parse_args()

    words = vocabulary(args.table)
    torch.manual_seed(args.seed)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=192,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=768,
        max_position_embeddings=64,
        initializer_range=0.05,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    model = BertModel(config)
    model.half().save_pretrained(args.out)
    tokenizer = BertTokenizerFast(vocab={word: index for index, word in enumerate(words)}, model_max_length=64)
    tokenizer.save_pretrained(args.out)
    (args.out / "vocab.txt").write_text("".join(f"{word}\n" for word in words), encoding="utf-8")
    print(f"{args.out}: {len(words)} tokens, {sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters")


if __name__ == "__main__":
    main()
