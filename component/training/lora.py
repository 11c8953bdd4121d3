"""LoRA (arXiv:2106.09685) on the text tower: train small matrices next to locked ones.

The adapter is injected in place, so that the model stays a `BertCLIPModel`; locking, projections and logit_scale are
not affected. Checkpoints contain the merged weights in the layout of every checkpoint, and next to them the adapter,
which holds everything that was trained, in peft's own format.
"""

import os
import re
from collections.abc import Sequence

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from component.checkpoint import load_model
from component.ground.optional import import_optional
from component.model import BertCLIPModel

ADAPTER = "adapter"  # folder in a checkpoint
_WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."  # of names in peft's files
_NAME = "default"  # peft's default name of an adapter
ATTENTION_AND_MLP = ("query", "key", "value", "intermediate.dense", "output.dense")  # output.dense occurs in both


def add_lora(
    model: BertCLIPModel, rank: int, alpha: float | None, dropout: float, targets: Sequence[str] | None
) -> None:
    """Lock the text tower and add trainable matrices to those of its linear layers that match `targets`.

    Args:
        alpha: the added product is scaled by alpha / rank; None: twice the rank.
        dropout: of the inputs to the added matrices.
        targets: ends of module names, in whole components; None: attention and MLP of all layers.

    Raises:
        ValueError: no linear layer of the tower matches a target, or a layer is smaller than the rank.
        ModuleNotFoundError: peft is not installed.
    """
    peft = import_optional("peft", "`lora_rank`")
    targets = [target.removeprefix("text_model.") for target in targets or ATTENTION_AND_MLP]
    layers = {name: layer for name, layer in model.text_model.named_modules() if isinstance(layer, nn.Linear)}
    for target in targets:
        widths = [min(layer.weight.shape) for name, layer in layers.items() if f".{name}".endswith(f".{target}")]
        if not widths:
            known = ", ".join(dict.fromkeys(re.sub(r"^encoder\.layer\.\d+\.", "", name) for name in layers))
            raise ValueError(f"`lora_targets`: the text tower has no linear layer {target}; it has {known}.")
        if rank > min(widths):
            raise ValueError(
                f"`lora_rank` is {rank}, but {target} has only {min(widths)} dimensions; LoRA uses ranks from 4 to 64."
            )
    model.text_model.requires_grad_(False)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    pattern = rf"text_model\.(.*\.)?({'|'.join(map(re.escape, targets))})"
    config = peft.LoraConfig(
        r=rank, lora_alpha=2 * rank if alpha is None else alpha, lora_dropout=dropout, target_modules=pattern
    )
    peft.inject_adapter_in_model(config, model, _NAME)  # locks all other parameters
    for parameter in trained:
        parameter.requires_grad_(True)


@torch.no_grad()
def merged_state_dict(model: BertCLIPModel) -> dict[str, Tensor]:
    """The state dict of a plain model that computes the same, on the CPU. The model itself does not change."""
    merged = {}
    for name, value in model.state_dict().items():
        value = value.cpu()
        if name.endswith(".base_layer.weight"):
            layer = model.get_submodule(name.removesuffix(".base_layer.weight"))
            # In fp64, so that every device gives the same result. (A GPU may round products to TF32.)
            up, down = (part[_NAME].weight.cpu().double() for part in (layer.lora_B, layer.lora_A))
            value = torch.addmm(value.double(), up, down, alpha=layer.scaling[_NAME]).to(value.dtype)
        if ".lora_" not in name and name not in model._keys_to_ignore_on_save:
            merged[name.replace(".base_layer.", ".")] = value
    return merged


def save_adapter(model: BertCLIPModel, folder: str) -> None:
    """Write everything that is trained, projections and logit_scale included, to `adapter` in a checkpoint folder."""
    folder = os.path.join(folder, ADAPTER)
    model.peft_config[_NAME].save_pretrained(folder)  # also creates the folder
    trained = {_name_in_file(name): value.detach().contiguous() for name, value in _trained(model).items()}
    save_file(trained, os.path.join(folder, _WEIGHTS), metadata={"format": "pt"})


@torch.no_grad()
def load_adapter(model: BertCLIPModel, folder: str) -> None:
    """Load what `save_adapter` wrote into a checkpoint.

    Raises:
        ValueError: there is no adapter, it belongs to another model, or the locked weights differ from those that it
            was trained with.
    """
    path = os.path.join(folder, ADAPTER, _WEIGHTS)
    if not os.path.isfile(path):
        raise ValueError(f"{folder} has no {ADAPTER}/{_WEIGHTS}: it was trained without LoRA. Leave lora_rank out.")
    weights, trained = load_file(path), _trained(model)
    if {name: value.shape for name, value in weights.items()} != {
        _name_in_file(name): value.shape for name, value in trained.items()
    }:
        raise ValueError(f"{path} contains other weights than this recipe trains.")
    for name, value in trained.items():
        value.copy_(weights[_name_in_file(name)])
    before = load_model(folder, torch.float32).state_dict()
    for name, value in merged_state_dict(model).items():
        if not torch.allclose(value, before[name], rtol=1e-5, atol=1e-6):
            raise ValueError(
                f"{folder} was trained from other weights than clip_pretrain_path and bert_pretrain_path contain now "
                f"({name} differs): restore the original ones."
            )


def _trained(model: BertCLIPModel) -> dict[str, Tensor]:
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    return {name: parameter for name, parameter in trained.items() if name not in model._keys_to_ignore_on_save}


def _name_in_file(name: str) -> str:
    return _PREFIX + name.replace(f".{_NAME}.", ".")
