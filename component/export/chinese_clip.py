"""A native ChineseCLIPModel folder, which transformers loads without our code."""

from transformers import ChineseCLIPConfig, ChineseCLIPModel, ChineseCLIPProcessor, CLIPVisionConfig
from transformers.models.chinese_clip.image_processing_pil_chinese_clip import ChineseCLIPImageProcessorPil

from component.checkpoint import load_checkpoint
from component.export.native import tower_settings, write_native


def write(model_path: str, folder: str) -> None:
    """Write the weights, bit for bit, with Chinese-CLIP's config, processor and tokenizer.

    Raises:
        ValueError: the model has a pooler, which Chinese-CLIP lacks, or another image tower than CLIP's.
    """
    model, processor = load_checkpoint(model_path)
    if model.config.text_pooling != "cls":
        raise ValueError(
            f"{model_path} embeds texts through BERT's pooler, which ChineseCLIPModel lacks, so its embeddings would "
            "differ. Train with text_pooling 'cls', or use --format vision-text-dual-encoder."
        )
    if (kind := model.config.vision_config.model_type) != CLIPVisionConfig.model_type:
        raise ValueError(
            f"{model_path} has the image tower {kind}, but ChineseCLIPModel has CLIP's. Use --format onnx."
        )
    text_config, vision_config = tower_settings(model.config)
    config = ChineseCLIPConfig(
        text_config=text_config,
        vision_config=vision_config,
        projection_dim=model.config.projection_dim,
        logit_scale_init_value=model.config.logit_scale_init_value,
    )
    image_processor = processor.image_processor
    if image_processor.size.height:  # images are squeezed to squares, as Chinese-CLIP does
        settings = image_processor.to_dict()
        settings.pop("image_processor_type")
        image_processor = ChineseCLIPImageProcessorPil(**settings)
    # Else CLIP's own: Chinese-CLIP's of transformers 4 cannot scale the shorter edge.
    write_native(
        model, processor, ChineseCLIPModel, config, ChineseCLIPProcessor(image_processor, processor.tokenizer), folder
    )
