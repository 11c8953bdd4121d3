"""Blend the weights of a checkpoint before and after fine-tuning (WiSE-FT, arXiv:2109.01903, section 3)."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import CLIPProcessor

from component.checkpoint import ancestor_digest, load_checkpoint, read_ancestors, save_checkpoint
from component.hub.identity import identity_of
from component.model import BertCLIPModel

logger = logging.getLogger(__name__)

Weights = Mapping[str, Tensor]

LEAST_COSINE = 0.5  # of a matrix before and after tuning; of two independent random matrices it is about 0
NOT_RELATED = (
    ": blends of weights without a common start do not work. Train it from that folder, with load_from_bert_clip."
)


@dataclass(frozen=True)
class Ends:
    """A model before and after fine-tuning, whose weights can be blended.

    Attributes:
        model: the model that `at` loads blends into, with the ancestors of every blend.
        processor: of both.
        before, after: the weights, on the CPU.
    """

    model: BertCLIPModel
    processor: CLIPProcessor
    before: Weights
    after: Weights

    @property
    def image_tower_is_locked(self) -> bool:
        """Whether both ends have the same vision tower. (visual_projection, which is not in it, may differ.)"""
        return all(
            torch.equal(value, self.after[name])
            for name, value in self.before.items()
            if name.startswith("vision_model.")
        )

    @property
    def distance(self) -> float:
        """Length of the difference between the ends, as a share of the length of the weights before tuning."""
        moved = sum((self.after[name].double() - value.double()).square().sum() for name, value in self.before.items())
        return (moved / sum(value.double().square().sum() for value in self.before.values())).sqrt().item()

    def at(self, alpha: float) -> BertCLIPModel:
        """The model with the weights at `alpha`. The next call changes its weights."""
        self.model.load_state_dict(blend(self.before, self.after, alpha))
        return self.model

    def save(self, alpha: float, folder: str) -> None:
        """Write the blend at `alpha` as a checkpoint."""
        save_checkpoint(self.at(alpha), self.processor, folder)


def blend(before: Weights, after: Weights, alpha: float) -> dict[str, Tensor]:
    """(1 - alpha) · before + alpha · after, computed at least in fp32 and returned in the precision of the ends.

    Alpha 0 and 1 return the ends bit for bit, and every alpha returns weights bit for bit that are equal in both.

    >>> blend({"w": torch.tensor([1.0])}, {"w": torch.tensor([3.0])}, 0.25)
    {'w': tensor([1.5000])}

    Raises:
        ValueError: alpha is not from 0 to 1; or names, shapes, precision or integers differ.
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
    """Raise ValueError with the first difference unless names, shapes, precision and integers are equal."""

    def describe(weights: Weights, name: str) -> str:
        value = weights.get(name)
        return "is missing" if value is None else f"is {tuple(value.shape)} in {str(value.dtype).split('.')[-1]}"

    names = [*before, *(name for name in after if name not in before)]
    different = [name for name in names if describe(before, name) != describe(after, name)]
    if different:
        first = different[0]
        raise ValueError(
            f"models of different layouts cannot be blended: {len(different)} weights differ (the first: {first} "
            f"{describe(before, first)} before, {describe(after, first)} after)."
        )
    for name, value in before.items():
        if not value.is_floating_point() and not torch.equal(value, after[name]):
            raise ValueError(f"{name} holds integers, which cannot be blended, and they differ.")


def load_ends(before_path: str, after_path: str) -> Ends:
    """Load a checkpoint before and after fine-tuning, and check that blends of the two can work.

    If their precision differs, as after training from an fp16 checkpoint, both are converted to the higher one.

    Raises:
        ValueError: as `load_checkpoint`; or the two differ in layout, settings, tokenizer or image processor; or one
            holds NaN; or they are equal; or "after" was not trained from "before". Without a record of that (weights
            of an older version, or tuned elsewhere), each matrix has to be close to what it was.
    """
    (before, processor), (after, other_processor) = load_checkpoint(before_path), load_checkpoint(after_path)
    digests = ancestor_digest(before), ancestor_digest(after)
    dtype = torch.promote_types(before.dtype, after.dtype)
    # Copies, because `Ends.at` changes the weights of the model.
    before_weights, after_weights = (
        {name: value.to("cpu", copy=True) for name, value in model.to(dtype).state_dict().items()}
        for model in (before, after)
    )
    both = f"{before_path} and {after_path}"
    try:
        require_same_layout(before_weights, after_weights)
    except ValueError as error:
        raise ValueError(f"{both}: {error}") from None
    identities = [identity_of(*loaded, weights=("", "")) for loaded in ((before, processor), (after, other_processor))]
    if differences := identities[0].differences(identities[1]):
        raise ValueError(f"{both} are different models: {'; '.join(differences)}.")
    for path, weights in ((before_path, before_weights), (after_path, after_weights)):
        if bad := [name for name, value in weights.items() if not value.isfinite().all()]:
            raise ValueError(f"{path} has NaN or infinite weights (the first: {bad[0]}): its training diverged.")
    if all(torch.equal(value, after_weights[name]) for name, value in before_weights.items()):
        raise ValueError(f"{both} have the same weights: there is nothing to blend.")
    after.ancestors = _recorded_ancestors(before_path, after_path, *digests)
    if after.ancestors is None:
        _require_close(before_path, after_path, before_weights, after_weights)
        after.ancestors = [digests[0]]
    return Ends(after, other_processor, before_weights, after_weights)


def _recorded_ancestors(before_path: str, after_path: str, before: str, after: str) -> list[str] | None:
    """The ancestors of "after", with "before" among them (digests, see `ancestor_digest`); None without a record."""
    if after in (read_ancestors(before_path) or ()):
        raise ValueError(f"{before_path} was trained from {after_path}: swap the two.")
    ancestors = read_ancestors(after_path)
    if ancestors is not None and before not in ancestors:
        start = "from other weights" if ancestors else "from a CLIP and a BERT, not from a BertCLIP"
        raise ValueError(f"{after_path} was not trained from {before_path}, but {start}{NOT_RELATED}")
    return ancestors


def _require_close(before_path: str, after_path: str, before: Weights, after: Weights) -> None:
    cosines = {
        name: F.cosine_similarity(value.flatten().double(), after[name].flatten().double(), dim=0).item()
        for name, value in before.items()
        if value.ndim >= 2 and value.any() and not torch.equal(value, after[name])
    }
    name = min(cosines, key=cosines.get, default=None)
    if name is not None and not cosines[name] >= LEAST_COSINE:
        raise ValueError(
            f"{after_path} was not trained from {before_path}: the cosine of {name} before and after is "
            f"{cosines[name]:.2f}, below {LEAST_COSINE}{NOT_RELATED}"
        )
    logger.warning(
        "%s has no record of what it was trained from; it is assumed to be %s, because the weights are close%s.",
        after_path,
        before_path,
        "" if name is None else f" (the lowest cosine of a matrix is {cosines[name]:.3f}, of {name})",
    )
