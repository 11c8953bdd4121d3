"""Examples → one batch."""

from dataclasses import dataclass

import torch

LENGTH_MULTIPLE = 8  # tensor cores work on tiles of 8, and fewer different shapes are compiled and cached


@dataclass
class PairCollator:
    """Pad the texts to the longest of the batch, rounded up to a multiple of 8.

    Args:
        pad_token_id: of the BERT tokenizer.

    Takes what `PairDataset.__getitems__` gives. Returns (B good pairs, T tokens):
        input_ids (B, T), attention_mask (B, T), rows (B,) in the table; pixel_values (B, 3, H, W), or
        vision_pooler_output (B, vision_hidden) where the dataset has it; and bad_images, a list of (row, reason).
        Without any good pair B is 0, and there are no images.
    """

    pad_token_id: int

    def __call__(self, examples: dict) -> dict:
        batch = dict(examples)
        tokens, lengths = torch.from_numpy(batch.pop("tokens")), torch.from_numpy(batch.pop("lengths"))
        longest = int(lengths.max()) if len(lengths) else 0
        width = -(-longest // LENGTH_MULTIPLE) * LENGTH_MULTIPLE
        is_token = torch.arange(width) < lengths[:, None]
        input_ids = torch.full(is_token.shape, self.pad_token_id)
        input_ids[is_token] = tokens.long()
        rows = torch.from_numpy(batch.pop("rows"))
        return {"input_ids": input_ids, "attention_mask": is_token.long(), "rows": rows, **batch}
