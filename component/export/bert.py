"""The text tower of a BertCLIP folder as a plain BERT folder."""

import logging
import os
import shutil

from transformers import BertConfig

from component.checkpoint import load_model
from component.files import new_folder
from component.lock import sole_writer
from component.pretrained import quiet_transformers
from component.processor import load_tokenizer, save_tokenizer

logger = logging.getLogger(__name__)


def save_bert(model_path: str, output: str, overwrite: bool = False) -> None:
    """Write what plain `BertModel.from_pretrained` and `BertTokenizer.from_pretrained` load, weights bit for bit.

    A model with "cls" pooling has no pooler to write, and a warning says how to load such a BERT.

    Args:
        model_path: BertCLIP or Chinese-CLIP folder, or hub name.
        output: new or empty folder; it appears whole or not at all.
        overwrite: also write into a folder that holds files: those of the same name are replaced, others stay.

    Raises:
        ValueError: `model_path` is not a BertCLIP checkpoint; `output` is not empty, or being written by another run.
    """
    output = os.path.realpath(output)
    if os.path.exists(output) and not os.path.isdir(output):
        raise ValueError(f"{output} is a file; a folder is needed.")
    if output == os.path.realpath(model_path):
        raise ValueError(f"{output} is the model itself; give another folder.")
    if os.path.ismount(output):
        raise ValueError(f"{output} is a mount point, which no new folder can replace. Give a folder inside it.")
    os.makedirs(os.path.dirname(output), exist_ok=True)
    with sole_writer(output):
        if os.path.isdir(output) and os.listdir(output) and not overwrite:
            raise ValueError(f"{output} is not empty. Choose another folder, or write into it with --overwrite.")
        bert = load_model(model_path).text_model
        config = bert.config.to_dict()
        pooling = config.pop("text_pooling")
        bert.config = BertConfig(**{**config, "model_type": "bert", "architectures": ["BertModel"]})
        tokenizer = load_tokenizer(model_path)
        tokenizer.model_max_length = min(tokenizer.model_max_length, bert.config.max_position_embeddings)
        with new_folder(output) as folder:
            with quiet_transformers():
                bert.save_pretrained(folder)
            save_tokenizer(tokenizer, folder)
            if os.path.isdir(output):
                shutil.copytree(output, folder, symlinks=True, copy_function=_keep, dirs_exist_ok=True)
    if pooling == "cls":
        logger.warning(
            "%s has no pooler, as Chinese-CLIP: load it with BertModel.from_pretrained(%r, add_pooling_layer=False), "
            "and take last_hidden_state[:, 0] for the text.",
            output,
            output,
        )


def _keep(old: str, new: str) -> None:
    """Another file of a folder that is replaced: it moves along, without being copied where that is possible."""
    if os.path.lexists(new):
        return
    try:
        os.link(old, new)
    except OSError:
        shutil.copy2(old, new)
