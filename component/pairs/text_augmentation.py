"""Captions as people type them: inside a sentence, or with a slip.

The tables are tokenized once for all epochs, so this works on tokens, and gives those of the changed texts.
Shapes: n texts of a batch.
"""

from collections.abc import Sequence

import numpy as np
from numpy import ndarray
from pandas.util import hash_array

from component.pairs.ragged import RaggedArray, join_rows
from component.pairs.templates import PLACEHOLDER, Template

_PROBES = ("狗", "dog")
_FEWEST_CHARACTERS = 3  # of a text from which one is dropped


class TextAugmentation:
    """Puts some texts into random templates, and makes random slips in some.

    A slip swaps two neighbouring Chinese characters of a text, or drops one. Each of them is a token of its own, so
    the tokens of the changed text are known; words in other letters do not change.

    What happens to a text depends only on its row and the seed, not on its batch, worker or process.

    Args:
        tokenizer: of the BERT.
        max_seq_length: tokens per text including [CLS] and [SEP]; longer texts are cut, as they are in the table.
        templates: each is as likely as the others.
        template_probability: share of the texts that are put into a template.
        noise: share of the texts that get a slip.

    Raises:
        ValueError: the vocabulary lacks a word of a template; a template touches the words of a caption, or leaves no
            room for one; or slips are asked for, but the tokenizer does not separate Chinese characters.
    """

    def __init__(
        self,
        tokenizer,
        max_seq_length: int,
        templates: Sequence[Template] = (),
        template_probability: float = 0.5,
        noise: float = 0.0,
    ):
        self._max_seq_length, self._cls, self._sep = max_seq_length, tokenizer.cls_token_id, tokenizer.sep_token_id
        self._template_probability, self._noise = template_probability if templates else 0.0, noise
        sides = [_sides(template, tokenizer, max_seq_length) for template in templates]
        before, after = zip(*sides, ((), ()), strict=True)  # the last one is for texts without a template
        self._before, self._after = RaggedArray.of(before, "i"), RaggedArray.of(after, "i")
        self._is_character = _characters(tokenizer) if noise else None

    def __call__(
        self, rows: ndarray, tokens: ndarray, lengths: ndarray, seed: Sequence[int]
    ) -> tuple[ndarray, ndarray]:
        """The tokens of the changed texts, concatenated, and their lengths (n,).

        Args:
            rows: (n,) of the table.
            tokens: of the texts, concatenated, each with [CLS] and [SEP].
            lengths: (n,) tokens of each text.
            seed: non-negative numbers.
        """
        keys = np.random.SeedSequence(seed, spawn_key=(1,)).generate_state(5, np.uint64)
        # (5, n) from 0 to below 1
        draws = np.array([hash_array(rows.astype(np.uint64) ^ key) >> np.uint64(11) for key in keys]) * 2.0**-53
        if self._noise:
            tokens, lengths = self._with_slips(tokens, lengths, draws[0] < self._noise, *draws[1:3])
        if self._template_probability:
            which = (draws[4] * (len(self._before) - 1)).astype(np.int64)
            which[draws[3] >= self._template_probability] = len(self._before) - 1
            tokens, lengths = self._in_templates(tokens, lengths, which)
        return tokens, lengths

    def _with_slips(
        self, tokens: ndarray, lengths: ndarray, slips: ndarray, kind: ndarray, place: ndarray
    ) -> tuple[ndarray, ndarray]:
        """Swap (kind below 0.5) or drop a character of the texts where `slips` is true, at a place from 0 to 1."""
        tokens, text_of = tokens.copy(), np.repeat(np.arange(len(lengths)), lengths)
        is_character = self._is_character[tokens]
        different = np.flatnonzero(is_character[:-1] & is_character[1:] & (tokens[:-1] != tokens[1:]))
        first = different[_choose(text_of[different], slips & (kind < 0.5), place)]
        tokens[first], tokens[first + 1] = tokens[first + 1], tokens[first]

        # A text of max_seq_length tokens may have been cut, and its next token is not known.
        enough = np.bincount(text_of[is_character], minlength=len(lengths)) >= _FEWEST_CHARACTERS
        drops = slips & (kind >= 0.5) & enough & (lengths < self._max_seq_length)
        characters = np.flatnonzero(is_character)
        dropped = characters[_choose(text_of[characters], drops, place)]
        return np.delete(tokens, dropped), lengths - np.bincount(text_of[dropped], minlength=len(lengths))

    def _in_templates(self, tokens: ndarray, lengths: ndarray, which: ndarray) -> tuple[ndarray, ndarray]:
        ends = lengths.cumsum()
        is_inside = np.ones(len(tokens), bool)
        is_inside[ends - lengths] = is_inside[ends - 1] = False
        one = np.ones(len(lengths), np.int64)
        joined, lengths = join_rows(
            (np.full(len(one), self._cls), one),
            self._before.gather(which),
            (tokens[is_inside], lengths - 2),
            self._after.gather(which),
            (np.full(len(one), self._sep), one),
        )
        position = np.arange(len(joined)) - np.repeat(lengths.cumsum() - lengths, lengths)
        joined, lengths = joined[position < self._max_seq_length], lengths.clip(max=self._max_seq_length)
        joined[lengths.cumsum() - 1] = self._sep
        return joined, lengths


def _choose(text_of: ndarray, is_chosen: ndarray, place: ndarray) -> ndarray:
    """One candidate of each chosen text that has any.

    Args:
        text_of: (candidates,) ascending, the text of each.
        is_chosen: (n,) bool.
        place: (n,) from 0 to below 1, where among the candidates of its text.
    """
    counts = np.bincount(text_of, minlength=len(place))
    candidates = counts.cumsum() - counts + (place * counts).astype(np.int64)
    return candidates[is_chosen & (counts > 0)]


def _sides(template: Template, tokenizer, max_seq_length: int) -> tuple[list[int], list[int]]:
    """The tokens before and after the caption."""
    text, where = template
    before, after = _tokenize(tokenizer, text.split(PLACEHOLDER))
    if tokenizer.unk_token_id in (*before, *after):
        raise ValueError(f"{where}: the vocabulary lacks a word of {text!r}, which would be [UNK]. Use other words.")
    if len(before) + len(after) >= max_seq_length - 2:
        raise ValueError(
            f"{where}: {text!r} leaves no room for a caption in the {max_seq_length} tokens of max_seq_length. "
            "Shorten it."
        )
    for probe, tokens in zip(_PROBES, _tokenize(tokenizer, _PROBES), strict=True):
        if _tokenize(tokenizer, [template.fill(probe)]) != [[*before, *tokens, *after]]:
            raise ValueError(
                f"{where}: in {text!r}, a caption such as {probe!r} would merge with the letters next to it. Put a "
                f"space beside {PLACEHOLDER}."
            )
    return before, after


def _characters(tokenizer) -> ndarray:
    """(vocabulary,) bool: the tokens of Chinese characters, if the tokenizer separates these from their neighbours."""
    is_character = np.zeros(len(tokenizer), bool)
    letters = {token: number for token, number in tokenizer.get_vocab().items() if len(token) == 1 and token.isalpha()}
    for number, twice in zip(letters.values(), _tokenize(tokenizer, [2 * letter for letter in letters]), strict=True):
        is_character[number] = twice == [number, number]
    if not is_character.any():
        raise ValueError(
            "`text_noise` changes Chinese characters, and this tokenizer does not separate them: set it to 0."
        )
    return is_character


def _tokenize(tokenizer, texts: Sequence[str]) -> list[list[int]]:
    return tokenizer(list(texts), add_special_tokens=False)["input_ids"]
