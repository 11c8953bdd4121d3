"""Load and save the image processor and the BERT tokenizer as one CLIPProcessor."""

import logging
import os

import transformers
from transformers import BertTokenizerFast, CLIPProcessor, PretrainedConfig
from transformers.models.auto.image_processing_auto import AutoImageProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from component.configuration import BertCLIPConfig
from component.hub.identity import IMAGE_PROCESSOR
from component.hub.pretrained import find_pretrained, loading
from component.hub.tokenizer import load_tokenizer, save_tokenizer

logger = logging.getLogger(__name__)

# Image processors that compute what CLIP's computes, with other defaults → the class that has the defaults.
_LIKE_CLIPS = {
    "SiglipImageProcessor": "SiglipImageProcessorPil",
    "BitImageProcessor": "BitImageProcessorPil",  # of DINOv2
    "ViTImageProcessor": "ViTImageProcessorPil",
    # Its own class needs torchvision, and does not round to 8 bits after scaling. Its files name all settings.
    "DINOv3ViTImageProcessor": "ViTImageProcessorPil",
}
# DINO's towers scale their positions to the size of the images. All others take images of their image_size.
_TAKE_ANY_SIZE = ("dinov2", "dinov2_with_registers", "dinov3_vit")


class CLIPFeatureExtractor(CLIPImageProcessorPil):
    """The name of CLIP's image processor in files of transformers 4.25 to 4.30, which 5.x no longer has."""

    @classmethod
    def from_pretrained(cls, *args, **kwargs) -> CLIPImageProcessorPil:
        return CLIPImageProcessorPil.from_pretrained(*args, **kwargs)


# CLIPProcessor and AutoProcessor find the class by its name among all registered ones, whatever the model is.
AutoImageProcessor.register(
    BertCLIPConfig,
    image_processor_classes={"pil": CLIPFeatureExtractor, "torchvision": CLIPFeatureExtractor},
    exist_ok=True,
)


class TextProcessor:
    """The processor of a text tower alone: its tokenizer."""

    image_processor = None

    def __init__(self, tokenizer: BertTokenizerFast):
        self.tokenizer = tokenizer

    def __call__(self, text, **options):
        return self.tokenizer(text, truncation=True, **options)

    def save_pretrained(self, path: str, **_) -> None:
        save_tokenizer(self.tokenizer, path)


def load_processor_of(
    config: BertCLIPConfig, path: str | None, tokenizer_path: str | None = None
) -> CLIPProcessor | TextProcessor:
    """Load the processor of a model, that of its text tower if it has no image half. Warns of a larger tokenizer.

    Args:
        config: of the model.
        path, tokenizer_path: see `load_processor`.

    Raises:
        ValueError: as `load_processor`, or the image processor does not fit the image tower.
    """
    positions = config.text_config.max_position_embeddings
    if config.has_image_half:
        processor = load_processor(path, tokenizer_path, positions)
        _require_fitting(processor.image_processor, config.vision_config, path)
    else:
        processor = TextProcessor(_load_tokenizer(tokenizer_path or path, positions))
    tokens, embeddings = len(processor.tokenizer), config.text_config.vocab_size
    if tokens > embeddings:
        logger.warning(
            "%s has %d tokens, but the text tower has embeddings for %d: texts with one of the others are refused.",
            processor.tokenizer.name_or_path,
            tokens,
            embeddings,
        )
    return processor


def load_processor(path: str, tokenizer_path: str | None = None, max_length: int | None = None) -> CLIPProcessor:
    """Load the processor of a BertCLIP or Chinese-CLIP folder, or combine CLIP's with the tokenizer of a BERT.

    The Pillow image processor is used even if torchvision is installed, so that pixel_values do not depend on the
    machine.

    Args:
        path: folder or Hub name with the image processor, and with the tokenizer unless `tokenizer_path` is given.
        tokenizer_path: folder or Hub name of the BERT.
        max_length: positions of the text tower; the processor cuts longer texts there and keeps [SEP].

    Raises:
        ValueError: the image processor or the tokenizer is missing or cannot be read; see `load_tokenizer`.
    """
    source = find_pretrained(path)
    names = ("preprocessor_config.json", "processor_config.json")
    if os.path.isdir(source) and not any(os.path.isfile(os.path.join(source, name)) for name in names):
        raise ValueError(
            f"{path} has neither {' nor '.join(names)}. Put the one there that belongs to the image tower."
        )
    image_processor = _load_image_processor(path, source)
    if not image_processor.do_center_crop and image_processor.size.height:
        image_processor.crop_size = image_processor.size  # Chinese-CLIP's; random crops are scaled to crop_size
    return CLIPProcessor(image_processor, _load_tokenizer(tokenizer_path or path, max_length))


def _load_image_processor(path: str, source: str) -> CLIPImageProcessorPil:
    with loading(path):
        settings, _ = CLIPImageProcessorPil.get_image_processor_dict(source)
        kind = settings.get("image_processor_type") or settings.get("feature_extractor_type") or "CLIP"
        if "CLIP" in kind:
            return CLIPImageProcessorPil.from_dict(settings)
    kind = kind.removesuffix("Fast").removesuffix("Pil").replace("FeatureExtractor", "ImageProcessor")
    if kind not in _LIKE_CLIPS:
        raise ValueError(
            f"{path} makes pixel values with {kind}; expected CLIPImageProcessor or {', '.join(_LIKE_CLIPS)}."
        )
    with loading(path):
        own = getattr(transformers, _LIKE_CLIPS[kind]).from_dict(settings)
    settings = {key: getattr(own, key) for key in IMAGE_PROCESSOR}
    return CLIPImageProcessorPil(**settings | {"do_center_crop": bool(own.do_center_crop), "do_convert_rgb": True})


def image_size(image_processor: CLIPImageProcessorPil) -> tuple[int, int]:
    """(height, width) of the pixel values that it makes."""
    size = image_processor.crop_size if image_processor.do_center_crop else image_processor.size
    return size.height, size.width


def _load_tokenizer(path: str, max_length: int | None) -> BertTokenizerFast:
    tokenizer = load_tokenizer(path)
    if max_length is not None:
        tokenizer.model_max_length = min(tokenizer.model_max_length, max_length)
    # CLIPProcessor takes its defaults from here, also after saving. Without it, a long text is an index error in BERT.
    tokenizer.init_kwargs["truncation"] = True
    return tokenizer


def _require_fitting(image_processor: CLIPImageProcessorPil, vision_config: PretrainedConfig, path: str) -> None:
    height, width = image_size(image_processor)
    edge = height if vision_config.model_type in _TAKE_ANY_SIZE else vision_config.image_size
    if (height, width) != (edge, edge):
        raise ValueError(
            f"{path}: its preprocessor_config.json makes images of {height} × {width} pixels, but its image tower "
            f"takes {edge} × {edge}. Use the preprocessor_config.json that belongs to the weights."
        )


def save_processor(processor: CLIPProcessor, path: str) -> None:
    """Save the processor for every version of transformers.

    transformers 5 writes only processor_config.json; older ones read preprocessor_config.json.
    """
    processor.save_pretrained(path)
    if processor.image_processor is not None:
        processor.image_processor.save_pretrained(path)
    save_tokenizer(processor.tokenizer, path)
