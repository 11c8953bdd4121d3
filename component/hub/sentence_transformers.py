"""The files by which sentence-transformers (5.4 and later) loads a transformers folder."""

import os
from collections.abc import Sequence

from component.ground.files import write_json

_PACKAGE = "sentence_transformers.sentence_transformer.modules"  # in 5.4 and in 6


def write_sentence_transformers(folder: str, output_name: str | None) -> None:
    """Make `SentenceTransformer(folder)` embed texts and images with the model's `get_…_features`, L2-normalised.

    Args:
        output_name: attribute of what `get_…_features` returns that holds the features; None: it returns a tensor.
    """
    methods = {
        kind: {"method": f"get_{kind}_features", "method_output_name": output_name} for kind in ("text", "image")
    }
    transformer = {
        "transformer_task": "feature-extraction",
        "modality_config": methods,
        "module_output_name": "sentence_embedding",
    }
    write_json(os.path.join(folder, "sentence_bert_config.json"), transformer)
    write_modules(folder, _PACKAGE, [("", "Transformer")])


def write_modules(folder: str, package: str, modules: Sequence[tuple[str, str]]) -> None:
    """Write the list of the modules that a text or an image goes through, and of a last one that L2-normalises.

    Args:
        package: of the classes.
        modules: folder of each, with its files, and its class.
    """
    normalize = f"{len(modules)}_Normalize"
    entries = [
        {"idx": index, "name": str(index), "path": path, "type": f"{package}.{kind}"}
        for index, (path, kind) in enumerate([*modules, (normalize, "Normalize")])
    ]
    write_json(os.path.join(folder, "modules.json"), entries)
    write_json(os.path.join(folder, "config_sentence_transformers.json"), {"similarity_fn_name": "cosine"})
    os.makedirs(os.path.join(folder, normalize), exist_ok=True)
    write_json(os.path.join(folder, normalize, "config.json"), {})
