"""Learning rates by part of the model, and smaller ones for layers farther from the output."""

import logging
import re
from collections import Counter
from collections.abc import Iterable, Mapping

from torch import nn
from torch.optim import Optimizer

from component.argument import CLIPTrainingArguments
from component.model import BertCLIPModel

logger = logging.getLogger(__name__)

_INSIDE = re.compile(r"(text_model|vision_model)\.(?:embeddings|pre_layrnorm|encoder\.layers?\.(\d+))\.")


def rates_of(model: BertCLIPModel, args: CLIPTrainingArguments) -> dict[str, float]:
    """Name of each parameter that is trained → its learning rate before any schedule.

    That is the rate of the longest prefix in `learning_rates`, else `learning_rate`; times `layer_decay` once for the
    last block of a tower, twice for the one before, and once more for the embeddings than for the first block (as in
    BEiT, arXiv:2106.08254).

    Raises:
        ValueError: a prefix of `learning_rates` that no parameter begins with, or none that is trained; a tower in
            `layer_decay` of which nothing is trained.
    """
    rates, decay = args.learning_rates or {}, args.layer_decay or 1.0
    names = {_plain(name): parameter.requires_grad for name, parameter in model.named_parameters()}
    for prefix in rates:
        _require_trained("learning_rates", prefix, names)
    if isinstance(decay, dict):
        for tower in decay:
            _require_trained("layer_decay", tower, names)
    else:
        decay = dict.fromkeys(("text_model", "vision_model"), decay)
    blocks = {
        "text_model": model.config.text_config.num_hidden_layers,
        "vision_model": model.config.vision_config.num_hidden_layers,
    }

    def rate_of(name: str) -> float:
        prefix = max((prefix for prefix in rates if _begins(name, prefix)), key=len, default=None)
        rate = args.learning_rate if prefix is None else rates[prefix]
        if inside := _INSIDE.match(name):
            tower, block = inside.groups(default="-1")
            rate *= decay.get(tower, 1.0) ** (blocks[tower] - int(block))
        return rate

    return {name: rate_of(_plain(name)) for name, parameter in model.named_parameters() if parameter.requires_grad}


def set_rates(optimizer: Optimizer, model: BertCLIPModel, args: CLIPTrainingArguments) -> None:
    """Split the optimizer's groups by `rates_of`, before a schedule is made for them. The log names the rates."""
    rates = rates_of(model, args)
    rate_of = {parameter: rates[name] for name, parameter in model.named_parameters() if name in rates}
    groups = []
    for group in optimizer.param_groups:
        by_rate: dict[float, list[nn.Parameter]] = {}
        for parameter in group["params"]:
            by_rate.setdefault(rate_of[parameter], []).append(parameter)
        groups += [{**group, "params": parameters, "lr": rate} for rate, parameters in by_rate.items()]
    # What the Trainer logs is the rate of the first group: learning_rate, or the highest where no weight has that.
    optimizer.param_groups = sorted(groups, key=lambda group: (group["lr"] != args.learning_rate, -group["lr"]))
    counts = Counter(rates.values())
    rates_and_counts = ", ".join(f"{rate:.3g} ({counts[rate]})" for rate in sorted(counts))
    logger.info("learning rates, and how many weights have each: %s", rates_and_counts)


def _plain(name: str) -> str:
    """A parameter's name before LoRA."""
    return name.replace(".base_layer.", ".")


def _begins(name: str, prefix: str) -> bool:
    """By whole parts: layer.1 is no prefix of layer.10."""
    return f"{name}.".startswith(f"{prefix}.")


def _require_trained(key: str, prefix: str, is_trained: Mapping[str, bool]) -> None:
    found = [trained for name, trained in is_trained.items() if _begins(name, prefix)]
    if not found:
        raise ValueError(f"`{key}`: no weight of the model begins with {prefix}; there are {_parts(is_trained)}.")
    if not any(found):
        raise ValueError(
            f"`{key}`: all that begins with {prefix} is locked, and takes no learning rate. Leave it out, or see "
            "freeze_vision and lora_rank."
        )


def _parts(names: Iterable[str]) -> str:
    """Prefixes that make sense, with one number in place of all layers'."""
    layers = (re.match(r"(\w+\.encoder\.layers?)\.|\w+_model\.\w+|\w+", name) for name in names)
    return ", ".join(dict.fromkeys(f"{match[1]}.<n>" if match[1] else match[0] for match in layers))
