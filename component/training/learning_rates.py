"""Learning rates by prefix of the weights' names, and lower ones for layers farther from the output."""

import logging
import re
from collections import Counter
from collections.abc import Iterable, Mapping

from torch import nn
from torch.optim import Optimizer

from component.argument import CLIPTrainingArguments
from component.model import BertCLIPModel
from component.tower_parts import tower_parts

logger = logging.getLogger(__name__)


def rates_of(model: BertCLIPModel, args: CLIPTrainingArguments) -> dict[str, float]:
    """Name of each trainable parameter → its learning rate before any schedule.

    The rate is that of the longest matching prefix in `learning_rates`, or else `learning_rate`. It is multiplied by
    `layer_decay` once for the last block of a tower, twice for the block before it, and so on; the embeddings are
    decayed once more than the first block (as in BEiT, arXiv:2106.08254).

    Raises:
        ValueError: no parameter, or no trainable one, begins with a prefix in `learning_rates`; a tower in
            `layer_decay` has no trainable parameter.
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
    factors = {
        f"{tower}.{name}": factor**depth
        for tower, factor in decay.items()
        if getattr(model, tower) is not None
        for name, depth in _depths(getattr(model, tower)).items()
    }

    def rate_of(name: str) -> float:
        prefix = max((prefix for prefix in rates if _begins(name, prefix)), key=len, default=None)
        rate = args.learning_rate if prefix is None else rates[prefix]
        return rate * next((factor for module, factor in factors.items() if _begins(name, module)), 1.0)

    return {name: rate_of(_plain(name)) for name, parameter in model.named_parameters() if parameter.requires_grad}


def _depths(tower: nn.Module) -> dict[str, int]:
    """Names of the blocks and of the modules below them → how many blocks they are from the output, from 1."""
    below, blocks = tower_parts(tower)
    depths = {name: len(blocks) - number for number, name in enumerate(blocks)}
    return depths | dict.fromkeys(below, len(blocks) + 1)


def set_rates(optimizer: Optimizer, model: BertCLIPModel, args: CLIPTrainingArguments) -> None:
    """Split the optimizer's parameter groups by `rates_of` and log the rates. Call it before building a scheduler."""
    rates = rates_of(model, args)
    rate_of = {parameter: rates[name] for name, parameter in model.named_parameters() if name in rates}
    groups = []
    for group in optimizer.param_groups:
        by_rate: dict[float, list[nn.Parameter]] = {}
        for parameter in group["params"]:
            by_rate.setdefault(rate_of[parameter], []).append(parameter)
        groups += [{**group, "params": parameters, "lr": rate} for rate, parameters in by_rate.items()]
    # The Trainer logs the rate of the first group: learning_rate, or the highest rate if no weight has that one.
    optimizer.param_groups = sorted(groups, key=lambda group: (group["lr"] != args.learning_rate, -group["lr"]))
    counts = Counter(rates.values())
    rates_and_counts = ", ".join(f"{rate:.3g} ({counts[rate]})" for rate in sorted(counts))
    logger.info("learning rates (and how many weights use each): %s", rates_and_counts)


def _plain(name: str) -> str:
    """A parameter's name without LoRA."""
    return name.replace(".base_layer.", ".")


def _begins(name: str, prefix: str) -> bool:
    """Compare whole components: layer.1 is not a prefix of layer.10."""
    return f"{name}.".startswith(f"{prefix}.")


def _require_trained(key: str, prefix: str, is_trained: Mapping[str, bool]) -> None:
    found = [trained for name, trained in is_trained.items() if _begins(name, prefix)]
    if not found:
        raise ValueError(f"`{key}`: no weight begins with {prefix}; the model has {_prefixes(is_trained)}.")
    if not any(found):
        raise ValueError(
            f"`{key}`: all weights that begin with {prefix} are locked and need no learning rate. Leave it out, or "
            "unlock them (see freeze_vision, freeze_visual_projection, freeze_text and lora_rank)."
        )


def _prefixes(names: Iterable[str]) -> str:
    """Useful prefixes of the names, with <n> in place of the number of a layer."""
    layers = (re.match(r"(\w+\.encoder\.layers?)\.|\w+_model\.\w+|\w+", name) for name in names)
    return ", ".join(dict.fromkeys(f"{match[1]}.<n>" if match[1] else match[0] for match in layers))
