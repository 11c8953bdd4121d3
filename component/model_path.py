"""What a user gives as a model: a folder, or a name on the hub."""

import os


def is_hub_name(path: str) -> bool:
    """True for "model" and "user/model" where no such file or folder exists; all else is meant to be a folder."""
    return not os.path.exists(path) and not path.startswith((".", "/", "~")) and path.count("/") <= 1
