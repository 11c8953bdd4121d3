"""Image processor and BERT tokenizer as one CLIPProcessor."""

import os

from transformers import BertTokenizerFast, CLIPProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil


def load_processor(path: str, tokenizer_path: str | None = None, max_length: int | None = None) -> CLIPProcessor:
    """Load the processor of a BertCLIP folder, or join CLIP's image processor with a BERT's tokenizer.

    The Pillow image processor is taken even where torchvision is installed, so pixel_values do not depend on what
    else lies on the machine.

    Args:
        path: folder or hub name with the image processor, and with the tokenizer unless `tokenizer_path` is given.
        tokenizer_path: folder or hub name of the BERT.
        max_length: positions of the text tower; the processor cuts longer texts there, keeping [SEP].
    """
    tokenizer = BertTokenizerFast.from_pretrained(tokenizer_path or path)
    if max_length is not None:
        tokenizer.model_max_length = min(tokenizer.model_max_length, max_length)
    # CLIPProcessor takes its defaults from here, also after saving: without it a long text is an index error in BERT.
    tokenizer.init_kwargs["truncation"] = True
    return CLIPProcessor(CLIPImageProcessorPil.from_pretrained(path), tokenizer)


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
