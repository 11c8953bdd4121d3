"""Groups of texts: which are chosen, and that the model's results do not depend on them."""

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch._dynamo.testing import CompileCounter

from component.configuration import BertCLIPConfig
from component.datacollator import PairCollator
from component.loss import clip_loss
from component.model import BertCLIPModel
from component.pairs.text_groups import CPU_COSTS, FEWEST_GROUPS, GPU_COSTS, GroupCosts, group_by_cost

LENGTHS = np.array([5, 22, 9, 6, 5, 12, 22])


@pytest.mark.parametrize("largest", [None, 1, 3, 5])
@pytest.mark.parametrize("costs", [(0, 1), (4, 1), (15, 1), (4, 4), (math.inf, 1), (math.inf, 8)])
def test_no_other_groups_cost_less(costs, largest):
    """All partitions of up to 7 texts, those that are not in the order of the lengths too."""
    group_cost, multiple = costs = GroupCosts(*costs)
    random = np.random.default_rng(0)

    def cost(groups) -> tuple[float, int]:
        padded = sum(len(group) * -(-max(group) // multiple) * multiple for group in groups)
        return len(groups) * min(group_cost, 1000), padded

    for texts in (1, 2, 4, 6, 7):
        lengths = random.integers(1, random.integers(2, 20), texts)
        groups = group_by_cost(lengths, costs, largest)
        found = [lengths[rows] for rows, _ in groups]
        assert sorted(row for rows, _ in groups for row in rows) == list(range(texts))
        assert [width for _, width in groups] == [-(-max(group) // multiple) * multiple for group in found]
        allowed = [
            [lengths[rows] for rows in groups]
            for groups in partitions(texts)
            if max(map(len, groups)) <= (largest or texts)
        ]
        assert sum(cost(found)) == min(sum(cost(groups)) for groups in allowed)


def partitions(count: int) -> Iterator[list[list[int]]]:
    """All partitions of the rows below `count` into groups."""
    if not count:
        yield []
        return
    for groups in partitions(count - 1):
        yield [*groups, [count - 1]]
        for place in range(len(groups)):
            yield [*groups[:place], [*groups[place], count - 1], *groups[place + 1 :]]


@pytest.mark.parametrize("costs, most_groups, most_padding", [(CPU_COSTS, 16, 0.07), (GPU_COSTS, 5, 0.3)])
def test_a_batch_of_the_recipe_is_split_by_the_costs_of_the_device(costs, most_groups, most_padding):
    """768 captions of a lognormal length; in one group 77 % would be padding."""
    characters = np.random.default_rng(0).lognormal(np.log(20) - 0.18, 0.6, 768)
    lengths = np.clip(characters.round() + 2, 3, 100)
    groups = group_by_cost(lengths, costs)
    positions = sum(len(rows) * width for rows, width in groups)
    assert len(groups) <= most_groups and 1 - lengths.sum() / positions < most_padding
    assert lengths.sum() / (768 * lengths.max()) < 0.25


@pytest.mark.parametrize("largest", [None, 2])
@pytest.mark.parametrize("costs", [CPU_COSTS, GPU_COSTS, GroupCosts(0), GroupCosts(20, 4)])
def test_groups_have_the_embeddings_and_gradients_of_the_whole_batch(bert_clip_path, costs, largest):
    """With a tower of 22 positions, which is not a multiple of 8."""
    config = BertCLIPConfig.from_pretrained(bert_clip_path)
    config.text_config.max_position_embeddings = 22
    torch.manual_seed(0)
    model = BertCLIPModel(config).eval()
    random = np.random.default_rng(0)
    examples = {
        "rows": np.arange(len(LENGTHS)),
        "ids": np.zeros((len(LENGTHS), 2), np.int64),
        "tokens": random.integers(5, 30, LENGTHS.sum()),
        "lengths": LENGTHS,
        "texts": {},
        "images": {"pixel_values": torch.from_numpy(random.normal(size=(len(LENGTHS), 3, 32, 32))).float()},
        "bad_images": [],
    }

    def outcome(*grouping) -> dict[str, torch.Tensor]:
        model.zero_grad()
        batch = PairCollator(0, *grouping)(examples)
        outputs = model(**batch["model_inputs"])
        clip_loss(outputs.image_embeds, outputs.text_embeds, outputs.logit_scale).backward()
        order = batch["rows"].argsort()
        gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
        return {"images": outputs.image_embeds[order], "texts": outputs.text_embeds[order], **gradients}

    torch.testing.assert_close(outcome(largest, costs), outcome(None, FEWEST_GROUPS), atol=1e-5, rtol=1e-4)


def test_more_groups_need_no_more_compiling(bert_clip_path):
    model = BertCLIPModel.from_pretrained(bert_clip_path).eval()
    counter = CompileCounter()
    compiled = torch.compile(model, backend=counter)

    def compile_for(*groups: tuple[int, int]) -> int:
        pairs, width = sum(texts for texts, _ in groups), groups[0][1]
        tokens, images = torch.ones(pairs, width, dtype=torch.long), torch.ones(pairs, 48)
        compiled(input_ids=tokens, attention_mask=tokens, vision_pooler_output=images, text_groups=list(groups))
        return counter.op_count

    for groups in ([(5, 16)], [(4, 24), (7, 8)], [(3, 20), (2, 16)]):
        compiled_so_far = compile_for(*groups)
    assert compile_for((7, 22)) == compile_for((3, 20), (2, 16), (5, 10), (4, 6)) == compiled_so_far > 0
