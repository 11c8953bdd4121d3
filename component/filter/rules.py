"""The rules that a pair passes or fails on its own; they run in worker processes."""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from component.image.check import check_image
from component.image.load import BadImageError, MissingImageError, read_bytes
from component.image.perceptual_hash import HASH_SIDE, perceptual_hash
from component.pairs.caption import is_caption

HAN = re.compile("[\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af]")


@dataclass(frozen=True)
class FilterRules:
    """What a pair must be. Always asked: a text, and a picture that exists, decodes to its end and is not a GIF.

    Attributes:
        min_text, max_text: characters of the text, without white space around it.
        min_chinese: share of Chinese characters (Han) among all characters but white space, from 0 to 1.
        min_side: shorter side of the picture in pixels.
        max_aspect: longer side divided by the shorter.
        exact_duplicates: drop a pair whose text and picture file an earlier pair has, byte for byte.
        near_duplicates: drop a picture that looks like an earlier one of another name.
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
    """One pair: why it is dropped ("" if it is not), and what to compare it with others by, where a rule asks.

    `reason` is one word to count by, then perhaps a colon and details. `digest` covers text and file, `looks` is the
    perceptual hash; 64 bits each.
    """

    reason: str
    digest: int = 0
    looks: int = 0


def check_pairs(
    texts: Sequence[str], paths: Sequence[str | ValueError], folder: str, rules: FilterRules
) -> list[Finding]:
    """Check pairs one by one; in place of a path in `folder` stands the error that its file name gave."""
    return [check_pair(text, path, folder, rules) for text, path in zip(texts, paths, strict=True)]


def check_pair(text: str, path: str | ValueError, folder: str, rules: FilterRules) -> Finding:
    """Check one pair; the text first, because that is cheap.

    Raises:
        OSError, MemoryError: as `read_bytes`; they say nothing about the pair.
    """
    reason = _text_problem(text.strip(), rules)
    if reason:
        return Finding(reason)
    if isinstance(path, ValueError):
        return Finding(f"bad_filename: {path}")
    try:
        content = read_bytes(path, folder)
        image = check_image(content, HASH_SIDE if rules.near_duplicates else 1)
    except MissingImageError:
        return Finding("missing")
    except BadImageError as error:
        return Finding(str(error))
    reason = _size_problem(image.width, image.height, rules)
    if reason:
        return Finding(reason)
    digest = _digest(text, content) if rules.exact_duplicates else 0
    return Finding("", digest, perceptual_hash(image.upright()) if rules.near_duplicates else 0)


def chinese_share(text: str) -> float:
    """Share of Han characters among all characters but white space; 0 for an empty text."""
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


def _digest(text: str, content: bytes) -> int:
    digest = hashlib.blake2b(content, digest_size=8, salt=hashlib.blake2b(text.encode(), digest_size=16).digest())
    return int.from_bytes(digest.digest(), "little")
