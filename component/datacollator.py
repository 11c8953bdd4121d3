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
        input_ids (B, T), attention_mask (B, T), rows (B,) in the table; pixel_values (B, 3, H, W), or
        vision_pooler_output (B, vision_hidden) where the dataset has it; and bad_images, a list of (row, reason).
        Without any good pair B is 0, and there are no images.
    """

    pad_token_id: int

    def __call__(self, examples: list[dict]) -> dict:
        good = [example for example in examples if "bad_image" not in example]
        texts = [torch.from_numpy(example["input_ids"]).long() for example in good] or [torch.empty(0).long()]
        batch = {
            "input_ids": pad_sequence(texts, batch_first=True, padding_value=self.pad_token_id)[: len(good)],
            "attention_mask": pad_sequence([torch.ones_like(text) for text in texts], batch_first=True)[: len(good)],
            "rows": torch.tensor([example["row"] for example in good], dtype=torch.long),
            "bad_images": [(example["row"], example["bad_image"]) for example in examples if "bad_image" in example],
        }
        for key in ("pixel_values", "vision_pooler_output"):
            if good and key in good[0]:
                batch[key] = torch.stack([example[key] for example in good])
        return batch
