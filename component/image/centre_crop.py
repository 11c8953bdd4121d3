"""Scaling and cropping as CLIP's image processor does it, without importing torch or transformers."""

from dataclasses import dataclass

from PIL import Image


@dataclass(frozen=True)
class CentreCrop:
    """Scales a decoded image and crops its centre, bit-equal to `CLIPImageProcessorPil`. Cheap to send to a process.

    Attributes:
        scale_to: the length of the shorter edge in pixels, or (width, height); None: not scaled.
        crop_to: (width, height); None: not cropped.
        resample: PIL's filter.
    """

    scale_to: int | tuple[int, int] | None
    crop_to: tuple[int, int] | None
    resample: int

    @classmethod
    def of(cls, image_processor) -> "CentreCrop":
        """The settings of a `CLIPImageProcessorPil`."""
        size, crop_size = image_processor.size, image_processor.crop_size
        return cls(
            (size.shortest_edge or (size.width, size.height)) if image_processor.do_resize else None,
            (crop_size.width, crop_size.height) if image_processor.do_center_crop else None,
            int(image_processor.resample),
        )

    def __call__(self, rgb: Image.Image, size: tuple[int, int]) -> Image.Image:
        """`rgb`, `size`: as in `DecodedImage`."""
        if self.scale_to is not None:
            # `size`, not rgb.size: the size of a draft is rounded, which can move the centre by a pixel of the result.
            rgb = rgb.resize(self._scaled(*size), self.resample)
        if self.crop_to is not None:
            width, height = self.crop_to
            left, top = (rgb.width - width) // 2, (rgb.height - height) // 2
            rgb = rgb.crop((left, top, left + width, top + height))  # black beyond the image
        return rgb

    def _scaled(self, width: int, height: int) -> tuple[int, int]:
        if isinstance(self.scale_to, tuple):
            return self.scale_to
        long = int(self.scale_to * max(width, height) / min(width, height))
        return (self.scale_to, long) if width <= height else (long, self.scale_to)
