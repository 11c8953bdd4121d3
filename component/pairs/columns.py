"""Which columns of a table hold the text, the file name and the URL, whatever its publisher calls them."""

import argparse
import functools
import hashlib
import logging
import re
from collections.abc import Callable, Mapping, Sequence

logger = logging.getLogger(__name__)

# Names as published data sets have them, in order of preference, compared by their letters alone: `image_url`,
# `ImageURL` and ` Image URL` are one name. In Zero, `Url` is the web page and `ImageUrl` the image.
KNOWN_NAMES = {
    "text": (
        "text caption captions texts title querytext imagequery query sentence sentences raw description alttext alt "
        "captionzh 文本 描述 标题"
    ).split(),
    "filename": "filename filepath imagepath imagefile imgpath image img path imagename imageid 文件名 图片".split(),
    "url": "imageurl imgurl url 链接".split(),
}
_SEPARATORS = {"，": "full-width commas", "、": "“、”"}
_LISTED = re.compile(r"""\[\s*(?:(['"])(.*?)\1.*|(.*?))\s*\]""", re.DOTALL)  # ['http://…'], the first of several

# Names of a table's columns → (name, position) of those to yield, see `component.pairs.table`.
ChooseColumns = Callable[[Sequence[str]], list[tuple[str, int]]]

# A table is read once to be checked and once to be used: what is said of it is said once.
warn_once = functools.lru_cache(logger.warning)


def parse_columns(text: str) -> dict[str, str]:
    """Read an option such as `text=caption,url=URL`: required name → name of the column.

    Raises:
        ValueError: with what is expected.
    """
    pairs = [pair.partition("=") for pair in text.split(",")]
    columns = {name.strip(): column.strip() for name, _, column in pairs}
    if len(columns) != len(pairs) or not all(name in KNOWN_NAMES and column for name, column in columns.items()):
        raise ValueError("expected some of text=…, filename=… and url=…, such as text=caption,url=URL")
    return columns


def columns_option(text: str) -> dict[str, str]:
    """Type of the option `--columns` of a script."""
    try:
        return parse_columns(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text}: {error}") from None


def find_columns(
    path: str, found: Sequence[str], required: Sequence[str], given: Mapping[str, str] | None = None
) -> dict[str, str | None]:
    """Which column of a table is meant by each required name.

    An explicit name counts first, then the name itself, then one of KNOWN_NAMES. What was recognised is said in one
    line.

    Args:
        path: of the table, for messages.
        found: names of its columns.
        given: required name → name of a column, from `--columns`.

    Returns:
        Required name → name of the column; None for a `filename` that `filename_from_url` makes. A `url` that it is
        made of is in the result too.

    Raises:
        ValueError: a required column is missing, or there are two of it.
    """
    columns = {name: _find(path, found, name, given or {}) for name in required}
    if columns.get("filename", "") is None:
        columns["url"] = columns.get("url") or _find(path, found, "url", given or {})
    is_made = columns.get("filename", "") is None and columns["url"] is not None
    missing = [name for name in required if columns[name] is None and not (name == "filename" and is_made)]
    if missing:
        _raise_missing(path, missing, required, found)
    recognised = [f"`{column}` as {name}" for name, column in columns.items() if column not in (name, None)]
    if is_made:
        recognised.append("filename made from the URL")
    if recognised:
        warn_once("%s: reading %s.", path, ", ".join(recognised))
    return columns


def _find(path: str, found: Sequence[str], name: str, given: Mapping[str, str]) -> str | None:
    if name in given:
        if given[name] not in found:
            raise ValueError(
                f"{path} has no column `{given[name]}` (found: {_listed(found)}). Name one of these: {_option(name)}"
            )
        return given[name]
    if name in found:
        _require_one(path, name, [column for column in found if column == name])
        return name
    letters = [_letters(column) for column in found]
    for known in KNOWN_NAMES.get(name, (_letters(name),)):
        alike = [column for column, those in zip(found, letters, strict=True) if those == known]
        if alike:
            _require_one(path, name, alike)
            return alike[0]
    return None


def _require_one(path: str, name: str, columns: Sequence[str]) -> None:
    if len(columns) > 1:
        raise ValueError(
            f"{path} has {len(columns)} columns for `{name}` ({', '.join(map(repr, columns))}). Rename the others, or "
            f"name one: {_option(name)}"
        )


def _raise_missing(path: str, missing: Sequence[str], required: Sequence[str], found: Sequence[str]) -> None:
    separators = [name for mark, name in _SEPARATORS.items() if len(found) == 1 and mark in found[0]]
    if separators:
        hint = f"Its cells are separated by {separators[0]}; a CSV has commas between them."
    else:
        hint = f"The first line must name the columns. Rename them, or name yours: {_option(missing[0])}"
    raise ValueError(
        f"{path} has no column {' and no column '.join(f'`{name}`' for name in missing)} (found: {_listed(found)}). "
        f"It needs the columns {', '.join(required)}. {hint}"
    )


def _option(name: str) -> str:
    return f"--columns {name}=… (in training: --set columns={name}=…)"


def is_image_column(name: str) -> bool:
    """Whether a column of bytes is called like one of images."""
    return _letters(name) in (*KNOWN_NAMES["filename"], "jpg", "jpeg", "png", "webp", "imagebytes", "bytes")


def _listed(found: Sequence[str]) -> str:
    names = ", ".join(name if name.isprintable() else repr(name) for name in found)
    return names if len(names) < 300 else names[:300] + "…"


def _letters(name: str) -> str:
    return "".join(filter(str.isalnum, name)).lower()


def clean_url(url: str) -> str:
    r"""A URL as it was meant: without the quotes, brackets and backslashes of JSON or Python around it.

    >>> clean_url(r"['http:\/\/a.com\/1.jpg']")
    'http://a.com/1.jpg'
    """
    url = url.strip().replace("\\/", "/")
    if listed := _LISTED.fullmatch(url):
        url = listed[2] or listed[3]
    if url[:1] == url[-1:] and url[:1] in ("'", '"'):
        url = url[1:-1]
    return url.strip()


def filename_from_url(url: str) -> str:
    """The file name of an image whose table has none: 32 hexadecimal digits of the SHA-256 of its URL.

    The first three digits are a folder, so that 100 million images make 4,096 folders of some 24,000. The rule does
    not change: the table that was downloaded is the table that is trained on.

    >>> filename_from_url("http://example.com/a.jpg")
    '4fd/4fd63207a70baba7076795ee9c335785.jpg'
    """
    digits = hashlib.sha256(url.encode(errors="surrogatepass")).hexdigest()[:32]
    return f"{digits[:3]}/{digits}.jpg"
