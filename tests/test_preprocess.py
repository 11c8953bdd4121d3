"""ImageTransform, from an image file to pixel_values, compared with CLIPImageProcessor."""

import glob
import os

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from component.image.load import decode, load_image
from component.image.reading import BadImageError
from component.image.transform import ImageTransform

IMAGES = sorted(glob.glob(os.path.join(ROOT, "images", "test", "*.png")))
PHOTOS = sorted(glob.glob(os.path.join(ROOT, "images", "test", "*.jpg")))


def pixel_values(transform: ImageTransform, *paths) -> torch.Tensor:
    pixels = np.stack([transform.read(str(path)) for path in paths])
    return transform.pixel_values(torch.from_numpy(pixels))


def processed(processor, *paths) -> torch.Tensor:
    return processor([load_image(str(path)) for path in paths], return_tensors="pt")["pixel_values"]


@pytest.fixture
def gradient(tmp_path):
    """Save an image whose pixels encode their position: red grows to the right, green downwards."""

    def save(width: int, height: int, name: str = "a.png", **options) -> str:
        pixels = np.zeros((height, width, 3), np.uint8)
        pixels[..., 0] = np.linspace(0, 255, width)
        pixels[..., 1] = np.linspace(0, 255, height)[:, None]
        Image.fromarray(pixels).save(tmp_path / name, **options)
        return str(tmp_path / name)

    return save


def test_bit_equal_to_the_image_processor():
    processor = CLIPImageProcessorPil()
    ours = pixel_values(ImageTransform(processor), *IMAGES, *PHOTOS)
    assert ours.shape == (len(IMAGES) + len(PHOTOS), 3, 224, 224) and ours.dtype == torch.float32
    assert torch.equal(ours, processed(processor, *IMAGES, *PHOTOS))


@pytest.mark.parametrize("size", [(300, 200), (200, 301), (225, 224), (7, 5), (1, 90), (333, 331)])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"size": {"height": 40, "width": 30}, "do_center_crop": False},
        {"size": {"shortest_edge": 32}, "crop_size": {"height": 41, "width": 50}},
        {"do_normalize": False},
        {"do_rescale": False, "image_mean": [1.0, 2.0, 3.0]},
        {"resample": Image.Resampling.BILINEAR},
    ],
)
def test_bit_equal_for_every_shape_and_setting(gradient, size, settings):
    processor = CLIPImageProcessorPil(**{"size": {"shortest_edge": 32}, "crop_size": 32, **settings})
    path = gradient(*size)
    assert torch.equal(pixel_values(ImageTransform(processor), path), processed(processor, path))


def test_draft_decoding_changes_photos_by_less_than_0_02(tmp_path):
    processor = CLIPImageProcessorPil()
    transform = ImageTransform(processor, draft=True)
    path = tmp_path / "large.jpg"
    for photo, edge in zip(PHOTOS, (896, 900, 1800, 2400, 3601), strict=True):
        small = Image.open(photo)
        small.resize((small.width * edge // min(small.size), small.height * edge // min(small.size))).save(path)
        assert 0 < (pixel_values(transform, path) - processed(processor, path)).abs().mean() < 0.02


def test_an_image_hardly_larger_than_needed_is_decoded_at_full_size():
    processor = CLIPImageProcessorPil()
    assert torch.equal(pixel_values(ImageTransform(processor, draft=True), *PHOTOS), processed(processor, *PHOTOS))


@pytest.mark.parametrize(
    ("edge", "wanted"), [(224, (300, 225)), (225, (300, 225)), (226, (600, 450)), (30, (150, 113))]
)
def test_a_draft_is_no_smaller_than_the_target(gradient, edge, wanted):
    draft, size = decode(gradient(1200, 900, "a.jpg"), edge)
    assert draft.size == wanted and size == (1200, 900)


def test_a_draft_is_upright_and_only_jpeg_is_reduced(gradient):
    exif = Image.Exif()
    exif[0x0112] = 6
    draft, size = decode(gradient(1200, 900, "a.jpg", exif=exif), 224)
    assert draft.size == (225, 300) and size == (900, 1200)
    assert decode(gradient(1200, 900, "a.png"), 224).rgb.size == (1200, 900)


def test_a_damaged_draft_is_a_bad_image(gradient, tmp_path):
    with open(gradient(1200, 900, "a.jpg"), "rb") as file:
        (tmp_path / "cut.jpg").write_bytes(file.read()[:5000])
    with pytest.raises(BadImageError, match="truncated"):
        decode(str(tmp_path / "cut.jpg"), 224)


def test_random_crops_have_the_minimum_area_and_occur_everywhere(gradient):
    torch.manual_seed(0)
    raw = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=32, do_normalize=False)
    transform = ImageTransform(raw, min_crop_area=0.25)
    crops = pixel_values(transform, *[gradient(160, 120)] * 200)
    assert crops.shape == (200, 3, 32, 32)
    left, right = crops[:, 0, 16, 0], crops[:, 0, 16, -1]
    top, bottom = crops[:, 1, 0, 16], crops[:, 1, -1, 16]
    # the centres of the 32 pixels span 31/32 of the crop
    share = (right - left) * (bottom - top) * (32 / 31) ** 2
    assert 0.2 < share.min() < 0.35 and share.max() > 0.8
    assert left.min() < 0.05 and right.max() > 0.95 and top.min() < 0.05 and bottom.max() > 0.95


def test_flip_mirrors_half_of_the_images(gradient):
    torch.manual_seed(0)
    processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=32)
    path = gradient(50, 40)
    straight = processed(processor, path)[0]
    images = pixel_values(ImageTransform(processor, flip=True), *[path] * 100)
    mirrored = [torch.equal(image, straight.flip(-1)) for image in images]
    assert all(mirror or torch.equal(image, straight) for mirror, image in zip(mirrored, images, strict=True))
    assert 30 < sum(mirrored) < 70
