"""Combine a model and a tokenizer into a task that is saved as one folder."""

import copy
import json
import math
import pathlib
from collections.abc import Sequence
from typing import Any, Self

import keras
import numpy as np

import keras_llm
from keras_llm import data, hub, models, tokenizers
from keras_llm.errors import InputError
from keras_llm.files import atomic_folder
from keras_llm.json_files import read_json, short_repr
from keras_llm.layers.adapters import merging_adapters
from keras_llm.models.deferred import allocate, described
from keras_llm.tasks.fitting import Fitting
from keras_llm.training.adapters.lora import (
    ATTENTION,
    add_lora,
    has_adapters,
    merge_lora,
    save_lora,
)
from keras_llm.types import JSON, PathLike

_CLASSES: dict[str, type["Task"]] = {}
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.weights.h5"
TOKENIZER_FOLDER = "tokenizer"
_LEAST_BYTES_OF_LAYER = 8000  # in a file of weights, whose tensors each have a header


class Task(Fitting):
    """The base class of all tasks.

    Attributes:
        model_wanted: str, the function that builds the task's model, for error messages.

    Args:
        model: a model of this library.
        tokenizer: a `tokenizers.Tokenizer` with the model's vocabulary.
        metadata: dict of JSON values saved with the task, e.g. how it was trained.

    Raises:
        InputError: if the model is of another kind, or the tokenizer's vocabulary is larger than
            the model's. Special tokens such as an image token may exceed it; a text that contains
            one is refused.
    """

    model_wanted = "models.causal_lm"

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        _CLASSES[cls.__name__] = cls

    def __init__(
        self,
        model: models.ConfiguredModel,
        tokenizer: tokenizers.Tokenizer,
        metadata: JSON | None = None,
    ) -> None:
        if not self.fits(model):
            raise InputError(f"`model` must come from {self.model_wanted}, got {type(model)}.")
        size = model.config.vocabulary_size
        if not _fits_vocabulary(tokenizer, size):
            raise InputError(
                f"the tokenizer's vocabulary of {tokenizer.vocabulary_size} is larger than the "
                f"model's `vocabulary_size` of {size}, by more than special tokens without a role."
            )
        self.model = model
        self.tokenizer = tokenizer
        self.metadata = dict(metadata or {})

    @staticmethod
    def fits(model: object) -> bool:
        """Return whether the model is of the kind that this task needs."""
        return isinstance(model, models.CausalLM)

    def check_ids(self, name: str, rows: Sequence[Sequence[int]]) -> None:
        """Raise an InputError if a row of ids has a token without an embedding, naming both."""
        size = self.model.config.vocabulary_size
        if self.tokenizer.vocabulary_size <= size:
            return
        for index, row in enumerate(rows):
            for token in row:
                if token >= size:
                    raise InputError(
                        f"{_where(name, index, rows)} has the token "
                        f"{self.tokenizer.token(int(token))!r}, for which the model has no "
                        "embedding."
                    )

    def save(self, folder: PathLike, overwrite: bool = False) -> None:
        """Save the task as one folder, atomically.

        Args:
            folder: str or path.
            overwrite: bool. Whether to replace an existing folder. The old folder is kept until the
                new one is complete.

        Raises:
            InputError: if `folder` exists and `overwrite` is False.
        """
        with atomic_folder(folder, overwrite) as partial:
            self.write(partial)

    def export(self, target: str, path: PathLike, **options: Any) -> JSON:
        """Export the task and verify what was written.

        Args:
            target: "saved_model", "litert" or "litert_lm".
            path: str or path: a folder for "saved_model", else a file.
            **options: other arguments of `keras_llm.export.saved_model`, `litert` or `litert_lm`.

        Returns:
            The report of the export, a dict.

        Raises:
            InputError: if an argument is invalid.
            ExportError: if the export does not match the task; nothing is left behind.
        """
        from keras_llm import export

        if target not in ("saved_model", "litert", "litert_lm"):
            raise InputError(
                f'`target` must be "saved_model", "litert" or "litert_lm", got {target!r}.'
            )
        return getattr(export, target)(self._merged(), path, **options)

    def _merged(self) -> "Task":
        """The task itself; if it has adapters, a copy whose model has them merged."""
        if not has_adapters(self.model):
            return self
        merged = copy.copy(self)
        for name in ("_compiled", "_twin"):
            merged.__dict__.pop(name, None)
        merged.model = merge_lora(self.model)
        return merged

    @classmethod
    def from_preset(
        cls,
        preset: PathLike,
        dtype: str | None = None,
        revision: str | None = None,
        token: str | None = None,
    ) -> Self:
        """Load a task by the name of a model on a hub; see `tasks.from_preset`.

        Raises:
            InputError: also if the model is of another task.
        """
        from keras_llm.tasks.by_name import from_preset

        task = from_preset(preset, dtype, revision, token)
        if not isinstance(task, cls):
            raise InputError(f"{preset} is a {type(task).__name__}, not a {cls.__name__}.")
        return task

    def enable_lora(self, rank: int = 8, target: str = ATTENTION, **options: Any) -> list[str]:
        """Add low-rank adapters and freeze all other weights.

        Args:
            rank: int > 0.
            target: regular expression, searched for in the paths of layers. Defaults to the
                projections of attention.
            **options: other arguments of `training.add_lora`.

        Returns:
            The paths of the adapted layers, a list of str.

        Raises:
            InputError: if `target` matches no layer, or an argument is invalid.
        """
        self._trainer = None  # compiled for other weights
        return add_lora(self.model, target, rank=rank, **options)

    def save_adapter(self, path: PathLike, overwrite: bool = False) -> None:
        """Write the adapters alone, see `training.save_lora`."""
        save_lora(self.model, path, overwrite)

    @classmethod
    def parts(cls, folder: PathLike) -> dict[str, Any]:
        """Read further constructor arguments from the task's folder: a dict."""
        return {}

    def write(self, folder: PathLike) -> None:
        """Write config, weights and tokenizer into an existing folder."""
        folder = pathlib.Path(folder)
        with merging_adapters():
            config = {
                "keras_llm": keras_llm.__version__,
                "task": type(self).__name__,
                **models.describe(self.model),
                "metadata": self.metadata,
            }
            self.model.save_weights(folder / WEIGHTS_FILE)
        self.tokenizer.save(folder / TOKENIZER_FOLDER)
        (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", "utf-8")


def read_config(folder: PathLike) -> JSON:
    """Read the config.json of a task folder without building the model.

    Raises:
        InputError: if `folder` is not a task folder.
    """
    path = pathlib.Path(folder) / CONFIG_FILE
    if not path.is_file():
        raise InputError(f"{folder} is not a model folder ({path} is missing).")
    try:
        config = read_json(path)
    except InputError as error:
        raise InputError(f"{folder} does not describe a task: {error}") from None
    name = config.get("task")
    if isinstance(name, str) and name not in _CLASSES:
        raise InputError(f"{path}: unknown task {short_repr(name)}.")
    for name, kind in (("task", str), ("model", dict), ("metadata", (dict, type(None)))):
        if not isinstance(config.get(name), kind):
            raise InputError(
                f"{path} does not describe a task: `{name}` is {short_repr(config.get(name))}."
            )
    return config


def load(folder: PathLike) -> Task:
    """Load a task saved by `Task.save`, a checkpoint, or a model of a hub by its name.

    Args:
        folder: str or path of a folder; or what `tasks.from_preset` takes: a name such as
            `hf:OWNER/NAME`, a folder of Hugging Face or a GGUF file.

    Returns:
        A task, e.g. `TextGeneration`.

    Raises:
        InputError: if a file is missing or cannot be read, naming it.
    """
    if hub.is_name(folder) or hub.is_checkpoint(folder):
        return Task.from_preset(folder)
    folder = pathlib.Path(folder)
    config = read_config(folder)
    tokenizer = tokenizers.load(folder / TOKENIZER_FOLDER)
    weights = folder / WEIGHTS_FILE
    if not weights.is_file():
        raise InputError(f"{weights} is missing.")
    model = _restored(config, folder / CONFIG_FILE, weights)
    try:
        model.load_weights(weights)
    except Exception as error:  # h5py raises any exception for a corrupt file
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise InputError(f"{weights} cannot be loaded: {reason}") from error
    kind = _CLASSES[config["task"]]
    try:
        return kind(model, tokenizer, metadata=config.get("metadata"), **kind.parts(folder))
    except InputError:
        raise
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise InputError(
            f"{folder / CONFIG_FILE}: `metadata` is not valid: {short_repr(error)}."
        ) from error


def _restored(config, path, weights):
    """Build the model of a config, with unset weights, if its file of weights is large enough."""
    size = weights.stat().st_size
    sections = [config["model"].get(name) for name in ("num_layers", "num_decoder_layers")]
    layers = sum(count for count in sections if isinstance(count, int))
    if layers * _LEAST_BYTES_OF_LAYER > size:
        raise InputError(
            f"{weights} cannot be loaded: it has {size} bytes, too few for the {layers} layers of "
            f"{path}."
        )
    model = described(lambda: models.restore(config), path)
    count = sum(math.prod(variable.shape) for variable in model.variables)
    if count > 8 * size:  # a weight has at least one bit
        raise InputError(
            f"{weights} cannot be loaded: it has {size} bytes, too few for the {count} weights of "
            f"{path}."
        )
    for variable in model.variables:
        is_state = keras.backend.standardize_dtype(variable.dtype) == "uint32"  # of a generator
        allocate(variable, None if is_state else np.zeros(variable.shape, "float32"))
    return model


def checked_texts(name: str, texts: Sequence[Any]) -> Sequence[str]:
    """Return `texts` if all are non-empty valid Unicode; else raise InputError naming the row."""
    if not isinstance(texts, (list, tuple)) or not texts:
        raise InputError(f"`{name}` must be a str or a non-empty list of str, got {texts!r}.")
    for index, text in enumerate(texts):
        where = _where(name, index, texts)
        if not isinstance(text, str):
            raise InputError(f"{where} must be a str, got {type(text).__name__}.")
        if not text:
            raise InputError(f"{where} is empty.")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"{where} is not valid Unicode: {error.reason}.") from None
    return texts


def encoded_rows(rows: Sequence[Any] | np.ndarray, tokenizer: tokenizers.Tokenizer) -> np.ndarray:
    """Return the token ids of documents, or the rows themselves if they are token ids."""
    if isinstance(rows, np.ndarray):
        if rows.ndim != 1 or not np.issubdtype(rows.dtype, np.integer):
            raise InputError(
                "`rows` must be a list of str or an int array (N,) of token ids, got an array "
                f"{rows.shape} of {rows.dtype}."
            )
        return rows
    return data.encode_documents(checked_texts("rows", rows), tokenizer)


def padded_rows(
    name: str, rows: Sequence[Sequence[int]], longest: int, max_length: int, pad_id: int
) -> tuple[np.ndarray, np.ndarray]:
    """Pad lists of token ids on the right.

    Returns:
        Token ids, int32 (B, T), and lengths, int32 (B,).

    Raises:
        InputError: if a row has more than `longest` tokens.
    """
    for index, row in enumerate(rows):
        if len(row) > longest:
            raise InputError(
                f"{_where(name, index, rows)} has {len(row)} tokens, including special tokens, but "
                f"only {longest} fit into the model's `max_length` of {max_length}."
            )
    lengths = np.array([len(row) for row in rows], "int32")
    token_ids = np.full((len(rows), lengths.max()), pad_id, "int32")
    for row, ids in zip(token_ids, rows, strict=True):
        row[: len(ids)] = ids
    return token_ids, lengths


def _fits_vocabulary(tokenizer, size):
    """Return whether all ids beyond a model's vocabulary are special tokens without a role."""
    if tokenizer.vocabulary_size <= size:
        return True
    spare = set(range(size, tokenizer.vocabulary_size))
    roles = {getattr(tokenizer, f"{role}_id") for role in ("pad", "bos", "eos", "unk", "mask")}
    return spare <= set(tokenizer.special_tokens.values()) - roles


def _where(name, index, rows):
    return f"`{name}`" if len(rows) == 1 else f"`{name}` {index}"
