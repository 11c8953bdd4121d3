"""WebDataset shards: tar files in which the members that share a key are a sample, as img2dataset writes them.

Only the position of each image is kept, so the Trainer's own sampler shuffles, splits and resumes over shards as over
any table. The webdataset library reads shards as streams, which can do none of the three exactly.
"""

import io
import logging
import os
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from component.ground.file_state import FileState
from component.ground.reading import open_unbuffered
from component.ground.retries import with_retries
from component.image.folder import IMAGE_ENDINGS
from component.image.reading import SINCE_INDEXED, BadImageError
from component.pairs.file_content import FileContent, content_of
from component.pairs.json_text import parse_json, require_unicode
from component.pairs.paths import normal_name

logger = logging.getLogger(__name__)

CUT_SHORT = "shards are cut short or damaged; their pairs before that position are used"
NO_IMAGE = "captions in shards have no image and are left out"
UNREADABLE = "captions in shards are neither UTF-8 text nor JSON with a `caption`, and count as empty"
REPEATED = "members of shards repeat a key and are left out"
OTHER = "members of shards are neither images nor captions, or have another ending next to an image, and are left out"
SPARSE = "members of shards are sparse files and are left out (pack them without tar's --sparse)"
LINK = "links in shards do not lead to an earlier file, or are devices, and are left out"
TOO_LARGE = "members of shards are larger than an image may be and are left out"
AFTER_END = "shards have bytes after their end mark that are not a tar; these are left out"

CAPTION_ENDINGS = (".json", ".txt")
MAX_IMAGE_BYTES = 2**30
MAX_CAPTION_BYTES = 2**20
MAX_HEADER_BYTES = 2**20
# What Python's tarfile raises for nonsense in headers.
TAR_FAULTS = (tarfile.TarError, RecursionError, ValueError, ArithmeticError, LookupError)


@dataclass(frozen=True)
class Shard:
    """A tar in the state in which this process found it; a locator is the offset, size and name of an image in it."""

    path: str
    state: FileState

    @staticmethod
    def locator(member: tarfile.TarInfo) -> str:
        return f"{member.offset_data} {member.size} {member.name}"

    def filename(self, locator: str) -> str:
        return f"{self.path}/{locator.split(' ', 2)[2]}"

    @staticmethod
    def range_of(locator: str) -> tuple[int, int]:
        """Where the image begins and ends in the tar."""
        offset, size, _ = locator.split(" ", 2)
        return int(offset), int(offset) + int(size)

    def read(self, locator: str) -> bytes:
        """The image's bytes. Raises BadImageError where the shard is gone, or not the one that was indexed, and
        OSError where it cannot be read."""
        start, stop = self.range_of(locator)
        try:
            return with_retries(lambda: self._read(start, stop - start))
        except FileNotFoundError:
            raise BadImageError(f"the shard was removed {SINCE_INDEXED}") from None

    def _read(self, offset: int, size: int) -> bytes:
        # Opened for each image, because a process may not keep a thousand shards open.
        with open_unbuffered(self.path) as file:
            if self.state != FileState.of(file):
                raise BadImageError(f"the shard has changed {SINCE_INDEXED}")
            return _read(file, offset, size)


@dataclass
class ShardIndex:
    """What one shard holds.

    Attributes:
        locators, texts: of the images, in the order of the tar; the text of an image without a caption is "".
        faults: (fault, member or shard) of what is left out.
        content: of the shard.
        error: why the shard cannot be used at all.
    """

    shard: Shard | None = None
    content: FileContent | None = None
    locators: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    faults: list[tuple[str, str]] = field(default_factory=list)
    error: str | None = None

    def name(self, member: tarfile.TarInfo) -> str:
        return f"{self.shard.path}/{member.name}"


def index_shards(paths: Sequence[str], num_workers: int = 0) -> Iterator[ShardIndex]:
    """The index of each shard, in order, made by this process or by `num_workers` others."""
    if not num_workers:
        return map(index_shard, paths)
    from torch.utils.data import DataLoader  # not at the top: reading images alone does without torch and its 180 MB

    # Python's tarfile reads 22,000 members per second and process: slow, but it knows every kind of tar.
    return iter(DataLoader(list(paths), batch_size=None, num_workers=num_workers, collate_fn=index_shard))


IndexShards = Callable[[Sequence[str]], Iterable[ShardIndex]]


def read_shards(paths: Sequence[str], index_shards: IndexShards = index_shards) -> Iterator[ShardIndex]:
    """Yield the index of each shard that can be used, in order.

    Args:
        index_shards: makes the indexes in order; `index_shards`, or a function that shares the work among processes.

    Raises:
        ValueError: after the others were yielded, if shards are missing or are not tar files.
    """
    faults, errors = {}, []
    for index in index_shards(paths):
        for fault, where in index.faults:
            count, first = faults.get(fault, (0, where))
            faults[fault] = count + 1, first
        if index.error:
            errors.append(index.error)
        else:
            yield index
    if errors:
        raise ValueError(f"{len(errors)} of {len(paths)} shards cannot be used. The first: {errors[0]}")
    for fault, (count, first) in faults.items():
        logger.warning("%d %s (the first: %s).", count, fault, first)


def index_shard(path: str) -> ShardIndex:
    """Index a tar by one pass over its headers and captions, after one for its `content_of`."""
    try:
        return with_retries(lambda: _index(path))
    except OSError as error:
        return ShardIndex(error=f"{path} cannot be read ({error.strerror}).")
    except TAR_FAULTS:
        return ShardIndex(
            error=f"{path} is not a tar, or is cut off at its start. Fetch it again; if it is compressed (.tar.gz), "
            "unpack it to a plain .tar."
        )


def _index(path: str) -> ShardIndex:
    with open_unbuffered(path, read_ahead=True) as file:
        state = FileState.of(file)
        index = ShardIndex(Shard(path, state), content_of(path, state))
        if index.shard.state.size:
            _fill(index, file)
        else:
            index.faults.append((CUT_SHORT, path))
        return index


def _fill(index: ShardIndex, file: io.FileIO) -> None:
    images, captions, dotted = {}, {}, {}
    contents: dict[int, bytes | None] = {}  # of captions, by offset; None: too large

    def take(key: str, ending: str, member: tarfile.TarInfo) -> None:
        same = images if ending in IMAGE_ENDINGS else captions.setdefault(key, {})
        if same.setdefault(key if same is images else ending, member) is not member:
            index.faults.append((REPEATED, index.name(member)))

    # Members of one key need not be neighbours here.
    for member in _whole_files(index, file):
        folder, slash, name = normal_name(member.name).rpartition("/")
        first, dot, ending = name.partition(".")
        stem, last = os.path.splitext(name)
        if last.lower() in CAPTION_ENDINGS:  # now, because a remote shard is read from front to back
            is_small = member.size <= MAX_CAPTION_BYTES
            contents[member.offset] = _read(file, member.offset_data, member.size) if is_small else None
        if first and f"{dot}{ending.lower()}" in (*IMAGE_ENDINGS, *CAPTION_ENDINGS):
            take(folder + slash + first, f"{dot}{ending.lower()}", member)
        elif first and last.lower() in (*IMAGE_ENDINGS, *CAPTION_ENDINGS):
            dotted.setdefault((folder + slash + first, folder + slash + stem), []).append((last.lower(), member))
        else:
            index.faults.append((OTHER, index.name(member)))
    # As in webdataset, a key ends at the first dot: a.seg.png next to a.jpg is another kind of datum. But without such
    # an image, or with a caption of the same name, v1.5.jpg is the image of the key v1.5.
    for (first, stem), members in dotted.items():
        endings = [ending in IMAGE_ENDINGS for ending, _ in members]
        for ending, member in members:
            if first not in images or len(set(endings)) == 2:
                take(stem, ending, member)
            else:
                index.faults.append((OTHER, index.name(member)))
    for key, image in sorted(images.items(), key=lambda entry: entry[1].offset):
        text = ""
        for ending, caption in sorted(captions.pop(key, {}).items(), reverse=True)[:1]:  # .txt where there is one
            try:
                text = _text(contents[caption.offset], ending)
            except ValueError:
                index.faults.append((UNREADABLE, index.name(caption)))
        index.locators.append(Shard.locator(image))
        index.texts.append(text)
    for members in captions.values():
        index.faults.append((NO_IMAGE, index.name(next(iter(members.values())))))


def _whole_files(index: ShardIndex, file: io.FileIO) -> Iterator[tarfile.TarInfo]:
    """Yield the complete files of a tar and of those appended to it, and note what is left out."""
    start = 0
    while start is not None:
        file.seek(start)
        try:
            # Keeps names in GBK, as Windows writes them, distinct and printable.
            tar = tarfile.open(fileobj=_Headers(file), mode="r:", errors="backslashreplace")
        except TAR_FAULTS:
            if start == 0:
                raise
            index.faults.append((AFTER_END, index.shard.path))
            return
        try:
            yield from _members(tar, index)
            # tarfile does not notice a cut between two members.
            has_end = _read(file, tar.offset, tarfile.BLOCKSIZE) == bytes(tarfile.BLOCKSIZE)
        except TAR_FAULTS:
            has_end = False
        if not has_end:
            is_not_tar = start > 0 and tar.offset == start
            index.faults.append((AFTER_END if is_not_tar else CUT_SHORT, index.shard.path))
            return
        start = _next_block(file, tar.offset)


def _members(tar: tarfile.TarFile, index: ShardIndex) -> Iterator[tarfile.TarInfo]:
    """Yield the complete files among the members of one tar; a hard link is the file that it points to."""
    files: dict[str, tarfile.TarInfo] = {}
    for member in tar:
        if member.size < 0:
            raise tarfile.ReadError("a size below 0")
        if member.islnk() and member.linkname in files:
            target = files[member.linkname]
            member.offset_data, member.size = target.offset_data, target.size
        elif member.issparse():
            index.faults.append((SPARSE, index.name(member)))
            continue
        elif not member.isreg():
            if not member.isdir():
                index.faults.append((LINK, index.name(member)))
            continue
        if member.offset_data + member.size > index.shard.state.size:
            return  # cut off, as the missing end mark says
        if member.size > MAX_IMAGE_BYTES:
            index.faults.append((TOO_LARGE, index.name(member)))
            continue
        files[member.name] = member
        yield member


class _Headers:
    """A tar of which only headers can be read, which are small: one that claims to be large would fill the memory."""

    def __init__(self, file: io.FileIO):
        self._file, self.seek, self.tell = file, file.seek, file.tell

    def read(self, size: int) -> bytes:
        if not 0 <= size <= MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return self._file.read(size)


def _next_block(file: io.FileIO, offset: int) -> int | None:
    """The offset of the first block, from an offset on, that is not all zero."""
    file.seek(offset)
    while chunk := file.read(2**20):
        if rest := chunk.lstrip(b"\0"):
            offset += len(chunk) - len(rest)
            return offset - offset % tarfile.BLOCKSIZE
        offset += len(chunk)
    return None


def _text(content: bytes | None, ending: str) -> str:
    """The caption in a .txt, or in the .json that img2dataset writes. Raises ValueError if there is none."""
    if content is None:
        raise ValueError
    if ending == ".txt":
        return content.decode("utf-8-sig")
    sample = parse_json(content)
    if not isinstance(sample, dict) or not isinstance(sample.get("caption"), str):
        raise ValueError
    return require_unicode(sample["caption"])


def _read(file: io.FileIO, offset: int, size: int) -> bytes:
    file.seek(offset)
    return file.read(size)
