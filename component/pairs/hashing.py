"""64-bit hashes of many things at once, the same on every machine. Good for telling apart, not for secrets."""

import numpy as np

_FACTORS = np.array([0xBF58476D1CE4E5B9, 0x94D049BB133111EB], np.uint64)
_SHIFTS = np.array([30, 27, 31], np.uint64)


def mix(numbers: np.ndarray) -> np.ndarray:
    """(n,) uint64 → (n,) uint64, one to one: splitmix64's finaliser (Steele, Lea and Flood, OOPSLA 2014)."""
    for shift, factor in zip(_SHIFTS[:2], _FACTORS, strict=True):
        numbers = (numbers ^ (numbers >> shift)) * factor
    return numbers ^ (numbers >> _SHIFTS[2])


def hash_columns(*columns: np.ndarray) -> np.ndarray:
    """Columns of 64-bit integers, each (n,) → (n,) uint64, one for each row of them."""
    hashes = np.zeros(1, np.uint64)
    for column in columns:
        hashes = mix(hashes ^ mix(column.astype(np.uint64)))
    return hashes


def hash_texts(content: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Texts one after the other, (sum of lengths,) uint8, and their lengths in bytes, (n,) → (n,) uint64."""
    words = (-(-lengths // 8)).clip(min=1)  # of eight bytes, the last filled up with zeros
    starts = words.cumsum() - words
    shifts = 8 * starts - (lengths.cumsum() - lengths)  # from a byte's place in the content to its place in the words
    filled = np.zeros(8 * words.sum(), np.uint8)
    filled[np.arange(len(content)) + np.repeat(shifts, lengths)] = content
    numbers = np.arange(words.sum()) - np.repeat(starts, words)  # of each word in its text
    hashes = hash_columns(numbers, filled.view("<u8"))
    return hash_columns(np.add.reduceat(hashes, starts), lengths)
