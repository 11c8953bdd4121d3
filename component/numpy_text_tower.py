"""The text tower of a checkpoint in numpy: a few texts are embedded a tenth of a second after the start.

Importing torch and transformers takes three seconds, computing one text a hundredth of a second. The computation is
BertModel's, and `tests/test_numpy_text_tower.py` compares them. What else there is to know of the model comes from
an earlier load by `load_identified`, which keeps the model's identity with the states of its files.

Shapes: T tokens, H width of the tower, D projection width.
"""

import json
import math
import os
from collections.abc import Callable, Sequence

import numpy as np
from tokenizers import Tokenizer

from component.hub.identity import ModelIdentity, tokenizer_digest
from component.hub.kept_identity import file_states, local_folder, read_identity
from component.pairs.known_forms import encode_known, unknown_id, warn_of_unknown

_RENAMED = "text_model.embeddings.LayerNorm.weight"  # gamma in old files, which transformers renames
MOST_TEXTS = 8  # for more, the model is faster in all
_ACTIVATIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "gelu": lambda x: x * (1 + _erf(x / math.sqrt(2))) / 2,
    "gelu_new": lambda x: x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,
    "relu": lambda x: np.maximum(x, 0),
}


def _erf(x: np.ndarray) -> np.ndarray:
    return np.fromiter(map(math.erf, x.ravel().tolist()), np.float32, x.size).reshape(x.shape)


class NumpyTextTower:
    """The text tower and its projection, fp32, in mapped memory. Open it with `open_text_tower`.

    Attributes:
        identity: of the whole model.
        logit_scale: inverse temperature of the model, already exponentiated.
    """

    def __init__(self, weights: dict[str, np.ndarray], tokenizer: Tokenizer, identity: ModelIdentity):
        self._weights, self._tokenizer, self.identity = weights, tokenizer, identity
        settings = identity.text.settings
        self._heads, self._epsilon = settings["num_attention_heads"], settings["layer_norm_eps"]
        self._activation = _ACTIVATIONS[settings["hidden_act"]]
        self._has_pooler = settings["text_pooling"] == "pooler"
        self.logit_scale = float(np.exp(weights["logit_scale"]).item())

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """(n, D) fp32, L2-normalised, as `component.embedding.embed_texts` gives them.

        Raises:
            ValueError: the model gives NaN.
        """
        tokens = encode_known(texts, self._encode, self._tokenizer)
        unknown = unknown_id(self._tokenizer)
        if rows := [row for row, ids in enumerate(tokens) if unknown in ids]:
            warn_of_unknown(len(rows), len(texts), texts[rows[0]])
        features = np.stack(list(map(self._features, tokens)))
        embeds = features / np.linalg.norm(features, axis=1, keepdims=True).clip(1e-12)
        if not np.isfinite(embeds).all():
            raise ValueError("The model embeds texts as NaN: its training diverged, or its weights are damaged.")
        return embeds

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self._tokenizer.encode_batch(texts)]

    def _features(self, ids: list[int]) -> np.ndarray:
        """(T,) token ids → (D,) features."""
        table = self._weights
        embeddings = "text_model.embeddings"
        x = table[f"{embeddings}.word_embeddings.weight"][ids] + table[f"{embeddings}.token_type_embeddings.weight"][0]
        x = self._norm(embeddings, x + table[f"{embeddings}.position_embeddings.weight"][: len(ids)])
        layer = 0
        while f"text_model.encoder.layer.{layer}.output.dense.weight" in table:
            x = self._layer(f"text_model.encoder.layer.{layer}", x)
            layer += 1
        first = x[0]
        if self._has_pooler:
            first = np.tanh(self._linear("text_model.pooler.dense", first))
        return table["text_projection.weight"] @ first

    def _layer(self, name: str, x: np.ndarray) -> np.ndarray:
        """(T, H) → (T, H), one BertLayer."""
        query, key, value = (
            self._linear(f"{name}.attention.self.{part}", x).reshape(len(x), self._heads, -1).swapaxes(0, 1)
            for part in ("query", "key", "value")
        )
        scores = query @ key.swapaxes(1, 2) / math.sqrt(query.shape[-1])
        shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
        shares /= shares.sum(axis=-1, keepdims=True)
        attended = (shares @ value).swapaxes(0, 1).reshape(len(x), -1)
        x = self._norm(f"{name}.attention.output", x + self._linear(f"{name}.attention.output.dense", attended))
        inner = self._activation(self._linear(f"{name}.intermediate.dense", x))
        return self._norm(f"{name}.output", x + self._linear(f"{name}.output.dense", inner))

    def _linear(self, name: str, x: np.ndarray) -> np.ndarray:
        return x @ self._weights[f"{name}.weight"].T + self._weights[f"{name}.bias"]

    def _norm(self, name: str, x: np.ndarray) -> np.ndarray:
        x = x - x.mean(axis=-1, keepdims=True)
        x /= np.sqrt((x * x).mean(axis=-1, keepdims=True) + np.float32(self._epsilon))
        return x * self._weights[f"{name}.LayerNorm.weight"] + self._weights[f"{name}.LayerNorm.bias"]


def open_text_tower(path: str) -> NumpyTextTower | None:
    """The text tower of a folder or hub name; None if only the model itself can embed its texts.

    That is so if `load_identified` has not loaded the folder in its present state, or if the weights are not in one
    safetensors file in fp32.
    """
    states = file_states(path)
    identity = read_identity(path, states)
    needed = {"config.json", "model.safetensors", "tokenizer.json"}
    if identity is None or not needed <= states.keys() or "adapter_config.json" in states:
        return None
    folder, settings, inputs = local_folder(path), identity.text.settings, identity.text.inputs
    with open(os.path.join(folder, "config.json"), encoding="utf-8") as file:
        config = json.load(file)
    text_config = config.get("text_config") or {}
    dtypes = {settings.get(key) for settings in (config, text_config) for key in ("dtype", "torch_dtype")}
    if config.get("text_config_dict") or settings["hidden_act"] not in _ACTIVATIONS or dtypes - {None, "float32"}:
        return None
    tokenizer = Tokenizer.from_file(os.path.join(folder, "tokenizer.json"))
    tokenizer.no_padding()
    if tokenizer_digest(tokenizer) != inputs["tokenizer"]:
        return None
    tokenizer.encode_special_tokens = True
    tokenizer.enable_truncation(inputs["model_max_length"])
    weights = _map(os.path.join(folder, "model.safetensors"))
    layers = {name.split(".")[3] for name in weights if name.startswith("text_model.encoder.layer.")}
    is_complete = len(layers) == text_config.get("num_hidden_layers", 12) and _RENAMED in weights
    if not is_complete or tokenizer.get_vocab_size() > len(weights["text_model.embeddings.word_embeddings.weight"]):
        return None
    return NumpyTextTower(weights, tokenizer, identity)


def _map(path: str) -> dict[str, np.ndarray]:
    """The tensors of a safetensors file in fp32, mapped; {} if some have another precision.

    The format: 8 bytes with the length of a JSON header, the header, the data.
    """
    content = np.memmap(path, np.uint8, "r")
    start = 8 + int(content[:8].view("<u8")[0])
    header = json.loads(content[8:start].tobytes())
    header.pop("__metadata__", None)
    tensors = {name: tensor for name, tensor in header.items() if not name.endswith("position_ids")}
    if any(tensor["dtype"] != "F32" for tensor in tensors.values()):
        return {}
    return {
        name: content[start + begin : start + end].view("<f4").reshape(tensor["shape"])
        for name, tensor in tensors.items()
        for begin, end in [tensor["data_offsets"]]
    }
