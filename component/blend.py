"""The weights between two checkpoints, before and after fine-tuning (WiSE-FT, arXiv:2109.01903, section 3)."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import CLIPProcessor

from component.checkpoint import ancestor_digest, load_checkpoint, read_ancestors
from component.model import BertCLIPModel

logger = logging.getLogger(__name__)

Weights = Mapping[str, Tensor]

LEAST_COSINE = 0.5  # of a matrix with itself before tuning. Matrices that were drawn apart have about 0.
UNSEEN_IN_SHAPES = ("num_attention_heads", "hidden_act", "layer_norm_eps")  # settings of a tower
NO_LINE = (
    ": between weights without a common start nothing works. Train it from that folder, with load_from_bert_clip."
)
TEXT = "一只小狗在摇尾巴 A Photo of 2 CATS, café 2024．"


@dataclass(frozen=True)
class Ends:
    """A model before and after fine-tuning, known to have a line between them.

    Attributes:
        model: that of "after", whose weights `at` replaces. Its ancestors are those of every blend.
        processor: that of both.
        before, after: the weights, on the CPU.
    """

    model: BertCLIPModel
    processor: CLIPProcessor
    before: Weights
    after: Weights

    @property
    def image_tower_is_locked(self) -> bool:
        """The vision tower is the same at both ends. (visual_projection, which is not in it, may differ.)"""
        return all(
            torch.equal(value, self.after[name])
            for name, value in self.before.items()
            if name.startswith("vision_model.")
        )

    @property
    def distance(self) -> float:
        """Length of the way that tuning went, as a share of the length of the weights before it."""
        way = sum((self.after[name].double() - value.double()).square().sum() for name, value in self.before.items())
        return (way / sum(value.double().square().sum() for value in self.before.values())).sqrt().item()

    def at(self, alpha: float) -> BertCLIPModel:
        """The model with the weights at `alpha`; the next call moves it on."""
        self.model.load_state_dict(blend(self.before, self.after, alpha))
        return self.model


def blend(before: Weights, after: Weights, alpha: float) -> dict[str, Tensor]:
    """(1 - alpha) · before + alpha · after, computed in fp32 at least, in the precision of the ends.

    Alpha 0 and 1 give the ends bit for bit, and so does every alpha for a weight that is the same in both.

    Raises:
        ValueError: alpha is not from 0 to 1; the ends differ in names, shapes or precision, or in a whole number.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha is {alpha:g}; expected a number from 0 (before) to 1 (after).")
    require_same_layout(before, after)
    if alpha in (0, 1):
        return {name: value.clone() for name, value in (after if alpha else before).items()}
    return {name: _between(value, after[name], alpha) for name, value in before.items()}


def _between(before: Tensor, after: Tensor, alpha: float) -> Tensor:
    if not before.is_floating_point() or torch.equal(before, after):
        return before.clone()
    dtype = torch.promote_types(before.dtype, torch.float32)
    return torch.lerp(before.to(dtype), after.to(dtype), alpha).to(before.dtype)


def require_same_layout(before: Weights, after: Weights) -> None:
    """Raise ValueError, with the first difference, unless names, shapes, precision and whole numbers are the same."""

    def describe(weights: Weights, name: str) -> str:
        value = weights.get(name)
        return "is not there" if value is None else f"is {tuple(value.shape)} in {str(value.dtype).split('.')[-1]}"

    names = [*before, *(name for name in after if name not in before)]
    unlike = [name for name in names if describe(before, name) != describe(after, name)]
    if unlike:
        first = unlike[0]
        raise ValueError(
            f"models of different layouts cannot be blended: {len(unlike)} weights differ (the first: {first} "
            f"{describe(before, first)} before, {describe(after, first)} after)."
        )
    for name, value in before.items():
        if not value.is_floating_point() and not torch.equal(value, after[name]):
            raise ValueError(f"{name} holds whole numbers, which cannot be blended, and they differ.")


def load_ends(before_path: str, after_path: str) -> Ends:
    """Load a checkpoint and what fine-tuning made of it, and see that there is a line between the two.

    Raises:
        ValueError: as `load_checkpoint`; or the two differ in layout, settings, precision, tokenizer or image
            processor; or one holds NaN; or they are the same; or "after" was not trained from "before". Where no
            record tells (weights of an older version, or tuned elsewhere), each matrix has to be near what it was.
    """
    before, processor = load_checkpoint(before_path)
    after, other_processor = load_checkpoint(after_path)
    # Copies: the weights of the model are moved on.
    before_weights, after_weights = (
        {name: value.to("cpu", copy=True) for name, value in model.state_dict().items()} for model in (before, after)
    )
    both = f"{before_path} and {after_path}"
    try:
        require_same_layout(before_weights, after_weights)
        _require_same_settings(before, after)
        _require_same_inputs(processor, other_processor)
    except ValueError as error:
        raise ValueError(f"{both}: {error}") from None
    for path, weights in ((before_path, before_weights), (after_path, after_weights)):
        if bad := [name for name, value in weights.items() if not value.isfinite().all()]:
            raise ValueError(f"{path} has NaN or infinite weights (the first: {bad[0]}): its training went astray.")
    if all(torch.equal(value, after_weights[name]) for name, value in before_weights.items()):
        raise ValueError(f"{both} have the same weights: there is nothing between them.")
    if ancestor_digest(after) in (read_ancestors(before_path) or ()):
        raise ValueError(f"{before_path} was trained from {after_path}: swap the two.")
    digest, ancestors = ancestor_digest(before), read_ancestors(after_path)
    if ancestors is None:
        _require_near(before_path, after_path, before_weights, after_weights)
        ancestors = [digest]
    elif digest not in ancestors:
        start = "from other weights" if ancestors else "from a CLIP and a BERT, and from no BertCLIP"
        raise ValueError(f"{after_path} was not trained from {before_path}, but {start}{NO_LINE}")
    after.ancestors = ancestors
    return Ends(after, other_processor, before_weights, after_weights)


def _require_same_settings(before: BertCLIPModel, after: BertCLIPModel) -> None:
    for tower in ("text_config", "vision_config"):
        for key in UNSEEN_IN_SHAPES:
            old, new = (getattr(getattr(model.config, tower), key) for model in (before, after))
            if old != new:
                raise ValueError(f"{key} of {tower} is {old} before and {new} after: not the same model.")


def _require_same_inputs(before: CLIPProcessor, after: CLIPProcessor) -> None:
    tokens = [(p.tokenizer.get_vocab(), p.tokenizer(TEXT)["input_ids"]) for p in (before, after)]
    if tokens[0] != tokens[1]:
        raise ValueError("their tokenizers differ, so that a token means another word in each.")
    noise = np.random.default_rng(0).integers(0, 256, (90, 300, 3), dtype=np.uint8)
    pixels = [p.image_processor(Image.fromarray(noise), return_tensors="pt")["pixel_values"] for p in (before, after)]
    if not torch.equal(*pixels):
        raise ValueError("their image processors make other pixels of the same image (preprocessor_config.json).")


def _require_near(before_path: str, after_path: str, before: Weights, after: Weights) -> None:
    cosines = {
        name: F.cosine_similarity(value.flatten().double(), after[name].flatten().double(), dim=0).item()
        for name, value in before.items()
        if value.ndim >= 2 and value.any() and not torch.equal(value, after[name])
    }
    name = min(cosines, key=cosines.get, default=None)
    if name is not None and not cosines[name] >= LEAST_COSINE:
        raise ValueError(
            f"{after_path} was not trained from {before_path}: {name} points elsewhere (cosine {cosines[name]:.2f}, "
            f"below {LEAST_COSINE}){NO_LINE}"
        )
    logger.warning(
        "%s does not say what it was trained from; it is taken for a child of %s, because its weights are near%s.",
        after_path,
        before_path,
        "" if name is None else f" (the least cosine of a matrix: {cosines[name]:.3f}, {name})",
    )
