"""The formats that a checkpoint can be exported to. Each is the file of its name in this folder.

Such a file has `write(model_path, folder, **options)`: it fills an empty folder, compares what it wrote with the
model, and raises ValueError where the model does not go into the format.
"""

import importlib

from component.export.folder import export_folder

FORMATS = {
    "chinese-clip": "a native ChineseCLIPModel, which AutoModel, pipelines and sentence-transformers load",
    "vision-text-dual-encoder": "a VisionTextDualEncoderModel, which sentence-transformers loads too",
    "onnx": "onnx/text_model.onnx, vision_model.onnx and model.onnx: onnxruntime, transformers.js",
    "immich": "textual/ and visual/ for the search of Immich",
    "bert": "the text tower alone, as save_bert_checkpoint.py writes it",
}


def export(model_path: str, name: str, output: str, **options) -> None:
    """Write a BertCLIP folder in another format, whole or not at all, and compared with the model.

    Args:
        model_path: BertCLIP or Chinese-CLIP folder, or hub name.
        name: one of `FORMATS`.
        output: new or empty folder.
        options: of the format.

    Raises:
        ValueError: `model_path` is no BertCLIP, or one that the format has no place for; `output` is not empty, or
            being written by another run; what was written gives other embeddings.
        ModuleNotFoundError: a package is missing that the format needs; the message names it.
    """
    with export_folder(model_path, output) as folder:
        write = importlib.import_module(f"component.export.{name.replace('-', '_')}").write
        write(model_path, folder, **options)
