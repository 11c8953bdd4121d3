"""Hashes by which images are told apart."""

import numpy as np

from component.pairs.hashing import hash_columns, hash_texts, mix


def hashes(*texts: bytes) -> list[int]:
    content = np.frombuffer(b"".join(texts), np.uint8)
    return hash_texts(content, np.array([len(text) for text in texts], np.int64)).tolist()


def test_a_text_has_one_hash_whatever_stands_beside_it():
    random = np.random.default_rng(0)
    texts = [random.bytes(length) for length in random.permutation(np.arange(100)).tolist()]
    assert hashes(*texts) == [hashes(text)[0] for text in texts]
    assert hashes(b"", *texts, b"")[1:-1] == hashes(*texts)
    assert hashes() == []


def test_names_that_are_nearly_equal_have_other_hashes():
    names = [f"{n // 1000:05d}/{n:09d}.jpg".encode() for n in range(100_000)]
    names += [name + b"\0" for name in names] + [b"a" * n for n in range(50)]
    names += [b"12345678abcdefgh", b"abcdefgh12345678", b"\0" * 8, b"\0" * 9, b"\0" * 16]
    found = hashes(*names)
    assert len(set(found)) == len(names)
    # Of good hashes each bit is set in half of them: 5 standard deviations of a coin.
    bits = np.unpackbits(np.array(found, np.uint64).view(np.uint8)).reshape(-1, 64).mean(0)
    assert abs(bits - 0.5).max() < 5 * 0.5 / len(found) ** 0.5


def test_columns_count_in_their_order():
    small = np.arange(-50, 50)
    first, second = (column.ravel() for column in np.meshgrid(small, small))
    assert len(set(hash_columns(first, second).tolist())) == len(first)
    assert hash_columns(np.array([1]), np.array([0])) != hash_columns(np.array([1]))


def test_the_same_on_every_machine():
    # What splitmix64 gives first when it begins at 0.
    assert mix(np.array([0x9E3779B97F4A7C15], np.uint64)).tolist() == [0xE220A8397B1DCDAF]
    # Another value here, and every cache is filled anew.
    assert hashes("图/1.jpg".encode()) == [9795472871394085338]
