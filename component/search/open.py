"""A gallery and the model that made it, together."""

import logging
import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any, NamedTuple

import torch
from transformers import CLIPProcessor

from component.checkpoint import load_identified
from component.embedding import embed_texts
from component.gallery.reader import Gallery, cut, is_gallery
from component.ground.lock import sole_writer
from component.hub.identity import ModelIdentity, image_differences, weights_digest
from component.model import BertCLIPModel
from component.search.approximate import open_index
from component.search.presence import RANDOM_TEXTS
from component.search.searcher import Searcher
from component.search.towers import ModelTowers
from component.search.writer import GalleryWriter
from component.shorten import require_dims

logger = logging.getLogger(__name__)

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Loaded(NamedTuple):
    """A model of a gallery, and where it is from."""

    path: str
    model: BertCLIPModel
    processor: CLIPProcessor
    identity: ModelIdentity

    def about(self, width: int) -> dict[str, Any]:
        """What a gallery of vectors of this width keeps of the model."""
        random_texts = embed_texts(self.model, self.processor, RANDOM_TEXTS).embeds.numpy()
        return {
            "fingerprint": self.identity.to_dict(),
            "model": os.path.abspath(self.path) if os.path.exists(self.path) else self.path,
            "random_texts": cut(random_texts, width).tolist(),
        }


@contextmanager
def gallery_to_write(
    folder: str,
    model_path: str,
    device: str | None = None,
    precision: str = "fp32",
    is_writer: bool = True,
    dim: int | None = None,
) -> Iterator[tuple[GalleryWriter | None, BertCLIPModel, CLIPProcessor]]:
    """The gallery in a folder, made if there is none, and the model for it.

    A model with the gallery's image half and another text half becomes the gallery's model.

    Args:
        device: None: a GPU if there is one.
        precision: of the model: fp32, bf16 or fp16.
        is_writer: True in one of several processes; in the others the gallery is None.
        dim: of the model's vectors a new gallery keeps these first dimensions; None: all.

    Raises:
        ValueError: another process writes the gallery, a model with another image half made it, it keeps another
            number of dimensions, or it is damaged; or there is no such model or device, or the dimensions of the
            model are in no order.
    """
    loaded = load_on(model_path, device)
    dtype = PRECISIONS[precision]
    if not is_writer:
        yield None, loaded.model.to(dtype), loaded.processor
        return
    with sole_writer(folder, inside=True):
        open_or_create = _open_for if is_gallery(folder) else _create_for
        with closing(open_or_create(folder, loaded, dim)) as gallery:
            yield gallery, loaded.model.to(dtype), loaded.processor


def _open_for(folder: str, loaded: Loaded, dim: int | None) -> GalleryWriter:
    gallery = GalleryWriter(folder)
    if dim not in (None, gallery.width):
        raise ValueError(
            f"{folder} holds vectors of {gallery.width} dimensions, not {dim}: index into another --gallery."
        )
    if differences := _require_same_images(gallery, loaded):
        logger.warning(
            "%s has the image half of %s, which made %s, and another text half (%s): the vectors stay, and "
            "the gallery belongs to this model from now on.",
            *(loaded.path, gallery.about["model"], folder, "; ".join(differences)),
        )
        gallery.take_texts_of(**loaded.about(gallery.width))
    elif isinstance(gallery.about["fingerprint"], str):
        gallery.note(fingerprint=loaded.identity.to_dict())
    return gallery


def _create_for(folder: str, loaded: Loaded, dim: int | None) -> GalleryWriter:
    config = loaded.model.config
    width = config.projection_dim if dim is None else dim
    require_dims(loaded.path, config.projection_dim, width)
    if width < config.projection_dim and not getattr(config, "ordered_dims", False):
        raise ValueError(
            f"the dimensions of {loaded.path} are in no order, so that its first {dim} tell little. Order them with "
            f"export_model.py --format checkpoint --dim {config.projection_dim}, and index with that checkpoint."
        )
    return GalleryWriter.create(folder, width, **loaded.about(width))


def open_searcher(
    folder: str, model_path: str | None = None, device: str | None = None, approximate: bool = False
) -> Searcher:
    """Open a gallery and its model for searching.

    Args:
        model_path: a model with the image half of the one that made the gallery, such as one trained from it with
            freeze_visual_projection, or its current path; None: the path recorded in the gallery.
        approximate: take the candidates from a faiss index, which is built if there is none.

    Raises:
        ValueError: there is no gallery, or the model has another image half than the one that made it.
        ImportError: `approximate` without faiss.
    """
    gallery = Gallery(folder)
    model_path = model_path or gallery.about["model"]
    loaded = load_on(model_path, device)
    differences = _require_same_images(gallery, loaded)
    if differences:
        logger.warning(
            "%s has the image half of %s, which made %s, and another text half (%s). Whether nothing fits a text is "
            "not judged until search_image.py index has run with this model.",
            *(model_path, gallery.about["model"], folder, "; ".join(differences)),
        )
    index = open_index(gallery) if approximate else None
    return Searcher(gallery, ModelTowers(loaded.model, loaded.processor), index, judges_absence=not differences)


def load_on(path: str, device: str | None) -> Loaded:
    """Load a model on a device; None: a GPU if there is one. Raises ValueError if there is no such model or device."""
    model, processor, identity = load_identified(path)
    try:
        return Loaded(path, model.to(device or model.device), processor, identity)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"There is no device {device!r}: {str(error).splitlines()[0]}") from None


def _require_same_images(gallery: Gallery, loaded: Loaded) -> list[str]:
    """How the text half differs from that of the model that made the gallery; empty for the same model.

    Raises:
        ValueError: the image half differs, so that the vectors of the gallery cannot be compared with this model's.
    """
    before = gallery.about["fingerprint"]
    if isinstance(before, str):  # written by an earlier version, which knew nothing of halves
        same = before == weights_digest(loaded.model, loaded.processor.image_processor.to_dict())
        differences, in_texts = [] if same else ["the weights or the image processor"], []
    else:
        before = ModelIdentity.from_dict(before)
        differences = image_differences(before, loaded.identity, loaded.model)
        in_texts = before.differences(loaded.identity, ["text"])
    if differences:
        raise ValueError(
            f"{gallery.folder} was made with another model than {loaded.path} is now ({'; '.join(differences)}): "
            f"their vectors cannot be compared. Give the model that made it (it was at {gallery.about['model']}), or "
            "index the images into another --gallery."
        )
    return in_texts
