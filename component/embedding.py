"""Texts and images → L2-normalised embeddings in the shared space, batch by batch.

Shapes: n good items, D projection width, B items of one batch, T tokens.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import CLIPProcessor

from component.embedded import Embedded
from component.ground.cores import usable_cores
from component.ground.shared_memory import ToSharedMemory, worker_options
from component.image.batch import ImageBatch
from component.image.load import check_aspect, load_image
from component.image.reading import BadImageError
from component.image.rgb import to_rgb
from component.image.transform import ImageTransform
from component.model import BertCLIPModel
from component.pairs.known_forms import encode_known, warn_of_unknown
from component.pairs.ragged import RaggedArray
from component.pairs.text_groups import costs_on, group_by_cost, pad_texts

_TEXTS_PER_CALL = 4096  # token lists of Python take ten times the memory of the flat array they are copied to


@torch.inference_mode()
def embed_texts(
    model: BertCLIPModel,
    processor: CLIPProcessor,
    texts: Sequence[str],
    batch_size: int = 64,
    on_batch: Callable[[int], None] = lambda done: None,
    on_unknown: Callable[[int, int, str], None] = warn_of_unknown,
) -> Embedded:
    """Embed texts; texts of similar length share a batch, so that little is computed on padding.

    Args:
        model, processor: as `load_checkpoint` returns them.
        texts: a text longer than the text tower's positions is truncated. A word that the vocabulary lacks takes its
            plain form if that is known (`component.pairs.known_forms`), otherwise it is [UNK].
        on_batch: called after each batch with the number of texts in it.
        on_unknown: called once, if texts contain [UNK], with their number, that of all texts, and one of them.

    Returns:
        One embedding per text, in the order of `texts`.

    Raises:
        ValueError: a token id has no embedding in the text tower; the model gives NaN; or a text contains half of a
            character.

    >>> texts = embed_texts(model, processor, ["一只小狗", "红色的圆"])
    >>> texts.embeds.shape == (2, model.config.projection_dim)
    True
    """
    embeds = torch.empty(len(texts), model.config.projection_dim)
    vocab_size, unknown = model.config.text_config.vocab_size, []
    for rows, batch in text_batches(processor, texts, batch_size, model.device.type):
        highest, row = batch["input_ids"].amax(dim=1).max(dim=0)
        if highest >= vocab_size:
            raise ValueError(
                f"{texts[rows[row]]!r} contains token id {highest}, but the text tower has only {vocab_size} "
                "embeddings: the token was added to the tokenizer but not to the model. Remove it from the "
                "tokenizer's files."
            )
        features = model.get_text_features(**{key: tensor.to(model.device) for key, tensor in batch.items()})
        embeds[rows] = normalize(features, "text")
        has_unknown = (batch["input_ids"] == processor.tokenizer.unk_token_id).any(dim=1)
        unknown += [row for row, has in zip(rows, has_unknown.tolist(), strict=True) if has]
        on_batch(len(rows))
    if unknown:
        on_unknown(len(unknown), len(texts), texts[min(unknown)])
    return Embedded("text", texts, embeds, list(range(len(texts))))


def text_batches(
    processor: CLIPProcessor, texts: Sequence[str], batch_size: int, device_type: str = "cpu"
) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
    """Yield (rows, {input_ids (B, T), attention_mask (B, T)}) of texts of similar length, B at most `batch_size`.

    Args:
        device_type: type of the device that the text tower is on, such as "cpu" or "cuda".

    Raises:
        ValueError: a text contains a lone surrogate, half of a character.
    """
    tokenizer = processor.tokenizer
    options = dict(truncation=True, return_attention_mask=False, return_token_type_ids=False)
    _require_unicode(texts)

    def encode(some: Sequence[str]) -> list[list[int]]:
        return tokenizer(list(some), **options)["input_ids"]

    calls = (texts[start : start + _TEXTS_PER_CALL] for start in range(0, len(texts), _TEXTS_PER_CALL))
    backend = tokenizer.backend_tokenizer
    tokens = RaggedArray.of((ids for call in calls for ids in encode_known(call, encode, backend)), "i")
    lengths = tokens.lengths(np.arange(len(tokens)))
    for rows, width in group_by_cost(lengths, costs_on(device_type), batch_size):
        input_ids, attention_mask = pad_texts(*tokens.gather(rows), width, tokenizer.pad_token_id)
        yield rows.tolist(), {"input_ids": input_ids, "attention_mask": attention_mask}


def _require_unicode(texts: Sequence[str]) -> None:
    for row, text in enumerate(texts):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"text {row} contains half of a character ({text[error.start]!a}): it was cut inside a character, or "
                "decoded with errors. Pass whole Unicode text."
            ) from None


@torch.inference_mode()
def embed_images(
    model: BertCLIPModel,
    processor: CLIPProcessor,
    images: Sequence[str | Image.Image],
    batch_size: int = 64,
    num_workers: int | None = None,
    on_batch: Callable[[int], None] = lambda done: None,
    folder: str | None = None,
) -> Embedded:
    """Embed images; worker processes decode the next batches while the tower computes this one.

    Args:
        model, processor: as `load_checkpoint` returns them.
        images: paths or PIL images. The sequence may be lazy: the worker that decodes an item asks for it, and
            `images[row]` may raise BadImageError.
        num_workers: number of decoding processes; None: 0 for a single batch, else one per usable core, at most 8.
        on_batch: called after each batch with the number of images in it.
        folder: see `read_bytes`.

    Returns:
        One embedding per image that can be read; the others are in `bad_images` with a reason.

    Raises:
        ValueError: the model gives NaN.
        OSError, MemoryError: see `read_bytes`.

    >>> images = embed_images(model, processor, ["images/test/photo_cat.jpg", "no such.jpg"])
    >>> len(images), images.bad_images
    (1, {1: 'no such file'})
    """
    # Not a list of batches: small tensors that stay between large ones that go would keep the allocator from reusing
    # their memory, 40 KB for each image.
    embeds, good_rows, bad_images = torch.empty(len(images), model.config.projection_dim), [], {}
    transform = ImageTransform(processor.image_processor)
    for batch in image_batches(transform, images, batch_size, num_workers, model.device, folder):
        if len(batch.rows):
            pixel_values = transform.pixel_values(batch.columns["pixels"], model.device, model.dtype)
            good = slice(len(good_rows), len(good_rows) + len(batch.rows))
            embeds[good] = normalize(model.get_image_features(pixel_values), "image")
            good_rows += batch.rows.tolist()
        bad_images |= batch.bad
        on_batch(batch.total)
    return Embedded("image", images, embeds[: len(good_rows)], good_rows, bad_images)


def image_batches(
    transform: ImageTransform,
    images: Sequence[str | Image.Image],
    batch_size: int,
    num_workers: int | None,
    device: torch.device,
    folder: str | None = None,
) -> DataLoader:
    """A DataLoader that yields an `ImageBatch` of pixels (B, H, W, 3), on the CPU, per `batch_size` images.

    Args:
        images, num_workers, folder: see `embed_images`.
        device: where the pixels will go.
    """
    if num_workers is None:
        num_workers = min(8, usable_cores()) if len(images) > batch_size else 0
    return DataLoader(
        range(len(images)),
        batch_size=batch_size,
        collate_fn=ToSharedMemory(partial(_read, images, transform, folder)),
        pin_memory=device.type == "cuda",
        **worker_options(num_workers, batch_size * transform.bytes_per_image),
    )


def normalize(features: Tensor, kind: str) -> Tensor:
    """(B, D) on any device → (B, D) fp32 on the CPU, L2-normalised. Raises ValueError for NaN."""
    embeds = F.normalize(features.float(), dim=-1).cpu()
    if not embeds.isfinite().all():
        raise ValueError(
            f"The model embeds {kind}s as NaN: its training diverged, its weights are damaged, or they are too large "
            "for half precision. Use another checkpoint."
        )
    return embeds


def _read(
    images: Sequence[str | Image.Image], transform: ImageTransform, folder: str | None, rows: Sequence[int]
) -> ImageBatch:
    def read(row: int) -> np.ndarray:
        image = open_image(images[row], folder)
        return transform.crop(image, image.size)

    return ImageBatch.read(rows, read)


def open_image(item: str | Image.Image, folder: str | None = None) -> Image.Image:
    """The RGB image of a path or of a PIL image of any mode. Raises as `load_image`."""
    if not isinstance(item, Image.Image):
        return load_image(item, folder)
    try:
        check_aspect(item)
        return to_rgb(item)
    except (BadImageError, MemoryError):
        raise
    except Exception as error:  # PIL decodes lazily, and the file is damaged
        raise BadImageError(f"{type(error).__name__}: {error}") from error
