"""Which texts are captions: those that contain a visible character."""

import re

# White space, control and format characters, fillers, variation selectors, private use: invisible by themselves, and
# not tokens of BERT. U+FFFC and U+FFFD replace something that was lost.
_NOTHING = (
    r"\s\0-\x20\x7f-\xa0\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u2028-\u202f\u205f-\u206f"
    r"\u2800\u3164\ue000-\uf8ff\ufe00-\ufe0f\ufeff\uffa0\ufff0-\uffff\U0001d173-\U0001d17a\U000e0000-\U0010ffff"
)
_SOMETHING = re.compile(f"[^{_NOTHING}]")


def is_caption(text: str) -> bool:
    """Whether a text has a visible character. Training, filter and evaluation leave the others out."""
    return _SOMETHING.search(text) is not None


def visible(text: str) -> str:
    """The text without the characters that show nothing.

    >>> visible("小\\u200b 狗")
    '小狗'
    """
    return "".join(_SOMETHING.findall(text))
