"""A VisionTextDualEncoderModel folder, which transformers and sentence-transformers load without our code."""

from transformers import (
    BertConfig,
    VisionTextDualEncoderConfig,
    VisionTextDualEncoderModel,
    VisionTextDualEncoderProcessor,
)

from component.checkpoint import load_checkpoint
from component.export.native import tower_settings, write_native


def write(model_path: str, folder: str) -> None:
    """Write the weights, bit for bit, with config, processor, tokenizer and the files for sentence-transformers.

    Raises:
        ValueError: the model has no pooler, but VisionTextDualEncoderModel embeds texts through one.
    """
    model, processor = load_checkpoint(model_path)
    if model.config.text_pooling != "pooler":
        raise ValueError(
            f"{model_path} has no pooler, through which VisionTextDualEncoderModel embeds texts. Use --format "
            "chinese-clip, which needs none."
        )
    text_config, vision_config = tower_settings(model.config)
    config = VisionTextDualEncoderConfig.from_vision_text_configs(
        type(model.config.vision_config)(**vision_config),
        BertConfig(**text_config),
        projection_dim=model.config.projection_dim,
        logit_scale_init_value=model.config.logit_scale_init_value,
    )
    native = VisionTextDualEncoderProcessor(processor.image_processor, processor.tokenizer)
    # transformers 4 knows the towers of CLIP and SigLIP only by the longer names; 5 accepts them as well.
    is_wrapped = model.config.vision_config.model_type.endswith("_vision_model")
    write_native(model, processor, VisionTextDualEncoderModel, config, native, folder, _longer if is_wrapped else str)


def _longer(name: str) -> str:
    return f"vision_model.{name}" if name.startswith("vision_model.") else name
