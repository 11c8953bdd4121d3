"""Load and save the tokenizer of a BERT so that texts get the tokens that the weights were trained with."""

import json
import os
from typing import Any

import transformers
from tokenizers import Tokenizer
from transformers import BertTokenizerFast

from component.hub.pretrained import find_file, find_pretrained, loading

# Settings of BertNormalizer in tokenizer.json → arguments of BertTokenizerFast, which ignores the former.
_SETTINGS = {
    "lowercase": "do_lower_case",
    "strip_accents": "strip_accents",
    "handle_chinese_chars": "tokenize_chinese_chars",
}
_PROBES = ("Ａ１①㈱ﬁ", "Café 2 Naïve", "don't 3.14 a-b_c", "一只小狗 在 摇尾巴", "x" * 101, "2024年10月")


def load_tokenizer(path: str) -> BertTokenizerFast:
    """Load the tokenizer of a folder or Hub name. It tokenizes "[PAD]" and the like in a text as text.

    Raises:
        ValueError: there is no vocabulary, or it lacks a special token; or tokenizer.json has a pipeline of its own,
            which `BertTokenizerFast` would replace by BERT's default.
    """
    source = find_pretrained(path)
    with loading(path):
        file = find_file(source, "tokenizer.json")
        own = file and Tokenizer.from_file(file)
        settings = own and _settings(own, find_file(source, "tokenizer_config.json"))
        tokenizer = BertTokenizerFast.from_pretrained(source, split_special_tokens=True, **(settings or {}))
    _require_vocabulary(path, tokenizer)
    for backend in filter(None, (own, tokenizer.backend_tokenizer)):
        backend.no_truncation()  # of the call before it was saved
        backend.no_padding()
    if own:
        _require_default_pipeline(path, own, tokenizer)
    return tokenizer


def save_tokenizer(tokenizer: BertTokenizerFast, path: str) -> None:
    """Save tokenizer.json without the truncation and padding of the last call, and vocab.txt for older versions."""
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    tokenizer.save_pretrained(path)
    vocabulary = tokenizer.get_vocab()
    with open(os.path.join(path, "vocab.txt"), "w", encoding="utf-8") as file:
        file.writelines(f"{token}\n" for token in sorted(vocabulary, key=vocabulary.get))


def _settings(own: Tokenizer, config_file: str | None) -> dict[str, Any]:
    """The settings of tokenizer.json, unless tokenizer_config.json, which has priority in every version, has them."""
    normalizer = _components(own)["normalizer"] or {}
    config = {}
    if config_file:
        with open(config_file, encoding="utf-8") as file:
            config = json.load(file)
    return {name: normalizer[key] for key, name in _SETTINGS.items() if key in normalizer and name not in config}


def _require_vocabulary(path: str, tokenizer: BertTokenizerFast) -> None:
    """Without its files, transformers makes a tokenizer of the special tokens alone, and every character is [UNK]."""
    vocabulary = tokenizer.backend_tokenizer.get_vocab(with_added_tokens=False)
    if set(vocabulary) <= set(tokenizer.all_special_tokens):
        raise ValueError(
            f"{path} has neither tokenizer.json nor vocab.txt with a vocabulary in it. Put the one there that the "
            "BERT was trained with."
        )
    special = (tokenizer.pad_token, tokenizer.unk_token, tokenizer.cls_token, tokenizer.sep_token)
    if missing := [token for token in special if token not in vocabulary]:
        has_mark = any(token.startswith("\ufeff") for token in vocabulary)
        mend = "Save vocab.txt as UTF-8 without a byte order mark." if has_mark else "Put BERT's own vocabulary there."
        raise ValueError(f"the vocabulary of {path} lacks {' and '.join(missing)}. {mend}")


def _require_default_pipeline(path: str, own: Tokenizer, tokenizer: BertTokenizerFast) -> None:
    """Compare tokenizer.json with what was loaded. BERT's own settings, which were passed on, may differ."""
    theirs, ours = _components(own), _components(tokenizer.backend_tokenizer)
    ours["vocabulary"] = {token: ours["vocabulary"].get(token) for token in theirs["vocabulary"]}
    names = [name for name in theirs if _without_settings(theirs[name]) != _without_settings(ours[name])]
    if not names:
        return
    value = json.dumps(theirs[names[0]], ensure_ascii=False)
    example = ""
    for text in _PROBES:
        tokens = own.encode(text).tokens[:9], tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"])[:9]
        if tokens[0] != tokens[1]:
            example = f" ({text[:20]!r} becomes {' '.join(tokens[1])} instead of {' '.join(tokens[0])})"
            break
    raise ValueError(
        f"tokenizer.json of {path} has its own {names[0]}, {value[:200]}, which BertTokenizerFast of transformers "
        f"{transformers.__version__} replaces by BERT's default{example}. Use a BERT with the default pipeline; or "
        "remove tokenizer.json, if the BERT was trained with vocab.txt alone."
    )


def _components(tokenizer: Tokenizer) -> dict[str, Any]:
    """The components of a tokenizer that decide the tokens."""
    content = json.loads(tokenizer.to_str())
    model = content["model"]
    del model["vocab"]
    components = {name: content[name] for name in ("normalizer", "pre_tokenizer")}
    for name, steps in (("normalizer", "normalizers"), ("pre_tokenizer", "pretokenizers")):
        while components[name] and len(components[name].get(steps, ())) == 1:  # a sequence of one step
            components[name] = components[name][steps][0]
    ends = tokenizer.encode("").tokens
    return {**components, "model": model, "vocabulary": tokenizer.get_vocab(), "special tokens at the ends": ends}


def _without_settings(component: Any) -> Any:
    if isinstance(component, dict) and component.get("type") == "BertNormalizer":
        return {key: value for key, value in component.items() if key not in _SETTINGS}
    return component
