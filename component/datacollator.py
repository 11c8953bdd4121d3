"""Examples → one batch."""

from dataclasses import dataclass

import torch
from torch import Tensor

from component.text_groups import group_by_length

LENGTH_MULTIPLE = 8  # of the tokens of an ungrouped batch: tensor cores work on tiles of 8


@dataclass
class PairCollator:
    """Sort the pairs by the length of their texts, the longest first, and pad the texts group by group.

    A group is padded to its own longest text. The groups of a shuffled batch so need about the padding of batches of
    like lengths, while the batch stays random; a contrastive batch has no order.

    Args:
        pad_token_id: of the BERT tokenizer.
        group_size: texts per group; None: the whole batch is one, and padded to a multiple of 8.

    Takes what `Pairs.__getitems__` gives. Returns (B good pairs, T tokens):
        model_inputs: input_ids (B, T), attention_mask (B, T); text_groups, a list of (texts, tokens), one after the
        other; and what the image source gives, pixel_values (B, 3, H, W) or vision_pooler_output (B, vision_hidden),
        or nothing where B is 0.
        Beside them: rows (B,) in the table, ids (B, 2), and bad_images, a list of (row, reason).
    """

    pad_token_id: int
    group_size: int | None = None

    def __call__(self, examples: dict) -> dict:
        lengths = examples["lengths"]
        groups = group_by_length(lengths, self.group_size or len(lengths))
        text_groups = [(len(group), int(lengths[group[0]])) for group in groups]
        if self.group_size is None:
            text_groups = [(texts, -(-width // LENGTH_MULTIPLE) * LENGTH_MULTIPLE) for texts, width in text_groups]
        order = torch.cat([torch.from_numpy(group) for group in groups]) if groups else torch.arange(0)
        input_ids, attention_mask = self._pad(examples, max((width for _, width in text_groups), default=0))
        tensors = {"input_ids": input_ids, "attention_mask": attention_mask, **examples["images"]}
        model_inputs = {key: tensor[order] for key, tensor in tensors.items()}
        rows, ids = (torch.from_numpy(examples[key])[order] for key in ("rows", "ids"))
        return {
            "model_inputs": {**model_inputs, "text_groups": text_groups},
            "rows": rows,
            "ids": ids,
            "bad_images": examples["bad_images"],
        }

    def _pad(self, examples: dict, width: int) -> tuple[Tensor, Tensor]:
        """input_ids and attention_mask, in the order of the examples."""
        tokens, lengths = (torch.from_numpy(examples[key]) for key in ("tokens", "lengths"))
        is_token = torch.arange(width) < lengths[:, None]
        input_ids = torch.full(is_token.shape, self.pad_token_id)
        input_ids[is_token] = tokens.long()
        return input_ids, is_token.long()
