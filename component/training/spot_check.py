"""Whether a CLIP made the vectors that a text tower is to be trained for: a few images are embedded and compared."""

import logging

import numpy as np
import torch
import torch.nn.functional as F
from transformers import CLIPProcessor

from component.argument import CLIPTrainingArguments
from component.dataset import Pairs
from component.image.transform import ImageTransform
from component.model import BertCLIPModel
from component.pairs.image_source import DecodedImages

logger = logging.getLogger(__name__)

_IMAGES = 16
# The median cosine of an image's vector and what the CLIP computes now. Other decoders and resizers leave it above
# 0.98, other precisions above 0.999; the vectors of another model, or of shifted rows, are far below.
_LEAST_COSINE = 0.95


def spot_check(args: CLIPTrainingArguments, model: BertCLIPModel, processor: CLIPProcessor, dataset: Pairs) -> None:
    """Raise ValueError if `image_vectors` are not the model's own, as far as images are there to tell."""
    if not args.image_vectors or not model.config.has_image_half:
        return
    given = dataset.images.load(dataset.some_rows(_IMAGES))
    transform = ImageTransform(processor.image_processor)
    try:
        images = DecodedImages(dataset.table, transform).load(given.rows)
    except OSError:
        images = None  # the folder is away
    if images is None or not len(images.rows):
        logger.info("image_vectors were not compared with clip_pretrain_path: no image could be read.")
        return
    with torch.no_grad():
        found = model.get_image_features(transform.pixel_values(images.columns["pixels"], model.device)).cpu()
    expected = given.columns["image_embeds"][torch.from_numpy(np.isin(given.rows, images.rows))]
    cosine = F.cosine_similarity(found, expected).median().item()
    if not cosine >= _LEAST_COSINE:
        raise ValueError(
            f"`image_vectors`: {args.image_vectors} does not hold the vectors that {args.clip_pretrain_path} makes of "
            f"the images in {dataset.table.file} (median cosine {cosine:.3f} of {len(found)} images). Set "
            "clip_pretrain_path to the CLIP that made them, or leave it out; and check the file names of the vectors."
        )
    logger.info("image_vectors are those of clip_pretrain_path: median cosine %.4f of %d images", cosine, len(found))
