"""JPEGs by simplejpeg and OpenCV, if both are installed: in half the time, without the interpreter's lock."""

import functools
import math
from types import ModuleType

MEANS_FROM = 1.2  # factor from which pixels are averaged; below, bicubic alone is closer to Lanczos than Hamming is


@functools.cache
def packages() -> tuple[ModuleType, ModuleType] | None:
    """simplejpeg and cv2; None unless both can be imported."""
    try:
        import cv2
        import simplejpeg
    except ImportError:
        return None
    cv2.setNumThreads(1)  # the caller has a process or a thread for every core
    return simplejpeg, cv2


def shrink_jpeg(jpeg: bytes, size: tuple[int, int], quality: int) -> bytes:
    """Scale a JPEG of three components down to (width, height), as RGB.

    Photographs are as close to Lanczos as by Pillow with Hamming's filter, or closer; pure noise is not
    (`benchmarks/data_bench.py --parts scaling`).

    Raises:
        ValueError: libjpeg refuses the file, or only warns of it.
    """
    simplejpeg, cv2 = packages()
    # A large one at 1/2, 1/4 or 1/8: twice the pixels that are needed leave enough for a good filter.
    least = 2 * min(size)
    pixels = simplejpeg.decode_jpeg(jpeg, "RGB", min_width=least, min_height=least, min_factor=2, strict=True)
    factor = min(pixels.shape[:2]) / min(size)
    if factor >= MEANS_FROM:  # bicubic to a whole multiple, and the mean of its pixels, which is fast
        multiple = math.ceil(factor)
        pixels = cv2.resize(pixels, (multiple * size[0], multiple * size[1]), interpolation=cv2.INTER_CUBIC)
        pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    elif factor > 1:
        pixels = cv2.resize(pixels, size, interpolation=cv2.INTER_CUBIC)
    return simplejpeg.encode_jpeg(pixels, quality, "RGB", "420")
