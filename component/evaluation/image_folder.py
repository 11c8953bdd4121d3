"""Classified pictures: one folder per class, and a list of Chinese class names."""

import os
from dataclasses import dataclass

from component.evaluation.class_names import read_class_names
from component.image.folder import IMAGE_ENDINGS, PassedOver, is_hidden, list_images


@dataclass(frozen=True)
class ClassifiedImages:
    """Paths of pictures, the class of each as an index, and the names of the classes."""

    images: list[str]
    labels: list[int]
    class_names: list[str]


def read_image_folder(image_path: str, class_names: str) -> ClassifiedImages:
    """Read an ImageFolder (`image_path/class/picture`) and the names of its classes.

    Args:
        class_names: file for `read_class_names`. The order of the folders: sorted as numbers where all are numbers, as
            Chinese-CLIP has them, else as torchvision does. Hidden folders are no classes.

    Raises:
        ValueError: names and folders do not match, or there is no picture.
        OSError: a folder or file is missing.
    """
    if not os.path.isdir(image_path):
        raise ValueError(f"{image_path} is no folder; one with a folder per class is needed.")
    folders = sorted(entry.name for entry in os.scandir(image_path) if entry.is_dir() and not is_hidden(entry.name))
    if not folders:
        raise ValueError(f"{image_path} holds no folders; one per class is needed.")
    if all(folder.isdecimal() for folder in folders):
        folders.sort(key=int)
    names = read_class_names(class_names, folders)
    images, labels, passed_over = [], [], PassedOver()
    for label, folder in enumerate(folders):
        found = list_images(os.path.join(image_path, folder), passed_over)
        images += found
        labels += [label] * len(found)
    if not images:
        raise ValueError(f"{image_path} holds no pictures ({', '.join(IMAGE_ENDINGS)}) in its folders.")
    passed_over.warn()
    return ClassifiedImages(images, labels, names)
