"""The part of an update that needs no model: unchanged, moved, copied, deleted and absent images."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache

from component.gallery.rows import ABSENT, DELETED, GalleryImage, ImageFile, digest_of, is_same_state
from component.ground.file_state import FileState
from component.image.reading import BadImageError
from component.pairs.file_content import FileContent, content_of
from component.search.scan import Found, Root
from component.search.writer import GalleryWriter

# If more images of one source than this are missing at once, they were probably not deleted by the user.
MAX_VANISHED, MAX_VANISHED_SHARE = 10, 0.2
_FILES_PER_TRANSACTION = 1000

Known = Mapping[str, GalleryImage]  # by path, see `GalleryWriter.images_by_path`
Contents = Mapping[tuple[str, FileState], FileContent]  # see `GalleryWriter.shard_contents`


@dataclass
class IndexReport:
    """What an update found and did, in numbers of images.

    Attributes:
        unchanged: neither read nor embedded.
        added: new images.
        not_embedded: those of them whose vectors were in a file already, see `Sources`.
        moved: known content under another name or modification time; not embedded.
        copies: further files with known content; not embedded.
        deleted: marked as deleted.
        absent: not found, but kept, because their disk may be away.
        known_bad: could not be decoded before, and have not changed since.
        vanished: were listed, but gone when they were to be read.
        bad_images: path → reason, of images that this run could not decode.
        unreadable: path of a file or folder → reason, also of images for which the model computes NaN; tried again at
            the next update.
        passed_over: kind of thing → number, see `Found`.
    """

    unchanged: int = 0
    added: int = 0
    not_embedded: int = 0
    moved: int = 0
    copies: int = 0
    deleted: int = 0
    absent: int = 0
    known_bad: int = 0
    vanished: int = 0
    bad_images: dict[str, str] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)
    passed_over: dict[str, int] = field(default_factory=dict)


def settle(gallery: GalleryWriter, found: Found, report: IndexReport) -> list[ImageFile]:
    """Bring the gallery up to date with a scan as far as possible without a model.

    Returns:
        The images that are left to embed.

    Raises:
        FileNotFoundError: a source is missing, and the gallery knows no image of it.
    """
    known = gallery.images_by_path()
    roots = [*found.roots, *_missing_roots(found, known)]
    vanished = [
        image
        for path, image in known.items()
        if image.status != DELETED and path not in found.files and _is_gone(path, roots)
    ]
    gallery.mark([image.row for image in vanished], ABSENT)
    changed = _settle_unchanged(gallery, found.files, known, report)
    new = _settle_known_content(gallery, changed, known, report)
    _settle_vanished(gallery, vanished, found, roots, known, report)
    bad = gallery.bad_states()
    gallery.forget_bad(path for path in bad if path not in found.files and _is_gone(path, found.roots))
    found.other_files.warn()
    report.unreadable, report.passed_over = dict(found.unreadable), dict(found.passed_over)
    return new


def _missing_roots(found: Found, known: Known) -> list[Root]:
    roots = [Root(path, is_complete=True) for path in found.missing]
    for root in roots:
        if not any(image.status != DELETED and root.is_above(path) for path, image in known.items()):
            raise FileNotFoundError(f"{root.path}: no such folder or file.")
    return roots


def _is_gone(path: str, roots: Sequence[Root]) -> bool:
    """Whether a path that a scan did not find should have been found by it."""
    above = [root for root in roots if root.is_above(path)]
    return any(root.is_complete for root in above) or (bool(above) and not os.path.lexists(path))


def _settle_unchanged(
    gallery: GalleryWriter, files: Mapping[str, ImageFile], known: Known, report: IndexReport
) -> list[ImageFile]:
    """Settle what has the state that it had, or is in a copy of its shard, and return the rest."""
    contents = gallery.shard_contents()
    shards = {(file.shard, file.state) for file in files.values() if file.shard}
    now = {shard: contents.get(shard) or content_of(*shard) for shard in shards}
    bad, changed, moved, back = gallery.bad_states(), [], {}, 0
    for path, file in files.items():
        image = known.get(path)
        is_copy = image and file.shard and _is_in_copy(file, image.file, now, contents)
        if image and (is_copy or file.is_unchanged(image.file)):
            if image.file != file or image.status:
                moved[image.row] = file  # present again, has another caption, or is of a gallery of format 1
            back += image.status == DELETED
            report.unchanged += image.status != DELETED
        elif path in bad and is_same_state(file.state, bad[path]):
            report.known_bad += 1
        else:
            changed.append(file)
    gallery.move(moved)
    gallery.keep_contents(now)
    report.moved += back
    return changed


def _is_in_copy(file: ImageFile, known: ImageFile, now: Contents, contents: Contents) -> bool:
    """Whether an image is at the same place in a shard of the same content, in whatever state its copy is."""
    is_same_place = (file.shard, file.locator) == (known.shard, known.locator)
    return is_same_place and contents.get((known.shard, known.state)) == now[file.shard, file.state]


def _settle_known_content(
    gallery: GalleryWriter, changed: Sequence[ImageFile], known: Known, report: IndexReport
) -> list[ImageFile]:
    """Give files whose content the gallery knows a row without embedding them, and return the rest.

    Only after `_settle_unchanged`: this takes over deleted rows, but not those of images that are back unchanged.
    """
    new, sizes = [], gallery.sizes()
    for start in range(0, len(changed), _FILES_PER_TRANSACTION):
        with gallery.transaction():
            for file in changed[start : start + _FILES_PER_TRANSACTION]:
                before = known.get(file.path)
                if before and before.status == DELETED:
                    before = None  # another image may have its row by now
                if file.shard or file.state.size not in sizes or not _take_over(gallery, file, before, report):
                    if before:
                        gallery.mark([before.row], DELETED)
                    new.append(file)
    return new


def _take_over(gallery: GalleryWriter, file: ImageFile, before: GalleryImage | None, report: IndexReport) -> bool:
    try:
        digest = digest_of(file.read())
    except (OSError, MemoryError, BadImageError):
        return False  # reported by the run that reads the others
    if before and before.digest == digest:  # touched but unchanged
        gallery.move({before.row: file})
        report.moved += 1
        return True
    known = gallery.image_to_take_over(digest)
    if known is None:
        return False
    if before:
        gallery.mark([before.row], DELETED)
    if known.status:
        gallery.move({known.row: file})
        report.moved += 1
    else:
        gallery.add([file], [digest], [known.taken], gallery.vectors()[[known.row]])
        report.copies += 1
    return True


def _settle_vanished(
    gallery: GalleryWriter,
    vanished: Sequence[GalleryImage],
    found: Found,
    roots: Sequence[Root],
    known: Known,
    report: IndexReport,
) -> None:
    """Mark missing images as deleted, or as absent if their disk may be away."""
    left = [image for image in vanished if (now := gallery.image(image.row)) and now.path == image.path and now.status]
    away = _away(found)
    deleted = set()
    for root in roots:
        below = [image for image in left if root.is_above(image.path)]
        if not below:
            continue
        total = sum(image.status != DELETED and root.is_above(path) for path, image in known.items())
        is_empty = not any(root.is_above(path) for path in found.files)
        is_much = len(below) > max(MAX_VANISHED, MAX_VANISHED_SHARE * total)
        for image in below:
            is_excluded = os.path.lexists(image.path)  # now, or something else has its name
            if not away(image.path, root.path) and (is_excluded or not (is_empty or is_much)):
                deleted.add(image.row)
    gallery.mark(deleted, DELETED)
    report.deleted, report.absent = len(deleted), len(left) - len(deleted)


def _away(found: Found) -> Callable[[str, str], bool]:
    """Whether a path is below a folder that is unreadable, or empty like the mount point of an unmounted disk."""

    @cache
    def is_away(folder: str) -> bool:
        if folder in found.unreadable:
            return True
        try:
            with os.scandir(folder) as entries:
                return next(entries, None) is None
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError:
            return True

    def check(path: str, root: str) -> bool:
        if path in found.unreadable:
            return True
        folder = os.path.dirname(path)
        while not is_away(folder):
            if folder in (root, os.path.dirname(folder)) or len(folder) <= len(root):
                return False
            folder = os.path.dirname(folder)
        return True

    return check
