"""Generated data for the benchmarks: towers with random weights, images and captions."""

from pathlib import Path

import numpy as np
import torch
from data_bench import example_image
from transformers import BertTokenizerFast, CLIPProcessor
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from component.configuration import BertCLIPConfig
from component.model import BertCLIPModel

# layers, width and heads of both towers; pairs per step
PRESETS = {"tiny": (2, 64, 2, 64), "small": (4, 256, 4, 64), "base": (12, 768, 12, 32)}
CHARACTERS = [chr(code) for code in range(0x4E00, 0x4E00 + 20_000)]


def make_model(preset: str) -> BertCLIPModel:
    """A model whose image tower is locked."""
    layers, width, heads, _ = PRESETS[preset]
    tower = dict(num_hidden_layers=layers, hidden_size=width, num_attention_heads=heads, intermediate_size=4 * width)
    text = dict(vocab_size=len(CHARACTERS) + 5, **tower)
    torch.manual_seed(0)
    model = BertCLIPModel(BertCLIPConfig(text, dict(image_size=224, patch_size=32, **tower)))
    model.lock_vision()
    return model


def make_processor(folder: Path) -> CLIPProcessor:
    """A processor with one token per character; its vocabulary is written to `folder`."""
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *CHARACTERS]
    (folder / "vocab.txt").write_text("\n".join(vocabulary), encoding="utf-8")
    return CLIPProcessor(CLIPImageProcessorPil(), BertTokenizerFast(str(folder / "vocab.txt")))


def make_data(folder: Path, num_pairs: int, num_images: int | None = None, lognormal: bool = False) -> list[str]:
    """Write JPEGs of 400 x 300, by default one per pair, and train.csv. Returns the captions.

    Args:
        lognormal: captions of 20 characters on average, up to 98; else uniformly of 5 to 40.
    """
    num_images = num_images or num_pairs
    random = np.random.default_rng(0)
    images = [example_image(seed, (400, 300)) for seed in range(32)]
    for index in range(num_images):
        (folder / f"{index}.jpg").write_bytes(images[index % len(images)])
    characters = np.array(CHARACTERS[:3000])
    lengths = random.integers(5, 41, num_pairs)
    if lognormal:
        lengths = random.lognormal(np.log(20) - 0.18, 0.6, num_pairs).round().clip(1, 98).astype(int)
    captions = ["".join(random.choice(characters, length)) for length in lengths]
    rows = (f"{caption},{index % num_images}.jpg\n" for index, caption in enumerate(captions))
    (folder / "train.csv").write_text("text,filename\n" + "".join(rows), encoding="utf-8")
    return captions
