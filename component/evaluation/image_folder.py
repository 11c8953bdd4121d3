"""Classified images: one folder per class, and a list of Chinese class names."""

import os
from dataclasses import dataclass

from component.evaluation.class_names import read_class_names
from component.image.folder import IMAGE_ENDINGS, PassedOver, is_hidden, list_images


@dataclass(frozen=True)
class ClassifiedImages:
    """Images and their classes.

    Attributes:
        images: paths.
        labels: the class of each image, as an index into `class_names`.
    """

    images: list[str]
    labels: list[int]
    class_names: list[str]


def read_image_folder(image_path: str, class_names: str) -> ClassifiedImages:
    """Read an ImageFolder (`image_path/class/image`) and the names of its classes.

    Hidden folders are ignored. The order of the folders: numeric if all names are numbers, as in Chinese-CLIP, else
    alphabetic, as in torchvision.

    Args:
        class_names: a file for `read_class_names`.

    Raises:
        ValueError: names and folders do not match, or there is no image.
        OSError: a folder or file does not exist.
    """
    if not os.path.isdir(image_path):
        raise ValueError(f"{image_path} is not a folder. Give one that contains a folder of images per class.")
    folders = sorted(entry.name for entry in os.scandir(image_path) if entry.is_dir() and not is_hidden(entry.name))
    if not folders:
        raise ValueError(f"{image_path} contains no folders. Give one that contains a folder of images per class.")
    if all(folder.isdecimal() for folder in folders):
        folders.sort(key=int)
    names = read_class_names(class_names, folders)
    images, labels, passed_over = [], [], PassedOver()
    for label, folder in enumerate(folders):
        found = list_images(os.path.join(image_path, folder), passed_over)
        images += found
        labels += [label] * len(found)
    if not images:
        raise ValueError(f"{image_path} has no images ({', '.join(IMAGE_ENDINGS)}) in its folders.")
    passed_over.warn()
    return ClassifiedImages(images, labels, names)
