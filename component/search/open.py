"""A gallery and the model that made it, together."""

import logging
import os
from collections.abc import Iterator
from contextlib import closing, contextmanager

import torch
from transformers import CLIPProcessor

from component.checkpoint import load_identified
from component.embedding import embed_texts
from component.gallery.reader import Gallery, cut, is_gallery
from component.ground.lock import sole_writer
from component.hub.identity import ModelIdentity, image_differences, weights_digest
from component.model import BertCLIPModel
from component.prompts import RANDOM_TEXTS
from component.search.approximate import open_index
from component.search.searcher import Searcher
from component.search.towers import ModelTowers
from component.search.writer import GalleryWriter

logger = logging.getLogger(__name__)

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


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
    model, processor, identity = load_on(model_path, device)
    if not is_writer:
        yield None, model.to(PRECISIONS[precision]), processor
        return
    with sole_writer(folder, inside=True):
        if is_gallery(folder):
            gallery = GalleryWriter(folder)
            if dim not in (None, gallery.width):
                raise ValueError(
                    f"{folder} holds vectors of {gallery.width} dimensions, not {dim}: index into another --gallery."
                )
            if differences := _require_same_images(gallery, model, processor, identity, model_path):
                logger.warning(
                    "%s has the image half of %s, which made %s, and another text half (%s): the vectors stay, and "
                    "the gallery belongs to this model from now on.",
                    *(model_path, gallery.about["model"], folder, "; ".join(differences)),
                )
                gallery.take_texts_of(
                    fingerprint=identity.to_dict(),
                    model=_absolute(model_path),
                    random_texts=_random_texts(model, processor, gallery.width),
                )
            elif isinstance(gallery.about["fingerprint"], str):
                gallery.note(fingerprint=identity.to_dict())
        else:
            width = _width(model, model_path, dim)
            gallery = GalleryWriter.create(
                folder,
                width,
                fingerprint=identity.to_dict(),
                model=_absolute(model_path),
                random_texts=_random_texts(model, processor, width),
            )
        with closing(gallery):
            yield gallery, model.to(PRECISIONS[precision]), processor


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
    model, processor, identity = load_on(model_path, device)
    differences = _require_same_images(gallery, model, processor, identity, model_path)
    if differences:
        logger.warning(
            "%s has the image half of %s, which made %s, and another text half (%s). Whether nothing fits a text is "
            "not judged until search_image.py index has run with this model.",
            *(model_path, gallery.about["model"], folder, "; ".join(differences)),
        )
    index = open_index(gallery) if approximate else None
    return Searcher(gallery, ModelTowers(model, processor), index, judges_absence=not differences)


def load_on(path: str, device: str | None) -> tuple[BertCLIPModel, CLIPProcessor, ModelIdentity]:
    """Model, processor, and the identity of the model. Raises ValueError if there is no such model or device."""
    model, processor, identity = load_identified(path)
    try:
        return model.to(device or model.device), processor, identity
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"There is no device {device!r}: {str(error).splitlines()[0]}") from None


def _absolute(model_path: str) -> str:
    return os.path.abspath(model_path) if os.path.exists(model_path) else model_path


def _width(model: BertCLIPModel, model_path: str, dim: int | None) -> int:
    """Width of a new gallery."""
    width = model.config.projection_dim
    if dim is None or dim == width:
        return width
    if dim > width:
        raise ValueError(f"{model_path} has vectors of {width} dimensions: give --dim 1 to {width}, not {dim}.")
    if not getattr(model.config, "ordered_dims", False):
        raise ValueError(
            f"the dimensions of {model_path} are in no order, so that its first {dim} tell little. Order them with "
            f"export_model.py --format checkpoint --dim {width}, and index with that checkpoint."
        )
    return dim


def _random_texts(model: BertCLIPModel, processor: CLIPProcessor, width: int) -> list[list[float]]:
    return cut(embed_texts(model, processor, RANDOM_TEXTS).embeds.numpy(), width).tolist()


def _require_same_images(
    gallery: Gallery, model: BertCLIPModel, processor: CLIPProcessor, identity: ModelIdentity, model_path: str
) -> list[str]:
    """How the text half differs from that of the model that made the gallery; empty for the same model.

    Raises:
        ValueError: the image half differs, so that the vectors of the gallery cannot be compared with this model's.
    """
    before = gallery.about["fingerprint"]
    if isinstance(before, str):  # written by an earlier version, which knew nothing of halves
        same = before == weights_digest(model, processor.image_processor.to_dict())
        differences, in_texts = [] if same else ["the weights or the image processor"], []
    else:
        before = ModelIdentity.from_dict(before)
        differences, in_texts = image_differences(before, identity, model), before.differences(identity, ["text"])
    if differences:
        raise ValueError(
            f"{gallery.folder} was made with another model than {model_path} is now ({'; '.join(differences)}): their "
            f"vectors cannot be compared. Give the model that made it (it was at {gallery.about['model']}), or index "
            "the images into another --gallery."
        )
    return in_texts
