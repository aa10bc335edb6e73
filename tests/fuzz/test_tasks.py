"""Fuzz the loader of task folders."""

import json
import pydoc_data.topics

import pytest

import keras_llm
from keras_llm import models, tokenizers
from keras_llm.errors import InputError

TEXTS = [pydoc_data.topics.topics["assert"]]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Return the folders of three tasks."""
    root = tmp_path_factory.mktemp("tasks")
    byte_pair = tokenizers.BytePair.train(TEXTS, 270)
    word_piece = tokenizers.WordPiece.train(TEXTS, 120)
    options = {"num_layers": 1, "max_length": 16}
    decoder = models.causal_lm(
        models.preset("llama-tiny", vocabulary_size=byte_pair.vocabulary_size, **options)
    )
    encoder = models.encoder(
        models.preset("bert-tiny", vocabulary_size=word_piece.vocabulary_size, **options)
    )
    keras_llm.TextGeneration(decoder, byte_pair, {"end_token_ids": [1]}).save(root / "decoder")
    classifier = models.text_classifier(encoder, 3)
    labels = ["a", "b", "c"]
    keras_llm.TextClassification(classifier, word_piece, labels).save(root / "classifier")
    decoder.quantize("int8", filters="query")
    keras_llm.TextGeneration(decoder, byte_pair).save(root / "quantized")
    return [root / "decoder", root / "classifier", root / "quantized"]


def test_tasks(folders, fuzz, check, mutated_file, with_file, tmp_path):
    assert all(check(keras_llm.load, folder) for folder in folders)

    @fuzz(30, mutated_file(folders, ("config.json", "model.weights.h5")))
    def run(mutation):
        check(keras_llm.load, with_file(*mutation, tmp_path / "copy"))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"num_layers": 10**6}, "too few for the 1000000 layers"),
        ({"vocabulary_size": 2**31}, r"too few for the \d+ weights"),
        ({"num_heads": [2]}, r"`num_heads` must be int, got \[2\]"),
        ({"norm": ["rms"]}, r"`norm` must be str, got \['rms'\]"),
        ({"position": {"rotary": {"base": "x", "scaling": 1}}}, "`position`"),
        ({"position": {"alibi": {"max_bias": None}}}, "`position`"),
        ({"position": {"other": {}}}, "`position` must be an object with one of rotary"),
        ({"activation": {"class_name": "x"}}, "`activation` must be str"),
    ],
)
def test_wrong_config_raises_error(changes, message, folders, with_file, tmp_path):
    row = json.loads((folders[0] / "config.json").read_text())
    row["model"] |= changes
    copy = with_file(folders[0], "config.json", json.dumps(row).encode(), tmp_path / "copy")
    with pytest.raises(InputError, match=message) as error:
        keras_llm.load(copy)
    assert str(copy / "config.json") in str(error.value)


def test_task_that_contains_itself_raises_error(folders, with_file, tmp_path):
    row = json.loads((folders[0] / "config.json").read_text())
    row["task"] = "RankedChat"
    copy = with_file(folders[0], "config.json", json.dumps(row).encode(), tmp_path / "copy")
    (copy / "sensibleness").symlink_to(copy)
    with pytest.raises(InputError, match="sensibleness must be a TextClassification"):
        keras_llm.load(copy)
