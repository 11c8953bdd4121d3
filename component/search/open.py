"""A gallery and the model that made it, together."""

import os
from collections.abc import Iterator
from contextlib import closing, contextmanager

import torch
from transformers import CLIPProcessor

from component.checkpoint import load_checkpoint
from component.embedding import embed_texts
from component.ground.fingerprint import fingerprint
from component.ground.lock import sole_writer
from component.model import BertCLIPModel
from component.prompts import RANDOM_TEXTS
from component.search.gallery import Gallery
from component.search.query import Searcher

_PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@contextmanager
def gallery_to_write(
    folder: str, model_path: str, device: str | None = None, precision: str = "fp32", is_writer: bool = True
) -> Iterator[tuple[Gallery | None, BertCLIPModel, CLIPProcessor]]:
    """The gallery in a folder, made where there is none, and the model for it.

    Args:
        device: None: a GPU where there is one.
        precision: of the model: fp32, bf16 or fp16.
        is_writer: of several processes one alone is; the gallery of the others is None.

    Raises:
        ValueError: another process writes it, another model made it, or it is damaged; or there is no such model or
            device.
    """
    model, processor, key = _load(model_path, device)
    if not is_writer:
        yield None, model.to(_PRECISIONS[precision]), processor
        return
    with sole_writer(folder, inside=True):
        if Gallery.is_made(folder):
            gallery = Gallery(folder)
            _require_same_model(gallery, key, model_path)
        else:
            gallery = Gallery.create(
                folder,
                model.config.projection_dim,
                fingerprint=key,
                model=os.path.abspath(model_path) if os.path.exists(model_path) else model_path,
                random_texts=embed_texts(model, processor, RANDOM_TEXTS).embeds.tolist(),
            )
        with closing(gallery):
            gallery.cut_uncommitted()
            yield gallery, model.to(_PRECISIONS[precision]), processor


def open_searcher(
    folder: str, model_path: str | None = None, device: str | None = None, approximate: bool = False
) -> Searcher:
    """A gallery, ready to answer.

    Args:
        model_path: where its model lies now; None: where it lay when the gallery was made.
        approximate: take the candidates from a faiss index, which is built where there is none.

    Raises:
        ValueError: there is no gallery, or the model is not the one that made it.
        ImportError: `approximate` without faiss.
    """
    gallery = Gallery(folder)
    model_path = model_path or gallery.about["model"]
    model, processor, key = _load(model_path, device)
    _require_same_model(gallery, key, model_path)
    index = None
    if approximate:
        from component.search.approximate import open_index

        index = open_index(gallery)
    return Searcher(gallery, model, processor, index)


def _load(path: str, device: str | None) -> tuple[BertCLIPModel, CLIPProcessor, str]:
    """Model, processor, and what tells this model from another."""
    model, processor = load_checkpoint(path)
    key = fingerprint(model, processor.image_processor.to_dict())
    try:
        return model.to(device or model.device), processor, key
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"There is no device {device!r}: {str(error).splitlines()[0]}") from None


def _require_same_model(gallery: Gallery, key: str, model_path: str) -> None:
    """Another model's vectors cannot be compared with this one's."""
    if gallery.about["fingerprint"] != key:
        raise ValueError(
            f"{gallery.folder} was made with another model ({gallery.about['model']}) than {model_path}: their "
            "vectors cannot be compared. Give that model, or another --gallery."
        )
