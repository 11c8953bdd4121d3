"""The formats that a checkpoint can be exported to, each a module of that name in this folder.

Its `write(model_path, folder, **options)` fills an empty folder, compares the result with the model, and raises
ValueError if the format cannot express the model.
"""

import importlib

from component.ground.quick_imports import quick_imports

FORMATS = {
    "checkpoint": "a BertCLIP as training writes it today; with --dim, of shorter vectors",
    "chinese-clip": "a native ChineseCLIPModel: AutoModel, pipelines, sentence-transformers (transformers 5)",
    "vision-text-dual-encoder": "a VisionTextDualEncoderModel: AutoModel, sentence-transformers (transformers 5)",
    "onnx": "onnx/text_model.onnx, vision_model.onnx and model.onnx (of a text tower alone the first)",
    "sentence-transformers": "the text tower alone: SentenceTransformer, any vector database that takes one",
    "immich": "textual/ and visual/ for the search of Immich, which deletes a folder that it cannot load",
    "bert": "the text tower alone, as save_bert_checkpoint.py writes it",
}


def export(model_path: str, name: str, output: str, overwrite: bool | None = None, **options) -> None:
    """Write a BertCLIP folder in another format and compare it with the model.

    Args:
        model_path: BertCLIP or Chinese-CLIP folder, or hub name.
        name: one of `FORMATS`.
        output: new or empty folder; it appears complete or not at all.
        overwrite: see `export_folder`.
        options: options of the format.

    Raises:
        ValueError: `model_path` is not a BertCLIP, or the format cannot express it; `output` is not empty, or in use
            by another process; the embeddings of the export differ.
        ModuleNotFoundError: the format needs a package that is not installed; the message names it.
    """
    from component.export.folder import export_folder  # here, or --help needs the packages

    with export_folder(model_path, output, overwrite) as folder:
        with quick_imports():
            write = importlib.import_module(f"component.export.{name.replace('-', '_')}").write
        write(model_path, folder, **options)
