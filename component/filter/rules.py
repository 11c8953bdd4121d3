"""The checks that a pair passes or fails on its own. They run in worker processes."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from component.image.centre_crop import CentreCrop
from component.image.check import check_image
from component.image.load import decode
from component.image.perceptual_hash import HASH_SIDE, perceptual_hash
from component.image.reading import BadImageError, MissingImageError
from component.pairs.caption import is_caption
from component.pairs.image_stores import ImageStore, expect_images

HAN = re.compile("[\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af]")


@dataclass(frozen=True)
class FilterRules:
    """What to require of a pair, besides a caption and an image that exists, decodes to its end and is not a GIF.

    Attributes:
        min_text, max_text: number of characters of the caption, without surrounding white space.
        min_chinese: share of Chinese characters (Han) among all characters except white space, from 0 to 1.
        min_side: shorter side of the image in pixels.
        max_aspect: longer side divided by the shorter.
        exact_duplicates: drop a pair if an earlier pair has the same caption and the same image file, byte for byte.
        near_duplicates: drop an image that looks like an earlier one with another name.
    """

    min_text: int | None = None
    max_text: int | None = None
    min_chinese: float | None = None
    min_side: int | None = None
    max_aspect: float | None = None
    exact_duplicates: bool = False
    near_duplicates: bool = False

    def __post_init__(self):
        if self.min_chinese is not None and not 0 <= self.min_chinese <= 1:
            raise ValueError(f"min_chinese is {self.min_chinese}; it is a share, from 0 to 1.")
        if self.max_aspect is not None and not self.max_aspect >= 1:
            raise ValueError(f"max_aspect is {self.max_aspect}; longer side / shorter side is never below 1.")
        if self.min_text is not None and self.max_text is not None and self.min_text > self.max_text:
            raise ValueError(f"min_text {self.min_text} is above max_text {self.max_text}: no text would be kept.")


class Finding(NamedTuple):
    """Result of checking one pair.

    Attributes:
        reason: why the pair is dropped: one word to count by, then perhaps a colon and details; "" if it is kept.
        size: (width, height) of the image, where it was decoded.
        text_digest, image_digest: 64 bits of a hash of the caption and of the image file, with `exact_duplicates`.
        looks: 64-bit perceptual hash of the image, with `near_duplicates`.
        pixels: (H, W, 3) uint8, the image as the CLIP model sees it, if there is one.
    """

    reason: str
    size: tuple[int, int] | None = None
    text_digest: int = 0
    image_digest: int = 0
    looks: int = 0
    pixels: np.ndarray | None = None


@dataclass(frozen=True)
class PairCheck:
    """Checks pairs one by one. It is sent to worker processes.

    Args:
        crop: of the CLIP model that scores the pairs; None without one.
    """

    rules: FilterRules
    crop: CentreCrop | None = None

    def __call__(self, store: ImageStore, texts: Sequence[str], locators: Sequence[str]) -> list[Finding]:
        """Check some pairs whose images are in one store.

        Raises:
            OSError, MemoryError: as `read_bytes`; they say nothing about the pair.
        """
        expect_images((store, locator) for locator in locators)
        return [self._check(store, text, locator) for text, locator in zip(texts, locators, strict=True)]

    def _check(self, store: ImageStore, text: str, locator: str) -> Finding:
        reason = _text_problem(text.strip(), self.rules)  # first, because it is cheap
        if reason:
            return Finding(reason)
        try:
            content = store.read(locator)
            if self.crop:
                image = decode(content, stills_only=True)  # once, for the rules and for the model
            else:
                image = check_image(content, HASH_SIDE if self.rules.near_duplicates else 1)
        except MissingImageError:
            return Finding("missing")
        except BadImageError as error:
            return Finding(str(error))
        reason = _size_problem(*image.size, self.rules)
        if reason:
            return Finding(reason, image.size)
        return Finding(
            "",
            image.size,
            *((_digest(text.encode()), _digest(content)) if self.rules.exact_duplicates else (0, 0)),
            perceptual_hash(image.rgb) if self.rules.near_duplicates else 0,
            np.asarray(self.crop(*image)) if self.crop else None,
        )


def chinese_share(text: str) -> float:
    """Share of Han characters among all characters except white space; 0 for an empty text.

    >>> chinese_share("一只 cat")
    0.4
    """
    characters = "".join(text.split())
    return len(HAN.findall(characters)) / max(len(characters), 1)


def _text_problem(text: str, rules: FilterRules) -> str:
    if not is_caption(text):
        return "empty_text"
    if rules.min_text is not None and len(text) < rules.min_text:
        return f"short_text: {len(text)} characters"
    if rules.max_text is not None and len(text) > rules.max_text:
        return f"long_text: {len(text)} characters"
    if rules.min_chinese is not None and (share := chinese_share(text)) < rules.min_chinese:
        return f"little_chinese: {share:.2f}"
    return ""


def _size_problem(width: int, height: int, rules: FilterRules) -> str:
    shorter, longer = sorted((width, height))
    if rules.min_side is not None and shorter < rules.min_side:
        return f"small: {width} x {height}"
    if rules.max_aspect is not None and longer > rules.max_aspect * shorter:
        return f"long_and_narrow: {width} x {height}"
    return ""


def _digest(content: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")
