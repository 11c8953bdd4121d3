"""When a photo was taken, by its EXIF."""

import datetime
import io

from PIL import Image

_EXIF_IFD, _DATE_TIME_ORIGINAL = 0x8769, 0x9003


def shot_date(content: bytes) -> float | None:
    """DateTimeOriginal of an image file in seconds since 1970, taken as local time; None where it is not given."""
    try:
        with Image.open(io.BytesIO(content), formats=["JPEG", "WEBP", "TIFF", "PNG"]) as image:
            exif = image.getexif() if image.format != "PNG" else _exif_of_png(image)
            text = exif.get_ifd(_EXIF_IFD)[_DATE_TIME_ORIGINAL]
        return datetime.datetime.strptime(text.strip("\0 "), "%Y:%m:%d %H:%M:%S").timestamp()
    except Exception:  # a damaged EXIF makes Pillow raise nearly anything; treat it as missing
        return None


def _exif_of_png(image: Image.Image) -> Image.Exif:
    exif = Image.Exif()
    exif.load(image.info["exif"])  # `getexif` would decode all pixels to find EXIF after them
    return exif
