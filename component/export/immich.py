"""A folder for Immich's search, to be put into its cache of CLIP models.

What Immich reads: textual.py and visual.py in machine-learning/immich_ml/models/clip of immich-app/immich; an M-CLIP
model takes input_ids and attention_mask as int32.
"""

import logging
import os

import torch
from PIL import Image

from component.checkpoint import load_checkpoint
from component.export.graph import (
    GraphModel,
    ImageGraph,
    TextGraph,
    export_graph,
    pixel_inputs,
    require_onnx,
    token_inputs,
)
from component.export.samples import embed_samples
from component.ground.files import write_json
from component.processor import image_size, save_tokenizer

logger = logging.getLogger(__name__)

# Immich derives the embedding width from the name of the folder, and accepts only names of its list.
NAMES = {512: "XLM-Roberta-Large-Vit-B-32", 640: "XLM-Roberta-Large-Vit-B-16Plus", 768: "XLM-Roberta-Large-Vit-L-14"}
_CONTEXT_LENGTH = 77  # every query is padded to it


def write(model_path: str, folder: str) -> None:
    """Write textual/ and visual/, each a graph with its preprocessing, and config.json.

    Warnings say which name the folder needs in Immich, and how Immich's preprocessing differs from ours.
    """
    require_onnx()
    model, processor = load_checkpoint(model_path)
    textual, visual = os.path.join(folder, "textual"), os.path.join(folder, "visual")
    os.mkdir(textual)
    os.mkdir(visual)
    samples = embed_samples(model.cpu().float(), processor)
    graphs = [os.path.join(tower, "model.onnx") for tower in (textual, visual)]
    export_graph(TextGraph(model), token_inputs(torch.int32), ["text_embeds"], graphs[0])
    export_graph(ImageGraph(model), pixel_inputs(processor, "image"), ["image_embeds"], graphs[1])
    save_tokenizer(processor.tokenizer, textual)
    images = processor.image_processor
    edge, _ = image_size(images)
    write_json(
        os.path.join(visual, "preprocess_cfg.json"),
        {
            "size": [edge, edge],
            "mode": "RGB",
            "mean": list(images.image_mean),
            "std": list(images.image_std),
            "interpolation": Image.Resampling(images.resample).name.lower(),
            "resize_mode": "shortest" if images.do_center_crop else "squash",
        },
    )
    text_config, width = model.config.text_config, model.config.projection_dim
    write_json(
        os.path.join(folder, "config.json"),
        {
            "embed_dim": width,
            "vision_cfg": {"image_size": edge},
            "text_cfg": {
                "context_length": min(_CONTEXT_LENGTH, text_config.max_position_embeddings),
                "vocab_size": text_config.vocab_size,
            },
        },
    )

    samples.require_same(embed_samples(GraphModel(model.config, *graphs), processor))
    if width in NAMES:
        logger.warning(
            "Name this folder %s in Immich's cache: it accepts only names that it knows. Keep a copy: Immich deletes "
            "a folder that it cannot load.",
            NAMES[width],
        )
    else:
        logger.warning(
            "Immich knows no M-CLIP model with embeddings of width %d, only %s: it may reject this folder. Keep a "
            "copy: Immich deletes a folder that it cannot load.",
            width,
            ", ".join(map(str, NAMES)),
        )
    if not images.do_center_crop:
        logger.warning("Versions of Immich without resize_mode crop images, but this model expects them squeezed.")
    elif images.size.shortest_edge != edge:
        logger.warning(
            "Immich scales the shorter edge of an image to %d, but this model's processor scales it to %s.",
            edge,
            images.size.shortest_edge,
        )
