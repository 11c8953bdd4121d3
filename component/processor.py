"""Image processor and BERT tokenizer as one CLIPProcessor."""

import logging
import os

from transformers import BertTokenizerFast, CLIPProcessor
from transformers.models.auto.image_processing_auto import AutoImageProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from component.configuration import BertCLIPConfig
from component.hub.pretrained import find_pretrained, loading

logger = logging.getLogger(__name__)


class CLIPFeatureExtractor(CLIPImageProcessorPil):
    """The name that transformers 4.25 to 4.30 wrote for CLIP's image processor, for which 5.x has no class left."""

    @classmethod
    def from_pretrained(cls, *args, **kwargs) -> CLIPImageProcessorPil:
        return CLIPImageProcessorPil.from_pretrained(*args, **kwargs)


# With it CLIPProcessor and AutoProcessor find the class; it is asked for by its name, whatever the folder's model is.
AutoImageProcessor.register(
    BertCLIPConfig,
    image_processor_classes={"pil": CLIPFeatureExtractor, "torchvision": CLIPFeatureExtractor},
    exist_ok=True,
)


def load_processor(path: str, tokenizer_path: str | None = None, max_length: int | None = None) -> CLIPProcessor:
    """Load the processor of a BertCLIP or Chinese-CLIP folder, or join CLIP's with a BERT's tokenizer.

    The Pillow image processor is taken even where torchvision is installed, so pixel_values do not depend on what
    else lies on the machine.

    Args:
        path: folder or hub name with the image processor, and with the tokenizer unless `tokenizer_path` is given.
        tokenizer_path: folder or hub name of the BERT.
        max_length: positions of the text tower; the processor cuts longer texts there, keeping [SEP].

    Raises:
        ValueError: there is no image processor, or no vocabulary, or they cannot be read.
    """
    place = find_pretrained(path)
    names = ("preprocessor_config.json", "processor_config.json")
    if os.path.isdir(place) and not any(os.path.isfile(os.path.join(place, name)) for name in names):
        raise ValueError(
            f"{path} has neither {' nor '.join(names)}. Put the one there that belongs to the image tower."
        )
    with loading(path):
        image_processor = CLIPImageProcessorPil.from_pretrained(place)
    if not image_processor.do_center_crop and image_processor.size.height:
        image_processor.crop_size = image_processor.size  # Chinese-CLIP's; random pieces are scaled to the crop's size
    tokenizer = load_tokenizer(tokenizer_path or path)
    if max_length is not None:
        tokenizer.model_max_length = min(tokenizer.model_max_length, max_length)
    # CLIPProcessor takes its defaults from here, also after saving: without it a long text is an index error in BERT.
    tokenizer.init_kwargs["truncation"] = True
    return CLIPProcessor(image_processor, tokenizer)


def load_tokenizer(path: str) -> BertTokenizerFast:
    """The tokenizer of a folder or hub name. Raises ValueError: there is none, or it has no vocabulary."""
    place = find_pretrained(path)
    with loading(path):
        tokenizer = BertTokenizerFast.from_pretrained(place)
    # Without its files transformers makes a tokenizer of the special tokens alone, and every character is [UNK].
    if set(tokenizer.get_vocab()) <= set(tokenizer.all_special_tokens):
        raise ValueError(
            f"{path} has neither tokenizer.json nor vocab.txt with a vocabulary in it. Put the one there that the "
            "BERT was trained with."
        )
    return tokenizer


def require_fitting(processor: CLIPProcessor, config: BertCLIPConfig, path: str) -> None:
    """Raise ValueError where the tower cannot take the pictures; warn where the tokenizer has too many tokens.

    Args:
        path: where the image processor is from.
    """
    image_processor, edge = processor.image_processor, config.vision_config.image_size
    size = image_processor.crop_size if image_processor.do_center_crop else image_processor.size
    if (size.height, size.width) != (edge, edge):
        raise ValueError(
            f"{path}: its preprocessor_config.json makes pictures of {size.height} × {size.width} pixels, but its "
            f"image tower takes {edge} × {edge}. Take the preprocessor_config.json that belongs to the weights."
        )
    tokens, embeddings = len(processor.tokenizer), config.text_config.vocab_size
    if tokens > embeddings:
        logger.warning(
            "%s has %d tokens, but the text tower has embeddings for %d: texts with one of the others are refused.",
            processor.tokenizer.name_or_path,
            tokens,
            embeddings,
        )


def save_processor(processor: CLIPProcessor, path: str) -> None:
    """Save the processor so that every transformers version finds its files.

    transformers 5 writes processor_config.json alone; older ones look for preprocessor_config.json.
    """
    processor.save_pretrained(path)
    processor.image_processor.save_pretrained(path)
    save_tokenizer(processor.tokenizer, path)


def save_tokenizer(tokenizer: BertTokenizerFast, path: str) -> None:
    """Save tokenizer.json without the truncation and padding of the last call, and vocab.txt for older versions."""
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.save_pretrained(path)
    vocabulary = tokenizer.get_vocab()
    with open(os.path.join(path, "vocab.txt"), "w", encoding="utf-8") as file:
        file.writelines(f"{token}\n" for token in sorted(vocabulary, key=vocabulary.get))
