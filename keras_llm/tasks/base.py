"""A task is a model and a tokenizer: what strings go in and come out, saved as one folder."""

import json
import pathlib

import keras_llm
from keras_llm import models, tokenizers
from keras_llm.errors import InputError
from keras_llm.files import atomic_folder

_CLASSES = {}
CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.weights.h5"
TOKENIZER_FOLDER = "tokenizer"


class Task:
    """The part that all tasks share.

    Args:
        model: a model from `models.causal_lm`.
        tokenizer: a `tokenizers.Tokenizer` with the model's vocabulary.
        metadata: dict of JSON values saved with the task, e.g. how it was trained.

    Raises:
        InputError: if the model is another, or smaller than the tokenizer's vocabulary.
    """

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        _CLASSES[cls.__name__] = cls

    def __init__(self, model, tokenizer, metadata=None):
        if not isinstance(getattr(model, "config", None), models.CausalLMConfig):
            raise InputError(f"`model` must come from models.causal_lm, got {type(model)}.")
        if tokenizer.vocabulary_size > model.config.vocabulary_size:
            raise InputError(
                f"the tokenizer's vocabulary of {tokenizer.vocabulary_size} is larger than the "
                f"model's `vocabulary_size` of {model.config.vocabulary_size}."
            )
        self.model = model
        self.tokenizer = tokenizer
        self.metadata = dict(metadata or {})

    def save(self, folder, overwrite=False):
        """Write the task as one folder, whole or not at all.

        Args:
            folder: str or path.
            overwrite: bool. Whether to replace what is there; until the new folder is whole
                the old one stays.

        Raises:
            InputError: if `folder` exists and `overwrite` is False.
        """
        with atomic_folder(folder, overwrite) as partial:
            self.write(partial)

    def write(self, folder):
        """Write config, weights and tokenizer into an existing folder."""
        folder = pathlib.Path(folder)
        config = {
            "keras_llm": keras_llm.__version__,
            "task": type(self).__name__,
            "model": self.model.config.to_dict(),
            "dtype": self.model.get_config()["dtype"],
            "metadata": self.metadata,
        }
        self.model.save_weights(folder / WEIGHTS_FILE)
        self.tokenizer.save(folder / TOKENIZER_FOLDER)
        (folder / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", "utf-8")


def read_config(folder):
    """The config.json of a task folder, without building the model.

    Raises:
        InputError: if `folder` is not a task folder.
    """
    path = pathlib.Path(folder) / CONFIG_FILE
    if not path.is_file():
        raise InputError(f"{folder} is not a model folder ({path} is missing).")
    try:
        config = json.loads(path.read_text("utf-8"))
        known = config["task"] in _CLASSES
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} does not describe a task: {error!r}.") from None
    if not known:
        raise InputError(f"{path}: unknown task {config['task']!r}.")
    return config


def load(folder):
    """The task that `Task.save` wrote.

    Args:
        folder: str or path.

    Returns:
        A task, e.g. `TextGeneration`.

    Raises:
        InputError: naming the file that is missing or cannot be read.
    """
    folder = pathlib.Path(folder)
    config = read_config(folder)
    tokenizer = tokenizers.load(folder / TOKENIZER_FOLDER)
    weights = folder / WEIGHTS_FILE
    if not weights.is_file():
        raise InputError(f"{weights} is missing.")
    model = models.causal_lm(
        models.CausalLMConfig.from_dict(config["model"]), dtype=config["dtype"]
    )
    try:
        model.load_weights(weights)
    except (OSError, KeyError, ValueError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"{weights} cannot be loaded: {reason}") from error
    return _CLASSES[config["task"]](model, tokenizer, config.get("metadata"))
