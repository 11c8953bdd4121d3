"""WebDataset shards: tar files in which the members that share a key are a sample, as img2dataset writes them.

Only where each picture lies is remembered, so the Trainer's own sampler shuffles, splits and resumes over shards as
over any table. The webdataset library reads shards as streams, which can do none of the three exactly.
"""

import io
import json
import logging
import os
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from torch.utils.data import DataLoader

from component.image.folder import IMAGE_ENDINGS
from component.image.load import BadImageError

logger = logging.getLogger(__name__)

CUT_SHORT = "shards are cut short or damaged; of these, the pairs before that place are used"
NO_IMAGE = "captions in shards have no picture and are left out"
UNREADABLE = "captions in shards are neither UTF-8 text nor JSON with a `caption`, and count as empty"
REPEATED = "members of shards come again under the same key and are left out"


@dataclass(frozen=True)
class Shard:
    """A tar and the state in which it was indexed; a `locator` says where in it a picture lies."""

    path: str
    size: int
    mtime_ns: int

    @staticmethod
    def locator(member: tarfile.TarInfo) -> str:
        return f"{member.offset_data} {member.size} {member.name}"

    def filename(self, locator: str) -> str:
        return f"{self.path}/{locator.split(' ', 2)[2]}"

    def open(self, locator: str) -> io.BytesIO:
        """The picture's bytes. Raises BadImageError where the shard is gone, or not the one that was indexed."""
        offset, size, _ = locator.split(" ", 2)
        try:
            # Opened for each picture, as a picture file is: a thousand open shards are more than a process may have.
            with open(self.path, "rb", buffering=0) as file:
                if Shard(self.path, *_state(file)) != self:
                    raise BadImageError("the shard has changed since it was indexed; start again to index it anew")
                return io.BytesIO(_read(file, int(offset), int(size)))
        except OSError as error:
            raise BadImageError(f"the shard cannot be read ({error.strerror})") from None

    def identity(self, locator: str) -> str:
        """A text that changes when the picture does."""
        offset, size, _ = locator.split(" ", 2)
        return "\0".join([os.path.abspath(self.path), *map(str, (self.size, self.mtime_ns, offset, size))])


@dataclass
class ShardIndex:
    """What one shard holds.

    Attributes:
        locators, texts: of the pictures, in their order in the tar; the text of one without a caption is "".
        faults: (fault, where), of what is left out.
        error: why nothing of the shard can be used.
    """

    shard: Shard | None = None
    locators: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    faults: list[tuple[str, str]] = field(default_factory=list)
    error: str | None = None


def index_shards(paths: Sequence[str], num_workers: int = 0) -> Iterator[ShardIndex]:
    """The index of each shard in order, made by this process, or by `num_workers` others."""
    # 22,000 members a second in each: Python's tarfile is slow, but knows every kind of tar.
    return iter(DataLoader(list(paths), batch_size=None, num_workers=num_workers, collate_fn=index_shard))


IndexShards = Callable[[Sequence[str]], Iterable[ShardIndex]]


def read_shards(paths: Sequence[str], index_shards: IndexShards = index_shards) -> Iterator[ShardIndex]:
    """Yield the index of each shard that can be used, in order.

    Args:
        index_shards: makes the indexes, in order: `index_shards`, or one that shares the work with others.

    Raises:
        ValueError: after the others were yielded, some are missing or no tar files.
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
    """One pass over the headers of a tar, and one over its captions."""
    try:
        with open(path, "rb", buffering=0) as file:
            index = ShardIndex(Shard(path, *_state(file)))
            if index.shard.size:
                _fill(index, file)
            else:
                index.faults.append((CUT_SHORT, path))
            return index
    except OSError as error:
        return ShardIndex(error=f"{path} cannot be read ({error.strerror}).")
    except tarfile.TarError:
        return ShardIndex(
            error=f"{path} is no tar, or is cut off at its very start. Fetch it again; if it is compressed (.tar.gz), "
            "unpack it to a plain .tar."
        )


def _fill(index: ShardIndex, file: io.FileIO) -> None:
    images, captions = {}, {}
    # Names in GBK, as Windows writes them, stay apart from each other and can be printed.
    with tarfile.open(fileobj=file, mode="r:", errors="backslashreplace") as tar:
        for member in _whole_files(tar, index):
            # As in webdataset, a key ends at the first dot of the file's name. Members of one key need not be
            # neighbours here.
            match = re.fullmatch(r"((?:.*/)?[^./]+)(\.[^/]*)", member.name, re.DOTALL)
            key, ending = match.groups() if match else ("", "")
            ending = ending.lower()
            if ending in IMAGE_ENDINGS:
                first = images.setdefault(key, member)
            elif ending in (".txt", ".json"):
                first = captions.setdefault(key, {}).setdefault(ending, member)
            else:
                continue
            if first is not member:
                index.faults.append((REPEATED, f"{index.shard.path}/{member.name}"))
    for key, image in images.items():
        text = ""
        for ending, caption in sorted(captions.pop(key, {}).items(), reverse=True)[:1]:  # .txt where there is one
            try:
                text = _text(_read(file, caption.offset_data, caption.size), ending)
            except ValueError:
                index.faults.append((UNREADABLE, f"{index.shard.path}/{caption.name}"))
        index.locators.append(Shard.locator(image))
        index.texts.append(text)
    for members in captions.values():
        index.faults.append((NO_IMAGE, f"{index.shard.path}/{next(iter(members.values())).name}"))


def _whole_files(tar: tarfile.TarFile, index: ShardIndex) -> Iterator[tarfile.TarInfo]:
    """The files of a tar whose last byte is there; it is noted when the tar stops before its end mark."""
    try:
        for member in tar:
            if member.isreg() and member.offset_data + member.size <= index.shard.size:
                yield member
    except tarfile.TarError:
        pass  # a cut between two members goes by in silence, so the end mark is looked for anyway
    if _read(tar.fileobj, tar.offset, tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        index.faults.append((CUT_SHORT, index.shard.path))


def _text(content: bytes, ending: str) -> str:
    """The caption in a .txt, or in img2dataset's .json of a sample. Raises ValueError."""
    if ending == ".txt":
        return content.decode()
    sample = json.loads(content)
    if not isinstance(sample, dict) or not isinstance(sample.get("caption"), str):
        raise ValueError
    return sample["caption"]


def _read(file: io.FileIO, offset: int, size: int) -> bytes:
    file.seek(offset)
    return file.read(size)


def _state(file: io.FileIO) -> tuple[int, int]:
    status = os.fstat(file.fileno())
    return status.st_size, status.st_mtime_ns
