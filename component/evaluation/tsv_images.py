"""Pictures of a Chinese-CLIP file: one line per picture, `id<TAB>base64`."""

import base64
import binascii
import io
import os
from collections.abc import Iterable, Sequence

from PIL import Image

from component.image.load import BadImageError, load_image


class TsvImages(Sequence):
    """The pictures of a tsv as a sequence that reads and decodes each one when it is asked for.

    Only ids and file positions are held, so a file of many GB takes no memory.

    Args:
        path: the tsv.
        wanted: ids that others refer to. Those that the file lacks come last, as bad pictures.

    Attributes:
        ids: of the pictures, in the order of the sequence.

    Raises:
        ValueError: a line is not `id<TAB>base64`, or an id occurs twice.
        OSError: the file cannot be read.
    """

    def __init__(self, path: str, wanted: Iterable[str] = ()):
        self.path = path
        positions: dict[str, int] = {}
        position = 0
        with open(path, "rb") as file:
            for number, line in enumerate(file, 1):
                image_id, tab, _ = line.partition(b"\t")
                name = image_id.decode(errors="replace").strip()
                if line.strip():
                    if not tab:
                        raise ValueError(f"{path}, line {number}: expected id<TAB>base64, found no tab.")
                    if name in positions:
                        raise ValueError(f"{path}, line {number}: the id {name} occurs twice.")
                    positions[name] = position + len(image_id) + 1
                position += len(line)
        for name in wanted:
            positions.setdefault(name, -1)
        self.ids, self._positions = list(positions), list(positions.values())

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, row: int) -> Image.Image:
        """RGB picture. Raises BadImageError where the id is missing or its base64 is no picture."""
        if self._positions[row] < 0:
            raise BadImageError(f"not in {os.path.basename(self.path)}")
        with open(self.path, "rb") as file:
            file.seek(self._positions[row])
            encoded = file.readline()
        try:
            # The url-safe decoder reads the standard alphabet too; both occur.
            content = base64.urlsafe_b64decode(encoded.strip())
        except binascii.Error as error:
            raise BadImageError(f"not base64: {error}") from error
        return load_image(io.BytesIO(content))
