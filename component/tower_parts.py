"""Where the blocks of a tower are, told the same way for BERT and every ViT of transformers."""

from typing import NamedTuple

from torch import nn


class TowerParts(NamedTuple):
    """Modules of a tower by name.

    Attributes:
        below: the modules that compute before the blocks, such as the embeddings.
        blocks: the transformer blocks in their order.
    """

    below: dict[str, nn.Module]
    blocks: dict[str, nn.Module]

    @property
    def block_class(self) -> str:
        """Name of the class of the blocks."""
        return type(next(iter(self.blocks.values()))).__name__


def tower_parts(tower: nn.Module) -> TowerParts:
    """The parts of a tower, whose modules are in the order in which they compute.

    Its blocks are the list that has one module per layer.
    """
    modules = dict(tower.named_modules())
    names = list(modules)
    [blocks, *_] = [name for name in names if _has_a_module_per_layer(modules[name], tower)]
    below = [name for name in names[: names.index(blocks)] if name and not blocks.startswith(f"{name}.")]
    return TowerParts(
        {name: modules[name] for name in below},
        {f"{blocks}.{number}": block for number, block in enumerate(modules[blocks])},
    )


def _has_a_module_per_layer(module: nn.Module, tower: nn.Module) -> bool:
    return isinstance(module, nn.ModuleList) and len(module) == tower.config.num_hidden_layers
