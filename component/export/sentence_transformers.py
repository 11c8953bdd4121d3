"""What sentence-transformers (5.4 and later) reads beside a folder of transformers."""

import os

from component.ground.files import write_json

_PACKAGE = "sentence_transformers.sentence_transformer.modules"  # the one place that 5.4 and 6 both have
_MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": f"{_PACKAGE}.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Normalize", "type": f"{_PACKAGE}.Normalize"},
]
_TRANSFORMER = {
    "transformer_task": "feature-extraction",
    "modality_config": {
        kind: {"method": f"get_{kind}_features", "method_output_name": "pooler_output"} for kind in ("text", "image")
    },
    "module_output_name": "sentence_embedding",
}


def write_sentence_transformers(folder: str) -> None:
    """Make `SentenceTransformer(folder)` embed texts, or images, with the model's `get_…_features`, normalised."""
    write_json(os.path.join(folder, "modules.json"), _MODULES)
    write_json(os.path.join(folder, "sentence_bert_config.json"), _TRANSFORMER)
    write_json(os.path.join(folder, "config_sentence_transformers.json"), {"similarity_fn_name": "cosine"})
    os.mkdir(os.path.join(folder, "1_Normalize"))
    write_json(os.path.join(folder, "1_Normalize", "config.json"), {})
