"""Images that look alike: a 64-bit hash that differs in few bits between them, and a search for such hashes."""

from array import array
from collections.abc import Iterator

import numpy as np
from PIL import Image

HASH_SIDE = 32  # pixels per side that the hash uses
_BAND_BITS = 16
MAX_DISTANCE = 64 // _BAND_BITS - 1  # two hashes that differ in at most 3 bits agree in at least one of 4 bands

_k, _x = np.mgrid[:8, :HASH_SIDE]
_COSINES = np.cos(np.pi * _k * (2 * _x + 1) / (2 * HASH_SIDE))  # (8, 32): the low frequencies of a DCT-II


def perceptual_hash(image: Image.Image) -> int:
    """The 64-bit pHash of Zauner (2010): which of the 8 x 8 lowest DCT coefficients are above their median.

    Scaling, recompression and small changes of colour flip few bits.
    """
    grey = image.convert("L").resize((HASH_SIDE, HASH_SIDE), Image.Resampling.BILINEAR)
    low = (_COSINES @ np.asarray(grey, dtype=np.float64) @ _COSINES.T).ravel()
    return int.from_bytes(np.packbits(low > np.median(low[1:])).tobytes(), "big")


class NearDuplicates:
    """Stores hashes and finds one within MAX_DISTANCE bits, in about 28 bytes per hash (multi-index hashing).

    >>> images = NearDuplicates()
    >>> images.add(0b1111, owner=7)
    >>> images.find(0b0011)
    7
    """

    def __init__(self):
        self._hashes = array("Q")
        self._owners = array("q")
        self._bands: list[dict[int, array]] = [{} for _ in range(64 // _BAND_BITS)]

    def find(self, looks: int) -> int | None:
        """The owner of the first stored hash that is near, or None."""
        buckets = [bucket for band, key in self._keys(looks) if (bucket := band.get(key))]
        if not buckets:
            return None
        candidates = np.concatenate([np.frombuffer(bucket, dtype=np.uint32) for bucket in buckets])
        different = np.frombuffer(self._hashes, dtype=np.uint64)[candidates] ^ np.uint64(looks)
        distance = np.unpackbits(different.view(np.uint8)).reshape(-1, 64).sum(axis=1)
        near = candidates[distance <= MAX_DISTANCE]
        return self._owners[near.min()] if len(near) else None

    def add(self, looks: int, owner: int) -> None:
        """Store a hash. `owner`: any signed 64-bit number."""
        for band, key in self._keys(looks):
            band.setdefault(key, array("I")).append(len(self._hashes))
        self._hashes.append(looks)
        self._owners.append(owner)

    def _keys(self, looks: int) -> Iterator[tuple[dict[int, array], int]]:
        for i, band in enumerate(self._bands):
            yield band, looks >> (i * _BAND_BITS) & (2**_BAND_BITS - 1)
