"""A gallery and the model that made it, together."""

import os
from collections.abc import Iterator
from contextlib import closing, contextmanager

import torch
from transformers import CLIPProcessor

from component.checkpoint import load_identified
from component.embedding import embed_texts
from component.ground.lock import sole_writer
from component.hub.identity import ModelIdentity, weights_digest
from component.model import BertCLIPModel
from component.prompts import RANDOM_TEXTS
from component.search.approximate import open_index
from component.search.gallery import Gallery, is_gallery
from component.search.searcher import Searcher
from component.search.writer import GalleryWriter

_PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@contextmanager
def gallery_to_write(
    folder: str, model_path: str, device: str | None = None, precision: str = "fp32", is_writer: bool = True
) -> Iterator[tuple[GalleryWriter | None, BertCLIPModel, CLIPProcessor]]:
    """The gallery in a folder, made if there is none, and the model for it.

    Args:
        device: None: a GPU if there is one.
        precision: of the model: fp32, bf16 or fp16.
        is_writer: True in one of several processes; in the others the gallery is None.

    Raises:
        ValueError: another process writes the gallery, another model made it, or it is damaged; or there is no such
            model or device.
    """
    model, processor, identity = _load(model_path, device)
    if not is_writer:
        yield None, model.to(_PRECISIONS[precision]), processor
        return
    with sole_writer(folder, inside=True):
        if is_gallery(folder):
            gallery = GalleryWriter(folder)
            _require_same_model(gallery, model, processor, identity, model_path)
            if isinstance(gallery.about["fingerprint"], str):
                gallery.note(fingerprint=identity.to_dict())
        else:
            gallery = GalleryWriter.create(
                folder,
                model.config.projection_dim,
                fingerprint=identity.to_dict(),
                model=os.path.abspath(model_path) if os.path.exists(model_path) else model_path,
                random_texts=embed_texts(model, processor, RANDOM_TEXTS).embeds.tolist(),
            )
        with closing(gallery):
            yield gallery, model.to(_PRECISIONS[precision]), processor


def open_searcher(
    folder: str, model_path: str | None = None, device: str | None = None, approximate: bool = False
) -> Searcher:
    """Open a gallery and its model for searching.

    Args:
        model_path: current path of its model; None: the path recorded in the gallery.
        approximate: take the candidates from a faiss index, which is built if there is none.

    Raises:
        ValueError: there is no gallery, or the model is not the one that made it.
        ImportError: `approximate` without faiss.
    """
    gallery = Gallery(folder)
    model_path = model_path or gallery.about["model"]
    model, processor, identity = _load(model_path, device)
    _require_same_model(gallery, model, processor, identity, model_path)
    return Searcher(gallery, model, processor, open_index(gallery) if approximate else None)


def _load(path: str, device: str | None) -> tuple[BertCLIPModel, CLIPProcessor, ModelIdentity]:
    """Model, processor, and the identity of the model."""
    model, processor, identity = load_identified(path)
    try:
        return model.to(device or model.device), processor, identity
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"There is no device {device!r}: {str(error).splitlines()[0]}") from None


def _require_same_model(
    gallery: Gallery, model: BertCLIPModel, processor: CLIPProcessor, identity: ModelIdentity, model_path: str
) -> None:
    """Raise ValueError, with what differs, if the vectors of the gallery cannot be compared with this model's."""
    before = gallery.about["fingerprint"]
    if isinstance(before, str):  # written by an earlier version, which compared only weights and image processor
        same = before == weights_digest(model, processor.image_processor.to_dict())
        differences = [] if same else ["the weights or the image processor"]
    else:
        differences = ModelIdentity.from_dict(before).differences(identity)
    if differences:
        raise ValueError(
            f"{gallery.folder} was made with another model than {model_path} is now ({'; '.join(differences)}): their "
            f"vectors cannot be compared. Give the model that made it (it was at {gallery.about['model']}), or index "
            "the images into another --gallery."
        )
