"""What a user gives as a model: a folder, or a name on the hub."""

import os
import re


def is_hub_name(path: str) -> bool:
    """True for "model" and "user/model" where nothing here has that name; all else is meant to be a folder.

    Where there is a folder `user`, a mistyped folder in it is meant, and not a name that the hub is to be asked for.
    """
    if os.path.exists(path) or os.path.isdir(os.path.dirname(path)):
        return False
    return re.fullmatch(r"\w[\w.-]*(/[\w.-]+)?", path, re.ASCII) is not None
