"""Type aliases for annotations."""

import os
from typing import Any, TypeAlias

Tensor: TypeAlias = Any  # a tensor of Keras's backend, or what converts to one
Dataset: TypeAlias = Any  # a `tf.data.Dataset`, which other backends need not import
PathLike: TypeAlias = str | os.PathLike[str]
JSON: TypeAlias = dict[str, Any]
