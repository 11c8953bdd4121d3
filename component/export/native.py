"""Folders that transformers' own two-tower classes load, without our code."""

import logging
import os
from collections.abc import Callable

import torch
from safetensors.torch import save_file
from transformers import CLIPProcessor, PretrainedConfig, PreTrainedModel, ProcessorMixin

from component.configuration import BertCLIPConfig
from component.export.samples import Samples, embed_samples
from component.hub.identity import published_weights
from component.hub.pretrained import loading
from component.hub.sentence_transformers import write_sentence_transformers
from component.model import BertCLIPModel
from component.processor import save_processor

logger = logging.getLogger(__name__)


def tower_settings(config: BertCLIPConfig) -> tuple[dict, dict]:
    """The settings of text and vision tower, without keys of BertCLIP and of the folder that they come from."""
    towers = config.text_config.to_dict(), config.vision_config.to_dict()
    for settings in towers:
        for key in ("model_type", "architectures", "text_pooling", "_name_or_path"):
            settings.pop(key, None)
    return towers


def write_native(
    model: BertCLIPModel,
    processor: CLIPProcessor,
    native_class: type[PreTrainedModel],
    config: PretrainedConfig,
    native_processor: ProcessorMixin,
    folder: str,
    rename: Callable[[str], str] = str,
) -> None:
    """Write config.json, the weights bit for bit, the processor and the files for sentence-transformers; then verify.

    None of these classes has the bias of the sigmoid loss: it is left out with a warning.

    Args:
        model, processor: what to export. The model is converted to fp32.
        native_class, config, native_processor: what to write it as.
        rename: name of one of our weights → its name in the file.

    Raises:
        ValueError: the folder does not load completely, or its embeddings of the samples differ.
    """
    weights = published_weights(model)
    if (bias := weights.pop("logit_bias", None)) is not None:
        logger.warning(
            "%s has no logit_bias (here %.4f): embeddings and rankings are the same, but add it to the logits before "
            "a sigmoid.",
            native_class.__name__,
            bias.item(),
        )
    config.architectures = [native_class.__name__]
    config.dtype = model.dtype
    config.save_pretrained(folder)
    save_file(
        {rename(name): value.cpu().contiguous() for name, value in weights.items()},
        os.path.join(folder, "model.safetensors"),
        metadata={"format": "pt"},
    )
    save_processor(native_processor, folder)
    write_sentence_transformers(folder, output_name="pooler_output")
    _check(native_class, type(native_processor), folder, embed_samples(model.cpu().float(), processor))


def _check(
    native_class: type[PreTrainedModel], processor_class: type[ProcessorMixin], folder: str, samples: Samples
) -> None:
    with loading(folder):
        model, info = native_class.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
        processor = processor_class.from_pretrained(folder)
    if any(info.values()):
        raise ValueError(f"The export does not load completely: {info}. Please report this.")
    inputs = processor(text=samples.texts, images=samples.images, padding=True, return_tensors="pt")
    with torch.inference_mode():
        outputs = model.eval()(**inputs)
    samples.require_same(outputs)
