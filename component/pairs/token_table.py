"""Texts → tokens, those of `encode_known`, in a fraction of the tokenizer's time.

BERT's tokenizer makes a word of each Chinese character and of each punctuation mark, wherever they are, so most of a
Chinese text can be looked up character by character. Only the words between them are tokenized, each once.

Shapes: n texts, C characters of all of them.
"""

import json
from collections.abc import Sequence
from itertools import chain

import numpy as np
from tokenizers import Tokenizer

from component.pairs.known_forms import encode_known, known_form, unknown_id

_UNASKED, _IN_A_WORD, _NO_TOKEN = -3, -2, -1  # entries of the table that are not token ids
_CODES = 0x30000  # all characters that stand alone are below, in any setting of BertNormalizer
_MOST_WORDS = 2**16


class TokenTable:
    """A table code point → token of the characters that stand alone, and a memory of the words between them.

    The tokens of a text are those of its words if each step of the tokenizer looks at one character or one word:
    BertNormalizer does (combining marks aside, which are never next to a character that stands alone),
    BertPreTokenizer and WordPiece do. With any other step, and where a text could contain an added token, the
    tokenizer gets the whole text.

    Args:
        backend: a tokenizer without truncation and padding, which must not change from now on.
    """

    def __init__(self, backend: Tokenizer):
        self._backend = backend
        self._normalizer, self._pre_tokenizer, self._model = backend.normalizer, backend.pre_tokenizer, backend.model
        self._unknown = unknown_id(backend)
        self._words: dict[str, list[int]] = {}
        self._table = np.full(_CODES + 1, _UNASKED, np.int32)
        self._table[_CODES] = _IN_A_WORD
        pipeline = json.loads(backend.to_str())
        steps = [(pipeline[name] or {}).get("type") for name in ("normalizer", "pre_tokenizer", "model")]
        added = [
            token for token in pipeline["added_tokens"] if not (token["special"] and backend.encode_special_tokens)
        ]
        self._added = [token["content"] for token in added]
        self._is_usable = (
            steps == ["BertNormalizer", "BertPreTokenizer", "WordPiece"]
            and not any(token["normalized"] for token in added)  # found in what the normalizer makes of a text
            and self._words_around(" ") == []
        )

    def tokenize(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """The tokens of all texts without special tokens, concatenated (int32), and their lengths (n,) int64.

        Raises:
            TypeError: a text contains half of a character.
        """
        joined = " ".join([*texts, ""])
        if not texts or not self._is_usable or any(content in joined for content in self._added):
            return _flat(self._ids(texts))
        entries = self._entries(np.frombuffer(joined.encode("utf-32-le", "surrogatepass"), np.uint32))
        counts = (entries >= 0).astype(np.int64)
        starts, ends = np.flatnonzero(np.diff(entries == _IN_A_WORD, prepend=False)).reshape(-1, 2).T.tolist()
        tokens, counts[starts] = _flat(self._ids_of_words([joined[a:b] for a, b in zip(starts, ends, strict=True)]))
        flat = np.repeat(entries, counts)
        flat[flat == _IN_A_WORD] = tokens
        lengths = np.fromiter(map(len, texts), np.int64, len(texts)) + 1
        return flat, np.add.reduceat(counts, lengths.cumsum() - lengths)

    def _entries(self, codes: np.ndarray) -> np.ndarray:
        """(C,) code points → (C,) their entries in the table."""
        codes = np.minimum(codes, _CODES)
        entries = self._table[codes]
        new = np.unique(codes[entries == _UNASKED])
        if len(new):
            self._table[new] = list(map(self._entry, map(chr, new.tolist())))
            entries = self._table[codes]
        return entries

    def _entry(self, character: str) -> int:
        words = self._words_around(character)
        if words == []:
            return _NO_TOKEN
        tokens = self._model.tokenize(words[0]) if words and len(words) == 1 else ()
        if len(tokens) != 1 or (tokens[0].id == self._unknown and known_form(character, self._backend) != character):
            return _IN_A_WORD
        return tokens[0].id

    def _words_around(self, character: str) -> list[str] | None:
        """The words that a character becomes between two letters; None if it joins with one of them."""
        try:
            text = self._normalizer.normalize_str(f"a{character}a")
        except UnicodeEncodeError:  # half of a character
            return None
        words = [word for word, _ in self._pre_tokenizer.pre_tokenize_str(text)]
        return words[1:-1] if len(words) > 1 and words[0] == words[-1] == "a" else None

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        return encode_known(texts, self._encode, self._backend)

    def _encode(self, texts: Sequence[str]) -> list[list[int]]:
        return [encoding.ids for encoding in self._backend.encode_batch_fast(texts, add_special_tokens=False)]

    def _ids_of_words(self, words: list[str]) -> list[list[int]]:
        new = [word for word in dict.fromkeys(words) if word not in self._words]
        if len(self._words) + len(new) > _MOST_WORDS:
            self._words, new = {}, list(dict.fromkeys(words))
        self._words.update(zip(new, self._ids(new), strict=True))
        return [self._words[word] for word in words]


def _flat(rows: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    lengths = np.fromiter(map(len, rows), np.int64, len(rows))
    return np.fromiter(chain.from_iterable(rows), np.int32, lengths.sum()), lengths
