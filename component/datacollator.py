"""Examples → one batch."""

from dataclasses import dataclass

import numpy as np
import torch

from component.pairs.text_groups import FEWEST_GROUPS, GroupCosts, group_by_cost, pad_texts


@dataclass
class PairCollator:
    """Sorts the pairs by the length of their texts, the longest first, and pads the texts group by group.

    So a shuffled batch needs about as little padding as batches of similar lengths, and stays random. The order of a
    contrastive batch does not matter.

    Args:
        pad_token_id: of the BERT tokenizer.
        group_size: most texts in a group; None: no limit.
        group_costs: the cheapest groups are chosen; by default as few as possible.

    Called with the result of `Pairs.__getitems__`, it returns (B good pairs, T tokens):
        model_inputs: input_ids (B, T) and attention_mask (B, T), unless text_pooler_output replaces them; text_groups,
        a list of (texts, tokens) of consecutive groups; and the columns of the pairs, such as vision_pooler_output
        (B, vision_hidden), or pixels (B, H, W, 3) uint8, of which the trainer makes pixel_values.
        In addition: rows (B,) of the table, ids (B, 2), and bad_images, row → reason.
    """

    pad_token_id: int
    group_size: int | None = None
    group_costs: GroupCosts = FEWEST_GROUPS

    def __call__(self, examples: dict) -> dict:
        lengths = examples.get("lengths", np.ones(len(examples["rows"]), np.int64))
        groups = group_by_cost(lengths, self.group_costs, self.group_size)
        text_groups = [(len(rows), width) for rows, width in groups]
        order = torch.cat([torch.from_numpy(rows) for rows, _ in groups]) if groups else torch.arange(0)
        tensors = {**examples["texts"], **examples["images"]}
        if "tokens" in examples:
            widest = max((width for _, width in groups), default=0)
            padded = pad_texts(examples["tokens"], lengths, widest, self.pad_token_id)
            tensors |= zip(("input_ids", "attention_mask"), padded, strict=True)
        model_inputs = {key: tensor[order] for key, tensor in tensors.items()}
        rows, ids = (torch.from_numpy(examples[key])[order] for key in ("rows", "ids"))
        return {
            "model_inputs": {**model_inputs, "text_groups": text_groups},
            "rows": rows,
            "ids": ids,
            "bad_images": examples["bad_images"],
        }
