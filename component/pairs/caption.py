"""What a caption is: a text in which there is something to see."""

import re

# White space, control and format characters, fillers, variation selectors, private use: what shows nothing by itself.
# A BERT tokenizer makes no tokens of them. U+FFFC and U+FFFD stand for something that was lost.
_NOTHING = (
    r"\s\0-\x20\x7f-\xa0\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2028-\u202f\u205f-\u206f"
    r"\u2800\u3164\ue000-\uf8ff\ufe00-\ufe0f\ufeff\uffa0\ufff0-\uffff\U0001d173-\U0001d17a\U000e0000-\U0010ffff"
)
_SOMETHING = re.compile(f"[^{_NOTHING}]")


def is_caption(text: str) -> bool:
    """Whether a text says anything: training, filter and evaluation leave out those that do not."""
    return _SOMETHING.search(text) is not None


def visible(text: str) -> str:
    """The text without the characters that show nothing.

    >>> visible("小\\u200b 狗")
    '小狗'
    """
    return "".join(_SOMETHING.findall(text))
