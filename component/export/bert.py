"""The text tower of a BertCLIP folder as a plain BERT folder."""

import os
import shutil

from transformers import BertConfig, BertTokenizerFast

from component.checkpoint import load_model, loading, quiet_transformers
from component.processor import save_tokenizer


def save_bert(model_path: str, output: str, overwrite: bool = False) -> None:
    """Write what plain `BertModel.from_pretrained` and `BertTokenizer.from_pretrained` load, weights bit for bit.

    Args:
        model_path: BertCLIP folder or hub name.
        output: new or empty folder; it appears whole or not at all.
        overwrite: also write into a folder that holds files: those of the same name are replaced, others stay.

    Raises:
        ValueError: `model_path` is not a BertCLIP checkpoint, or `output` is not empty.
    """
    if os.path.exists(output) and not os.path.isdir(output):
        raise ValueError(f"{output} is a file; a folder is needed.")
    if os.path.isdir(output) and os.listdir(output) and not overwrite:
        raise ValueError(f"{output} is not empty. Choose another folder, or write into it with --overwrite.")
    bert = load_model(model_path).text_model
    config = bert.config.to_dict()
    bert.config = BertConfig(**{**config, "model_type": "bert", "architectures": ["BertModel"]})
    with loading(model_path):
        tokenizer = BertTokenizerFast.from_pretrained(model_path)
    tokenizer.model_max_length = min(tokenizer.model_max_length, bert.config.max_position_embeddings)

    temporary = f"{output.rstrip(os.sep)}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    with quiet_transformers():
        bert.save_pretrained(temporary)
    save_tokenizer(tokenizer, temporary)
    os.makedirs(output, exist_ok=True)
    for name in os.listdir(temporary):
        os.replace(os.path.join(temporary, name), os.path.join(output, name))
    os.rmdir(temporary)
