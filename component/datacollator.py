"""Examples → one batch."""

from dataclasses import dataclass

import torch

LENGTH_MULTIPLE = 8  # of the tokens of an ungrouped batch: tensor cores work on tiles of 8


@dataclass
class PairCollator:
    """Pad the texts, and group them by length.

    A group is padded to its own longest text. The groups of a shuffled batch so need about the padding of batches of
    like lengths, while the batch stays random.

    Args:
        pad_token_id: of the BERT tokenizer.
        group_size: texts per group; None: the whole batch is one, and padded to a multiple of 8.

    Takes what `PairDataset.__getitems__` gives, sorted by length. Returns (B good pairs, T tokens):
        rows (B,) in the table; ids (B, 2); input_ids (B, T), attention_mask (B, T); text_groups, a list of (texts,
        tokens), one after the other; pixel_values (B, 3, H, W), or vision_pooler_output (B, vision_hidden) where the
        dataset has it; and bad_images, a list of (row, reason). Without any good pair B is 0, and there are no images.
    """

    pad_token_id: int
    group_size: int | None = None

    def __call__(self, examples: dict) -> dict:
        batch = dict(examples)
        rows, ids, tokens, lengths = (torch.from_numpy(batch.pop(key)) for key in ("rows", "ids", "tokens", "lengths"))
        width = int(lengths[-1]) if len(lengths) else 0
        if self.group_size is None or not width:
            width = -(-width // LENGTH_MULTIPLE) * LENGTH_MULTIPLE
            text_groups = [(len(lengths), width)]
        else:
            text_groups = [(len(group), int(group[-1])) for group in lengths.split(self.group_size)]
        is_token = torch.arange(width) < lengths[:, None]
        input_ids = torch.full(is_token.shape, self.pad_token_id)
        input_ids[is_token] = tokens.long()
        texts = {"input_ids": input_ids, "attention_mask": is_token.long(), "text_groups": text_groups}
        return {"rows": rows, "ids": ids, **texts, **batch}
