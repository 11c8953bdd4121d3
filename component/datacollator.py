"""Examples → one batch."""

from dataclasses import dataclass

import torch
from torch.nn.utils.rnn import pad_sequence


@dataclass
class PairCollator:
    """Pad the texts to the longest of the batch and leave out the pairs whose picture is bad.

    Args:
        pad_token_id: of the BERT tokenizer.

    Returns (B good pairs, T tokens of the longest):
        input_ids (B, T), attention_mask (B, T), pixel_values (B, 3, H, W), rows (B,) in the table, and
        bad_images, a list of (row, reason). Without any good pair B is 0, and pixel_values is left out.
    """

    pad_token_id: int

    def __call__(self, examples: list[dict]) -> dict:
        good = [example for example in examples if "pixel_values" in example]
        bad_images = [(example["row"], example["bad_image"]) for example in examples if "bad_image" in example]
        rows = torch.tensor([example["row"] for example in good], dtype=torch.long)
        if not good:
            return {"input_ids": torch.empty(0, 0, dtype=torch.long), "rows": rows, "bad_images": bad_images}
        texts = [torch.from_numpy(example["input_ids"]).long() for example in good]
        ones = [torch.ones_like(text) for text in texts]
        return {
            "input_ids": pad_sequence(texts, batch_first=True, padding_value=self.pad_token_id),
            "attention_mask": pad_sequence(ones, batch_first=True),
            "pixel_values": torch.stack([example["pixel_values"] for example in good]),
            "rows": rows,
            "bad_images": bad_images,
        }
