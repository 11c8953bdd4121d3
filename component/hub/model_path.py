"""Tell a folder from a name of the Hub."""

import os
import re


def is_hub_name(path: str) -> bool:
    """True for "model" and "user/model" if no such path exists; everything else is taken for a folder.

    If there is a folder `user`, "user/model" is taken for a mistyped path in it, and the Hub is not asked.

    >>> is_hub_name("bert-base-chinese"), is_hub_name("OFA-Sys/chinese-clip"), is_hub_name("output/demo/checkpoint-1")
    (True, True, False)
    """
    if os.path.exists(path) or os.path.isdir(os.path.dirname(path)):
        return False
    return re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", path, re.ASCII) is not None
