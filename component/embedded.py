"""Items and their embeddings in the shared space.

Shapes: n good items, D projection width.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from PIL import Image
from torch import Tensor


@dataclass(frozen=True)
class Embedded:
    """Items of one kind and their embeddings.

    Attributes:
        kind: "text" or "image".
        items: all items as they were passed, bad images included.
        embeds: (n, D) fp32 on the CPU, L2-normalised, of the good items.
        rows: n indices into `items`: `embeds[i]` belongs to `items[rows[i]]`.
        bad_images: index into `items` → reason, of the images that could not be read.
    """

    kind: Literal["text", "image"]
    items: Sequence[str | Image.Image]
    embeds: Tensor
    rows: list[int]
    bad_images: dict[int, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.rows)

    def item(self, index: int) -> str | Image.Image:
        """The item that `embeds[index]` belongs to."""
        return self.items[self.rows[index]]
