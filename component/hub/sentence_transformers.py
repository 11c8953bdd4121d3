"""The files by which sentence-transformers (5.4 and later) loads a transformers folder."""

import os

from component.ground.files import write_json

_PACKAGE = "sentence_transformers.sentence_transformer.modules"  # in 5.4 and in 6
_MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": f"{_PACKAGE}.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Normalize", "type": f"{_PACKAGE}.Normalize"},
]


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
    write_json(os.path.join(folder, "modules.json"), _MODULES)
    write_json(os.path.join(folder, "sentence_bert_config.json"), transformer)
    write_json(os.path.join(folder, "config_sentence_transformers.json"), {"similarity_fn_name": "cosine"})
    os.makedirs(os.path.join(folder, "1_Normalize"), exist_ok=True)
    write_json(os.path.join(folder, "1_Normalize", "config.json"), {})
