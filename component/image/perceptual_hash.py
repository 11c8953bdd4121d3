"""Pictures that look alike: a 64-bit hash in which they differ in few bits, and a search for such hashes."""

from array import array

import numpy as np
from PIL import Image

HASH_SIDE = 32  # pixels per side that the hash looks at
_BAND_BITS = 16
MAX_DISTANCE = 64 // _BAND_BITS - 1  # two hashes that differ in 3 bits at most agree in one of the 4 bands

_k, _x = np.mgrid[:8, :HASH_SIDE]
_COSINES = np.cos(np.pi * _k * (2 * _x + 1) / (2 * HASH_SIDE))  # (8, 32): the low frequencies of a DCT-II


def perceptual_hash(image: Image.Image) -> int:
    """The pHash of Zauner (2010): signs of the 8 x 8 lowest DCT coefficients around their median, as 64 bits.

    Scaling, recompression and small changes of colour flip few of them.
    """
    grey = image.convert("L").resize((HASH_SIDE, HASH_SIDE), Image.Resampling.BILINEAR)
    low = (_COSINES @ np.asarray(grey, dtype=np.float64) @ _COSINES.T).ravel()
    return int.from_bytes(np.packbits(low > np.median(low[1:])).tobytes(), "big")


class NearDuplicates:
    """Remembers hashes and finds one within MAX_DISTANCE bits. About 28 bytes each (multi-index hashing)."""

    def __init__(self):
        self._hashes = array("Q")
        self._owners = array("q")
        self._bands: list[dict[int, array]] = [{} for _ in range(64 // _BAND_BITS)]

    def find(self, looks: int) -> int | None:
        """The owner of the earliest hash that is near, None when there is none."""
        places = [bucket for band, key in self._keys(looks) if (bucket := band.get(key))]
        if not places:
            return None
        candidates = np.concatenate([np.frombuffer(bucket, dtype=np.uint32) for bucket in places])
        different = np.frombuffer(self._hashes, dtype=np.uint64)[candidates] ^ np.uint64(looks)
        distance = np.unpackbits(different.view(np.uint8)).reshape(-1, 64).sum(axis=1)
        near = candidates[distance <= MAX_DISTANCE]
        return self._owners[near.min()] if len(near) else None

    def add(self, looks: int, owner: int) -> None:
        """Remember a hash. `owner`: any signed 64-bit number."""
        for band, key in self._keys(looks):
            band.setdefault(key, array("I")).append(len(self._hashes))
        self._hashes.append(looks)
        self._owners.append(owner)

    def _keys(self, looks: int):
        for i, band in enumerate(self._bands):
            yield band, looks >> (i * _BAND_BITS) & (2**_BAND_BITS - 1)
