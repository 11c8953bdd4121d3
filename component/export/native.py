"""Folders that transformers' own two-tower classes load without code of ours."""

import os

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel, ProcessorMixin

from component.configuration import BertCLIPConfig
from component.export.samples import Samples
from component.export.sentence_transformers import write_sentence_transformers
from component.pretrained import loading
from component.processor import save_processor


def tower_settings(config: BertCLIPConfig) -> tuple[dict, dict]:
    """The settings of text and vision tower, without what only BertCLIP or the folder they came from knows."""
    towers = config.text_config.to_dict(), config.vision_config.to_dict()
    for settings in towers:
        for key in ("model_type", "architectures", "text_pooling", "_name_or_path"):
            settings.pop(key, None)
    towers[1]["projection_dim"] = config.projection_dim
    return towers


def write_native(
    model_class: type[PreTrainedModel],
    config: PretrainedConfig,
    weights: dict[str, Tensor],
    processor: ProcessorMixin,
    folder: str,
) -> None:
    """Write config.json, the weights by the names given, the processor, and what sentence-transformers reads."""
    config.architectures = [model_class.__name__]
    config.dtype = weights["text_projection.weight"].dtype
    config.save_pretrained(folder)
    weights = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
    save_file(weights, os.path.join(folder, "model.safetensors"), metadata={"format": "pt"})
    save_processor(processor, folder)
    write_sentence_transformers(folder)


def check_native(
    model_class: type[PreTrainedModel], processor_class: type[ProcessorMixin], folder: str, samples: Samples
) -> None:
    """Load the folder, and raise ValueError where a weight is missing or an embedding is not that of the model."""
    with loading(folder):
        model, info = model_class.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
        processor = processor_class.from_pretrained(folder)
    if any(info.values()):
        raise ValueError(f"The export does not load whole: {info}. Please report it.")
    inputs = processor(text=samples.texts, images=samples.images, padding=True, return_tensors="pt")
    with torch.inference_mode():
        outputs = model.eval()(**inputs)
    samples.require_same(outputs.text_embeds, outputs.image_embeds)
