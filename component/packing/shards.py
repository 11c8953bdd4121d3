"""Pairs of any kind → WebDataset shards, by all cores; the same command writes the missing ones after an interruption.

Shard n holds the pairs from n × pairs_per_shard on, in order, each as `<number>.<ending of its format>` and
`<number>.txt`. Equal pairs make equal bytes. Next to a shard, `<n>_stats.json` says what was left out.
"""

import hashlib
import io
import itertools
import json
import os
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, field

from component.ground.files import new_file, write_json
from component.ground.lock import sole_writer
from component.ground.processes import ordered_results
from component.image.container import format_of
from component.image.reading import BadImageError, MissingImageError
from component.pairs.caption import is_caption
from component.pairs.image_stores import ImageStore, expect_images, key_of
from component.pairs.keep_list import KeepList
from component.pairs.sources import read_pair_files
from component.pairs.table_files import is_shard, pair_files

ENDINGS = {"JPEG": "jpg", "TIFF": "tif", "JPEG2000": "jp2"}  # of the other formats, the name in lower case
SHARDS_AHEAD = 2  # per process

Pair = tuple[ImageStore, str, str]  # store, locator, text


@dataclass
class Stats:
    """What is in one shard: the digest of the pairs that it was made of, its pairs, and reason → number left out."""

    made_of: str
    pairs: int = 0
    left_out: dict[str, int] = field(default_factory=dict)


def pack_shards(
    files: str | Sequence[str],
    image_path: str | None,
    folder: str,
    columns: Mapping[str, str] | None = None,
    keep_list: KeepList | None = None,
    pairs_per_shard: int = 10_000,
    num_workers: int | None = None,
) -> Iterator[tuple[Stats, bool]]:
    """Write the shards into a folder, and yield for each, in order, its stats and whether it was there before.

    Texts without a visible character, and images that are missing or in no format that is read, are left out; images
    are not decoded.

    Args:
        files, image_path, columns, keep_list: see `read_pair_files`.

    Raises:
        ValueError, FileNotFoundError: as `read_pair_files`; another run writes to the folder; it has shards that were
            not packed here, or are to be read; or, at the end, shards that this data does not have.
        OSError: a disk does not answer or is full, or a worker process was killed.
    """
    pairs = (
        (store, locator, text)
        for store, chunk in read_pair_files(files, image_path, columns, keep_list=keep_list)
        for locator, text in zip(chunk["filename"], chunk["text"], strict=True)
    )
    tasks = (
        (os.path.join(folder, f"{number:05d}.tar"), number * pairs_per_shard, part)
        for number, part in enumerate(_batched(pairs, pairs_per_shard))
    )
    count = 0
    results = ordered_results(_write_shard, tasks, num_workers, SHARDS_AHEAD)
    with sole_writer(folder, inside=True), closing(results):
        _require_own_shards(folder, pair_files(files))
        for result in results:
            count += 1
            yield result
        names = {f"{number:05d}.tar" for number in range(count)}
        if others := sorted(name for name in os.listdir(folder) if is_shard(name) and name not in names):
            raise ValueError(
                f"{folder} has {len(others)} shards more than this data ({others[0]}, …), of an earlier run: remove "
                "them."
            )


def _require_own_shards(folder: str, read: Sequence[str]) -> None:
    """Raise ValueError rather than replace the shards of others, or those that are read."""
    inputs = set(map(os.path.realpath, read))
    for path in (os.path.join(folder, name) for name in sorted(os.listdir(folder)) if is_shard(name)):
        if os.path.realpath(path) in inputs or not _read_stats(path):
            raise ValueError(f"{path} was not packed here, or is one of those to read. Give another folder.")


def _batched(pairs: Iterator[Pair], size: int) -> Iterator[list[Pair]]:
    while part := list(itertools.islice(pairs, size)):
        yield part


def _write_shard(path: str, first: int, pairs: list[Pair]) -> tuple[Stats, bool]:
    """Runs in a worker process."""
    digest = hashlib.blake2b(json.dumps([(key_of(*pair[:2]), pair[2]) for pair in pairs]).encode(), digest_size=16)
    stats = Stats(digest.hexdigest())
    if (known := _read_stats(path)) and known.made_of == stats.made_of and os.path.isfile(path):
        return known, True
    with new_file(path, "wb") as file:
        with tarfile.open(fileobj=file, mode="w") as tar:
            expect_images(pair[:2] for pair in pairs)
            for number, (store, locator, text) in enumerate(pairs, first):
                try:
                    content, ending = _image(store, locator, text)
                except BadImageError as error:
                    stats.left_out[error.reason] = stats.left_out.get(error.reason, 0) + 1
                    continue
                _add(tar, f"{number:09d}.{ending}", content)
                _add(tar, f"{number:09d}.txt", text.encode(errors="surrogatepass"))
                stats.pairs += 1
        file.flush()  # raises if the disk is full
        # In this order, so that stats next to a shard are its own whenever this process is killed.
        with suppress(FileNotFoundError):
            os.unlink(path)
        write_json(_stats_file(path), asdict(stats))
    return stats, False


def _image(store: ImageStore, locator: str, text: str) -> tuple[bytes, str]:
    """The bytes of an image and the ending of its format. Raises BadImageError, with a word as its reason."""
    if not is_caption(text.strip()):
        raise BadImageError("empty_text")
    try:
        content = store.read(locator)
    except MissingImageError:
        raise BadImageError("missing") from None
    image_format = format_of(content)
    if image_format is None:
        raise BadImageError("not_image")
    return content, ENDINGS.get(image_format, image_format.lower())


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def _stats_file(shard: str) -> str:
    return f"{os.path.splitext(shard)[0]}_stats.json"


def _read_stats(shard: str) -> Stats | None:
    """The stats of a shard; None where there are none, as before it was packed, or those of another program."""
    with suppress(OSError, TypeError, ValueError), open(_stats_file(shard), encoding="utf-8") as file:
        return Stats(**json.load(file))
    return None
