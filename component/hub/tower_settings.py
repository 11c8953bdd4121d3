"""Settings in config.json that transformers 5 computes differently from what trained the weights, or not at all.

Taken from what `BertConfig`, the configs of the image towers and their models read in transformers 4.18 to 5.23. No
name or shape of a weight shows these settings.
"""

from typing import Any

from transformers.activations import ACT2FN

_NO_LONGER = "transformers 5 no longer computes"
_DECODER = "makes it a decoder, which does not see the whole text; if it was trained as an encoder, remove the key"
# tower → key → (accepted values besides null, what is wrong with others)
_SETTINGS: dict[str, dict[str, tuple[tuple, str]]] = {
    "text": {
        "position_embedding_type": (("absolute",), _NO_LONGER),
        "pruned_heads": (({}, []), _NO_LONGER),
        "is_decoder": ((False,), _DECODER),
        "add_cross_attention": ((False,), _DECODER),
        "use_task_id": ((False,), "BERT does not have (it is ERNIE's)"),
        "hidden_act": (tuple(ACT2FN), "transformers does not have"),
    },
    "vision": {
        "num_channels": ((3,), "does not fit RGB images"),
        "vision_use_head": ((True,), "gives no pooled output"),
        "hidden_act": (tuple(ACT2FN), "transformers does not have"),
    },
}


def settings_fault(tower: str, config: dict[str, Any]) -> str | None:
    """What is wrong with the settings of a tower, or None.

    Args:
        tower: "text" or "vision".
        config: content of the config.json of a model that has the tower, or of the tower alone.

    >>> settings_fault("text", {"model_type": "bert", "position_embedding_type": "relative_key"})
    "its config.json has position_embedding_type 'relative_key', which transformers 5 no longer computes"
    """
    nested = (config.get(f"{tower}_config{suffix}") for suffix in ("_dict", ""))
    settings = next((content for content in nested if isinstance(content, dict)), config)
    for key, (accepted, fault) in _SETTINGS[tower].items():
        value = settings.get(key)
        if value is not None and value not in accepted:
            return f"its config.json has {key} {value!r}, which {fault}"
    pad, size = settings.get("pad_token_id"), settings.get("vocab_size")
    if tower == "text" and isinstance(pad, int) and isinstance(size, int) and not 0 <= pad < size:
        return f"its config.json has pad_token_id {pad}, but vocab_size {size}"
    return None
