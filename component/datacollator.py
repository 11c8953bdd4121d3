"""Examples → one batch."""

from dataclasses import dataclass

import torch

from component.pairs.text_groups import FEWEST_GROUPS, GroupCosts, group_by_cost, pad_texts


@dataclass
class PairCollator:
    """Sort the pairs by the length of their texts, the longest first, and pad the texts group by group.

    The groups of a shuffled batch need about the padding of batches of like lengths, while the batch stays random; a
    contrastive batch has no order.

    Args:
        pad_token_id: of the BERT tokenizer.
        group_size: texts of a group at most; None: as many as there are.
        group_costs: the groups that cost least are taken; by default the fewest.

    Takes what `Pairs.__getitems__` gives. Returns (B good pairs, T tokens):
        model_inputs: input_ids (B, T), attention_mask (B, T); text_groups, a list of (texts, tokens), one after the
        other; and what the image source gives, pixel_values (B, 3, H, W) or vision_pooler_output (B, vision_hidden),
        or nothing where B is 0.
        Beside them: rows (B,) in the table, ids (B, 2), and bad_images, row → reason.
    """

    pad_token_id: int
    group_size: int | None = None
    group_costs: GroupCosts = FEWEST_GROUPS

    def __call__(self, examples: dict) -> dict:
        tokens, lengths = examples["tokens"], examples["lengths"]
        groups = group_by_cost(lengths, self.group_costs, self.group_size)
        text_groups = [(len(rows), width) for rows, width in groups]
        order = torch.cat([torch.from_numpy(rows) for rows, _ in groups]) if groups else torch.arange(0)
        widest = max((width for _, width in groups), default=0)
        input_ids, attention_mask = pad_texts(tokens, lengths, widest, self.pad_token_id)
        tensors = {"input_ids": input_ids, "attention_mask": attention_mask, **examples["images"]}
        model_inputs = {key: tensor[order] for key, tensor in tensors.items()}
        rows, ids = (torch.from_numpy(examples[key])[order] for key in ("rows", "ids"))
        return {
            "model_inputs": {**model_inputs, "text_groups": text_groups},
            "rows": rows,
            "ids": ids,
            "bad_images": examples["bad_images"],
        }
