"""A native ChineseCLIPModel folder: transformers loads it without code of ours."""

from transformers import ChineseCLIPConfig, ChineseCLIPModel, ChineseCLIPProcessor
from transformers.models.chinese_clip.image_processing_pil_chinese_clip import ChineseCLIPImageProcessorPil

from component.checkpoint import load_checkpoint
from component.export.native import tower_settings, write_native


def write(model_path: str, folder: str) -> None:
    """Write the weights, bit for bit, with Chinese-CLIP's config, processor and tokenizer.

    Raises:
        ValueError: the model has a pooler, for which Chinese-CLIP has no place.
    """
    model, processor = load_checkpoint(model_path)
    if model.config.text_pooling != "cls":
        raise ValueError(
            f"{model_path} embeds texts through BERT's pooler, which ChineseCLIPModel has not: there they would be "
            "embedded otherwise. Train with text_pooling 'cls', or take --format vision-text-dual-encoder."
        )
    text_config, vision_config = tower_settings(model.config)
    config = ChineseCLIPConfig(
        text_config=text_config,
        vision_config=vision_config,
        projection_dim=model.config.projection_dim,
        logit_scale_init_value=model.config.logit_scale_init_value,
    )
    settings = processor.image_processor.to_dict()
    settings.pop("image_processor_type")
    native = ChineseCLIPProcessor(ChineseCLIPImageProcessorPil(**settings), processor.tokenizer)
    write_native(model, processor, ChineseCLIPModel, config, native, folder)
