"""The identity of a model: all that decides its embeddings, the image half and the text half apart.

Caches, galleries, runs and blends compare identities, never paths: two models are the same if their weights, the
settings in config.json, and what prepares their input (image processor or tokenizer) are the same.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # a query compares identities without torch, which takes seconds to import
    from tokenizers import Tokenizer
    from torch import Tensor, nn
    from transformers import CLIPProcessor, PreTrainedTokenizerFast

# Settings that change what a tower computes and that the shapes of its weights do not show.
SETTINGS = ("hidden_act", "layer_norm_eps", "num_attention_heads", "pooler_act", "rope_theta", "text_pooling")
IMAGE_PROCESSOR = (
    *("do_convert_rgb", "do_resize", "size", "resample", "do_center_crop", "crop_size"),
    *("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std"),
)


@dataclass(frozen=True)
class Half:
    """What decides the embeddings of one half of a model. All values are JSON.

    Attributes:
        weights: digest of the tower, and of the projection if it belongs to the half.
        settings: config key → value.
        inputs: key → value of what prepares the input of the tower.
    """

    weights: str
    settings: dict[str, Any]
    inputs: dict[str, Any]

    def digest(self, *more: str) -> str:
        """One digest of the half and of `more`."""
        content = json.dumps([asdict(self), *more], sort_keys=True)
        return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()


@dataclass(frozen=True)
class ModelIdentity:
    """The two halves of a model."""

    image: Half
    text: Half

    to_dict = asdict

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> ModelIdentity:
        """The identity that `to_dict` gave. Raises TypeError or KeyError for anything else."""
        return cls(Half(**content["image"]), Half(**content["text"]))

    def differences(self, other: ModelIdentity, halves: Sequence[str] = ("image", "text")) -> list[str]:
        """What differs in `other`, each as a phrase: "hidden_act of the text tower was gelu, is relu"."""
        found = []
        for name in halves:
            half, other_half = getattr(self, name), getattr(other, name)
            if half.weights != other_half.weights:
                found.append(f"the weights of the {name} half")
            found += _changed(half.settings, other_half.settings, f"the {name} tower")
            found += _changed(half.inputs, other_half.inputs, "the image processor" if name == "image" else "")
        return found


def _changed(before: dict[str, Any], after: dict[str, Any], owner: str) -> list[str]:
    keys = [key for key in {**before, **after} if before.get(key) != after.get(key)]
    if "tokenizer" in keys:  # only a digest, which would tell a user nothing
        return ["the tokenizer"]
    return [f"{key}{owner and f' of {owner}'} was {before.get(key)}, is {after.get(key)}" for key in keys]


def identity_of(model: nn.Module, processor: CLIPProcessor, weights: tuple[str, str] | None = None) -> ModelIdentity:
    """The identity of a BertCLIP model and its processor.

    Args:
        weights: digests of the image half and of the text half, if they are known (`half_digests`).
    """
    image, text = weights or half_digests(model)
    image_half = Half("", {}, {})
    if model.vision_model is not None:
        image_half = Half(image, _settings(model.vision_model), image_inputs(processor.image_processor))
    return ModelIdentity(image_half, Half(text, _settings(model.text_model), text_inputs(processor.tokenizer)))


def image_tower(tower: nn.Module, image_processor) -> Half:
    """The image half without its projection: what decides the pooled output of the tower."""
    return Half(weights_digest(tower), _settings(tower), image_inputs(image_processor))


def text_tower(tower: nn.Module, tokenizer: PreTrainedTokenizerFast) -> Half:
    """The text half without its projection."""
    return Half(weights_digest(tower), _settings(tower), text_inputs(tokenizer))


def half_digests(model: nn.Module) -> tuple[str, str]:
    """Digests of the weights of the image half and of the text half, projections included."""
    from torch import nn

    return tuple(
        "" if tower is None else weights_digest(nn.ModuleList([tower, projection]))
        for tower, projection in (
            (model.vision_model, model.visual_projection),
            (model.text_model, model.text_projection),
        )
    )


def image_differences(before: ModelIdentity, now: ModelIdentity, model: nn.Module) -> list[str]:
    """What differs in the image half of `model`, whose identity is `now`; empty if it embeds images as before.

    Training from a checkpoint in fp16 saves a locked image half in fp32: the same values are the same half.
    """
    if before.image.weights != now.image.weights and before.image.weights in _exact_digests(model):
        now = replace(now, image=replace(now.image, weights=before.image.weights))
    return before.differences(now, ["image"])


def _exact_digests(model: nn.Module) -> Iterator[str]:
    """Digest of the image half in each precision that holds its weights exactly."""
    import torch
    from torch import nn

    half = nn.ModuleList([model.vision_model, model.visual_projection])
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        other = copy.deepcopy(half).to(dtype)
        pairs = zip(half.parameters(), other.parameters(), strict=True)
        if all(torch.equal(mine, theirs.to(mine.dtype)) for mine, theirs in pairs):
            yield weights_digest(other)


def weights_digest(module: nn.Module, *settings: Any) -> str:
    """Digest of the names and values of all weights, in the precision that they have.

    Args:
        settings: added to the digest as JSON, as in galleries of earlier versions.
    """
    import torch

    digest = hashlib.blake2b(digest_size=16)
    for name, value in sorted(published_weights(module).items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
    return digest.hexdigest()


def published_weights(module: nn.Module) -> dict[str, Tensor]:
    """The state dict of a tower, or of a module with towers, with the names that the weights have in files.

    In memory, the weights of some towers have other names in some versions of transformers.
    """
    from transformers import PreTrainedModel
    from transformers.core_model_loading import revert_weight_conversion

    weights = module.state_dict()
    if isinstance(module, PreTrainedModel) and not module.is_custom_code():
        return revert_weight_conversion(module, weights)
    for name, part in module.named_children():
        if isinstance(part, PreTrainedModel):
            weights = {key: value for key, value in weights.items() if not key.startswith(f"{name}.")}
            weights |= {f"{name}.{key}": value for key, value in published_weights(part).items()}
    return weights


def image_inputs(image_processor) -> dict[str, Any]:
    """Key → value of what decides the pixel_values of an image."""
    content = json.loads(image_processor.to_json_string())
    return {key: content[key] for key in IMAGE_PROCESSOR if key in content}


def text_inputs(tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """Key → value of what decides the input_ids of a text."""
    return {
        "tokenizer": tokenizer_digest(tokenizer.backend_tokenizer),
        "model_max_length": tokenizer.model_max_length,
    }


def tokenizer_digest(backend: Tokenizer) -> str:
    """Digest of the vocabulary and of all steps of a tokenizer."""
    pipeline = json.loads(backend.to_str())
    for key in ("truncation", "padding"):  # those of the last call
        pipeline.pop(key)
    return hashlib.blake2b(json.dumps(pipeline, sort_keys=True).encode(), digest_size=16).hexdigest()


def _settings(tower: nn.Module) -> dict[str, Any]:
    return {key: getattr(tower.config, key) for key in SETTINGS if hasattr(tower.config, key)}
