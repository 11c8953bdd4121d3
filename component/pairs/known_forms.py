"""Words that the vocabulary lacks, in the plain form that it may have.

Full-width letters and digits, circled numbers, ligatures and compatibility ideographs are [UNK] for most Chinese
BERTs, which have the plain characters that these stand for (NFKC, Unicode Standard Annex 15). To normalise every text
would change the tokens of ordinary ones, whose full-width commas are in the vocabulary. So only a word that would be
[UNK] takes its NFKC form, and only if the vocabulary has all of that. What a word becomes depends on nothing else, so
that a caption in training and a query get the same tokens.
"""

import logging
import unicodedata
from collections.abc import Callable, Sequence

from tokenizers import Tokenizer

logger = logging.getLogger(__name__)


def unknown_id(backend: Tokenizer) -> int | None:
    """The id of [UNK]; None if the tokenizer has none."""
    token = getattr(backend.model, "unk_token", None)
    return None if token is None else backend.token_to_id(token)


def encode_known(
    texts: Sequence[str], encode: Callable[[Sequence[str]], list[list[int]]], backend: Tokenizer
) -> list[list[int]]:
    """The tokens of each text, its unknown words in their NFKC form if that is known.

    Args:
        encode: texts → tokens of each, by `backend`, truncated or with special tokens as the caller wants them.
    """
    rows, unknown = encode(texts), unknown_id(backend)
    forms = {row: known_form(texts[row], backend) for row, ids in enumerate(rows) if unknown in ids}
    forms = {row: form for row, form in forms.items() if form != texts[row]}
    if forms:
        for row, ids in zip(forms, encode(list(forms.values())), strict=True):
            rows[row] = ids
    return rows


def known_form(text: str, backend: Tokenizer) -> str:
    """The text with each unknown word in its NFKC form, if that is known: "３Ｄ眼镜，好" becomes "3D眼镜，好"."""
    unknown, parts, end = unknown_id(backend), [], 0
    encoding = backend.encode(text, add_special_tokens=False)
    for token, (start, stop) in zip(encoding.ids, encoding.offsets, strict=True):
        if token != unknown:
            continue
        form = unicodedata.normalize("NFKC", text[start:stop])
        if unknown not in backend.encode(form, add_special_tokens=False).ids:
            parts += [text[end:start], form]
            end = stop
    return "".join([*parts, text[end:]])


def warn_of_unknown(count: int, texts: int, example: str) -> None:
    """Log that `count` of `texts` texts, such as `example`, have words that are [UNK]."""
    logger.warning(
        "%d of %d texts %s a word that the vocabulary lacks, which the model cannot distinguish from other unknown "
        "words ([UNK]): %r",
        *(count, texts, "has" if count == 1 else "have", example),
    )
