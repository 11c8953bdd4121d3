"""Classified pictures: one folder per class, and a list of Chinese class names."""

import os
from dataclasses import dataclass

from component.image.folder import IMAGE_ENDINGS, list_images


@dataclass(frozen=True)
class ClassifiedImages:
    """Paths of pictures, the class of each as an index, and the names of the classes."""

    images: list[str]
    labels: list[int]
    class_names: list[str]


def read_image_folder(image_path: str, class_names: str) -> ClassifiedImages:
    """Read an ImageFolder (`image_path/class/picture`) and the names of its classes.

    Args:
        class_names: UTF-8 text, one class a line: either `folder<TAB>name`, or the name alone, in the order of the
            folders (sorted as numbers where all are numbers, as Chinese-CLIP has them, else as torchvision does).

    Raises:
        ValueError: names and folders do not match, or there is no picture.
        OSError: a folder or file is missing.
    """
    if not os.path.isdir(image_path):
        raise ValueError(f"{image_path} is no folder; one with a folder per class is needed.")
    folders = sorted(entry.name for entry in os.scandir(image_path) if entry.is_dir())
    if not folders:
        raise ValueError(f"{image_path} holds no folders; one per class is needed.")
    if all(folder.isdigit() for folder in folders):
        folders.sort(key=int)
    with open(class_names, encoding="utf-8-sig") as file:
        lines = [line.strip() for line in file if line.strip()]
    if any("\t" in line for line in lines):
        name_of = dict(line.split("\t", 1) for line in lines if "\t" in line)
        unnamed = [folder for folder in folders if folder not in name_of]
        if unnamed:
            raise ValueError(f"{class_names} has no line folder<TAB>name for {', '.join(unnamed[:5])}.")
        names = [name_of[folder].strip() for folder in folders]
    elif len(lines) == len(folders):
        names = lines
    else:
        raise ValueError(f"{class_names} names {len(lines)} classes, but {image_path} has {len(folders)} folders.")
    images, labels = [], []
    for label, folder in enumerate(folders):
        found = list_images(os.path.join(image_path, folder))
        images += found
        labels += [label] * len(found)
    if not images:
        raise ValueError(f"{image_path} holds no pictures ({', '.join(IMAGE_ENDINGS)}) in its folders.")
    return ClassifiedImages(images, labels, names)
