"""The table of tokens gives what the tokenizer gives, whatever the tokenizer and the text."""

import functools
import random

import numpy as np
import pytest
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers
from transformers import BertTokenizerFast

from component.pairs.known_forms import encode_known, known_form
from component.pairs.text_encoder import TextEncoder
from component.pairs.token_table import TokenTable

WORDS = ["a", "i", "t", "##s", "phone", "##one", "caf", "##e", "##é", "iphone", "15", "##5", "nai", "##ve", "犬", "[S"]
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *"小狗在草地上奔跑红色连衣裙，。-?[]\u00b7々〇豈"]
# Combining marks, presentation forms, control characters, blanks of all kinds, emoji with joiners, Hangul and Thai.
ODD = "é\u0301\u0338≮\u3099が\u302a\u200b\u200d\ufe0f\ufeff\xad\xa0\u3000\t\n\r\x00\x85\u2028İıßΣς½①Ａ１ﬁ㈱ｶ한각ก็𠀀𝄞"
ODD += "👨\u200d👩🇨🇳\U0002fa1d\U000e0041\uffff"


@functools.cache
def texts(seed: int) -> list[str]:
    random.seed(seed)
    everything = [chr(code) for code in range(0x110000) if not 0xD800 <= code < 0xE000]
    of_captions = [
        *VOCABULARY[5:],
        *"小狗在草地上，。 -",
        "iPhone 15",
        "T恤",
        "2024年",
        "Café",
        " ",
        "  ",
        "[SEP]",
        "[UNK]",
    ]
    sets = {200: everything, 300: [*of_captions, *ODD], 400: of_captions, 401: list("小狗在草地上奔跑红色")}
    drawn = ["".join(random.choices(some, k=random.randint(0, 30))) for n, some in sets.items() for _ in range(n)]
    return [*drawn, "", " ", "a" * 101, "小" + "é" * 120 + "狗", "[SEP]小狗[UNK]", "##s", "a[SEP", "]a"]


def bert(**settings) -> Tokenizer:
    vocabulary = {token: number for number, token in enumerate(VOCABULARY)}
    return BertTokenizerFast(vocab=vocabulary, split_special_tokens=True, **settings).backend_tokenizer


def with_special_tokens() -> Tokenizer:
    tokenizer = bert()
    tokenizer.encode_special_tokens = False
    return tokenizer


def with_added(*tokens: AddedToken) -> Tokenizer:
    tokenizer = bert()
    tokenizer.add_tokens(list(tokens))
    return tokenizer


def with_own_normalizer() -> Tokenizer:
    tokenizer = bert()
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Replace("小狗", "犬"), normalizers.NFKC(), bert().normalizer]
    )
    return tokenizer


def with_own_words() -> Tokenizer:
    tokenizer = bert()
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


def of_another_kind() -> Tokenizer:
    tokenizer = Tokenizer(
        models.BPE({token: number for number, token in enumerate(VOCABULARY)}, [], unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    return tokenizer


TOKENIZERS = {
    "as published": bert,
    "cased": lambda: bert(do_lower_case=False),
    "cased, accents stripped": lambda: bert(do_lower_case=False, strip_accents=True),
    "lower case, with accents": lambda: bert(strip_accents=False),
    "Chinese characters in words": lambda: bert(tokenize_chinese_chars=False),
    "special tokens in texts": with_special_tokens,
    "added tokens": lambda: with_added(AddedToken("小狗", normalized=False), AddedToken("色 连", normalized=False)),
    "added tokens, normalized": lambda: with_added(AddedToken("café", normalized=True)),
    "a normalizer of its own": with_own_normalizer,
    "a pre-tokenizer of its own": with_own_words,
    "not a WordPiece": of_another_kind,
}


def tokens_of(tokenizer: Tokenizer, some: list[str]) -> list[list[int]]:
    return [encoding.ids for encoding in tokenizer.encode_batch(some, add_special_tokens=False)]


@pytest.mark.parametrize(
    "text, form",
    [
        ("ｉＰｈｏｎｅ　１５，奔跑", "iPhone　15，奔跑"),
        ("小狗１５在草地，Ａ", "小狗15在草地，A"),
        ("☃ｔｓ，ｔｓ", "☃ｔｓ，ts"),
        ("１６ １５", "１６ 15"),  # the vocabulary has no 16 either
        ("小狗，豈〇①", "小狗，豈〇①"),  # known as they are, or unknown in both forms
        ("", ""),
    ],
)
def test_only_unknown_words_take_their_plain_form(text, form):
    assert known_form(text, bert()) == form


@pytest.mark.parametrize("name", TOKENIZERS)
def test_tokens_without_unknown_words_are_the_tokenizers_own(name):
    tokenizer, some = TOKENIZERS[name](), texts(0)
    own = tokens_of(tokenizer, some)
    known = encode_known(some, functools.partial(tokens_of, tokenizer), tokenizer)
    unknown = VOCABULARY.index("[UNK]")
    changed = [text for text, before, after in zip(some, own, known, strict=True) if before != after]
    assert all(unknown in tokens_of(tokenizer, [text])[0] for text in changed)
    assert sum(ids.count(unknown) for ids in known) <= sum(ids.count(unknown) for ids in own)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_tokens_are_those_of_the_tokenizer(name):
    table, tokenizer = TokenTable(TOKENIZERS[name]()), TOKENIZERS[name]()
    for seed in range(2):  # the second time, most of the table is known
        some = texts(seed)
        expected = encode_known(some, functools.partial(tokens_of, tokenizer), tokenizer)
        tokens, lengths = table.tokenize(some)
        found = [ids.tolist() for ids in np.split(tokens, lengths.cumsum()[:-1])]
        for text, ids, wanted in zip(some, found, expected, strict=True):
            assert ids == wanted, (name, text)


def test_of_a_chinese_text_the_tokenizer_gets_only_words():
    class Counting:
        """A tokenizer that remembers what it was asked."""

        def __init__(self):
            self.backend, self.asked = bert(), []

        def __getattr__(self, name):
            return getattr(self.backend, name)

        def encode_batch_fast(self, texts, **options):
            self.asked += texts
            return self.backend.encode_batch_fast(texts, **options)

    counting = Counting()
    table = TokenTable(counting)
    table.tokenize(["小狗 在草地上，奔跑。", "iPhone15红色\u3000连衣裙", "红色 iPhone15"])
    assert counting.asked == ["iPhone15"]


def test_words_are_forgotten_before_they_fill_the_memory(monkeypatch):
    monkeypatch.setattr("component.pairs.token_table._MOST_WORDS", 3)
    table, tokenizer = TokenTable(bert()), bert()
    for text in ("a it its", "phone iphone 15 155", "a it"):
        tokens, _ = table.tokenize([text])
        assert tokens.tolist() == tokenizer.encode(text, add_special_tokens=False).ids
    assert len(table._words) <= 3


def test_half_of_a_character_is_an_error_as_of_the_tokenizer():
    for tokenize in (TokenTable(bert()).tokenize, bert().encode_batch_fast):
        with pytest.raises(TypeError):
            tokenize(["小狗\ud83d"])


@pytest.mark.parametrize("length", [3, 5, 40])
def test_an_encoder_cuts_texts_as_the_tokenizer_does(length):
    tokenizer = BertTokenizerFast(vocab={token: i for i, token in enumerate(VOCABULARY)}, split_special_tokens=True)
    some = texts(0)
    encoded = TextEncoder(tokenizer, length)(some)
    whole = [known_form(text, tokenizer.backend_tokenizer) for text in some]
    expected = tokenizer(whole, max_length=length, truncation=True)["input_ids"]
    assert [ids.tolist() for ids in np.split(encoded.tokens, encoded.lengths.cumsum()[:-1])] == expected
    assert encoded.num_long == sum(len(ids) > length for ids in tokenizer(whole)["input_ids"])
    assert encoded.num_unknown == sum(ids.count(tokenizer.unk_token_id) for ids in expected)
