"""Read the numbers of model versions, which are 64-bit integers in TensorFlow Serving."""

import re

MAX_VERSION = 2**63 - 1


def version_number(name: str) -> int | None:
    """Return the version that the name of a folder stands for, or None if it is not a version."""
    if not re.fullmatch("[0-9]{1,19}", name) or int(name) > MAX_VERSION:
        return None
    return int(name)
