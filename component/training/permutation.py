"""A random order that is computed instead of stored, with access to any element."""

from dataclasses import dataclass
from functools import cached_property
from math import isqrt

import numpy as np
from pandas.util import hash_array

ROUNDS = 8


@dataclass(frozen=True)
class Permutation:
    """A pseudo-random permutation of 0 … size - 1, the same for the same seed on every machine.

    A number x is split into two digits, (x // b, x % b). In each round a hash of one digit is added to the other: a
    Feistel network over Z_a × Z_b (FE1 of Bellare, Ristenpart, Rogaway and Stegers, Format-Preserving Encryption, SAC
    2009), which permutes the a·b numbers. Fewer than a of them land at or beyond `size`; these are encrypted again
    until they do not (cycle-walking: Black and Rogaway, Ciphers with Arbitrary Finite Domains, CT-RSA 2002). Suitable
    for shuffling, not for cryptography.

    Args:
        size: up to 2^62.
        seed: non-negative numbers.
    """

    size: int
    seed: tuple[int, ...]

    @cached_property
    def _keys(self) -> np.ndarray:
        return np.random.SeedSequence(self.seed).generate_state(ROUNDS, np.uint64)

    def __getitem__(self, positions: np.ndarray) -> np.ndarray:
        """(n,) positions in the order, each below size → (n,) int64, the numbers at these positions."""
        numbers = np.asarray(positions).astype(np.uint64)
        outside = np.arange(len(numbers))
        while len(outside):
            numbers[outside] = self._encrypt(numbers[outside])
            outside = outside[numbers[outside] >= self.size]
        return numbers.astype(np.int64)

    def _encrypt(self, numbers: np.ndarray) -> np.ndarray:
        a = np.uint64(isqrt(self.size - 1) + 1)
        b = np.uint64(-(-self.size // int(a)))
        left, right = numbers // b, numbers % b
        for turn, key in enumerate(self._keys):
            if turn % 2:
                right = (right + hash_array(left ^ key) % b) % b
            else:
                left = (left + hash_array(right ^ key) % a) % a
        return left * b + right
