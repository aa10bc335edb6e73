"""Test signatures of models with nearly uniform outputs and of models with NaN weights."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_llm
from keras_llm import export, generation, models, tokenizers
from keras_llm.export.saved_model.signatures import TextGenerationModule, save
from keras_llm.export.saved_model.signatures.loop import ALL_SETTINGS

SIZE, END = 280, 100  # the tokenizer's vocabulary size, and an end token that has text


@pytest.fixture(scope="module")
def traced():
    """Return an untrained task, its module, the traced signatures and the initial weights.

    The model has more ids than the tokenizer. All tests share the traced signatures.
    """
    keras.utils.set_random_seed(0)
    tok = tokenizers.SentencePiece.train(["once upon a time there was"] * 9, SIZE, "bpe")
    config = models.preset("llama-tiny", tie_embeddings=False, num_layers=1, vocabulary_size=296)
    task = keras_llm.TextGeneration(models.causal_lm(config), tok, {"end_token_ids": [END]})
    module = TextGenerationModule(task, beam_width=2)
    return task, module, module.signatures(), task.model.get_weights()


@pytest.fixture
def untrained(traced):
    """Return the task, its module and signatures, with the initial weights."""
    task, module, signatures, weights = traced
    task.model.set_weights(weights)
    return task, module, signatures


def test_nan_logits_raise_error(untrained):
    task, _, signatures = untrained
    task.model.set_weights([np.full_like(w, np.nan) for w in task.model.get_weights()])
    values = {"max_new_tokens": 12, **generation.Sampling()._asdict()}
    with pytest.raises(tf.errors.InvalidArgumentError, match="not numbers"):
        signatures["generate_extended"](
            prompt=tf.constant(["once"]),
            **{name: tf.constant([values[name]], s.dtype) for name, s in ALL_SETTINGS.items()},
        )
    with pytest.raises(tf.errors.InvalidArgumentError, match="not numbers"):
        signatures["beam_search"](
            prompt=tf.constant(["once"]),
            max_new_tokens=tf.constant([3]),
            length_penalty=tf.constant([1.0]),
        )


def test_special_token_without_an_embedding_is_refused():
    texts = ["once upon a time there was"] * 9
    tok = tokenizers.BytePair.train(texts, SIZE, special_tokens=["<image>"])
    size = tok.vocabulary_size
    tokens = {**tok.special_tokens, "<image>": size}  # moved beyond the others
    vocabulary = {token: i for token, i in tok.vocabulary.items() if token != "<image>"}
    vocabulary["unused"] = tok.special_tokens["<image>"]
    tok = tokenizers.BytePair(
        vocabulary, tok.merges, special_tokens=tokens, bos="<|bos|>", eos="<|eos|>", pad="<|pad|>"
    )
    config = models.preset("llama-tiny", num_layers=1, vocabulary_size=size)
    module = TextGenerationModule(keras_llm.TextGeneration(models.causal_lm(config), tok))
    values = {"max_new_tokens": 12, **generation.Sampling()._asdict()}
    settings = {name: tf.constant([values[name]], s.dtype) for name, s in ALL_SETTINGS.items()}
    read = tf.function(lambda prompt: module._read(prompt, settings, parse_special=True)[1:3])
    token_ids, lengths = read(tf.constant(["once<|eos|>upon", "once"]))
    assert tok.eos_id in token_ids[0, : lengths[0]] and lengths[1] == len(tok.encode("once"))
    with pytest.raises(tf.errors.InvalidArgumentError, match="special tokens without an embedding"):
        read(tf.constant(["once", "upon <image>"]))


def test_client_steps_never_choose_ids_outside_tokenizer(untrained, serve, tmp_path):
    task, module, signatures = untrained
    kernel = task.model.get_layer("token_embedding").reverse_embeddings
    kernel.assign(np.where(np.arange(296) < SIZE, np.array(kernel), 50 * np.array(kernel)))
    save(module, tmp_path / "spare" / "1", signatures)
    server = serve(tmp_path / "spare")
    with export.Client(f"localhost:{server.port}", "spare") as client:
        for settings in ({"temperature": 0.0}, {"seed": 3}):
            expected = task("once", 12, **settings, return_details=True)
            assert expected.num_tokens == 12  # from prefill and decode
            assert client.generate("once", 12, **settings) == expected.text
            assert "".join(client.stream("once", 12, **settings)) == expected.text


def test_stream_ends_at_end_tokens(untrained, serve, tmp_path):
    """A stream continues after tokens without text, and ends at an end token that has text."""
    task, module, signatures = untrained
    textless_id = task.tokenizer.bos_id
    assert task.tokenizer.decode([textless_id]) == "" and task.tokenizer.decode([END])
    kernel = np.array(task.model.get_layer("token_embedding").reverse_embeddings)
    kernel[:, textless_id] *= 20
    kernel[:, END] = kernel[:, textless_id]
    task.model.get_layer("token_embedding").reverse_embeddings.assign(kernel)
    save(module, tmp_path / "ends" / "1", signatures)
    server = serve(tmp_path / "ends")
    reasons, has_textless = set(), False
    with export.Client(f"localhost:{server.port}", "ends") as client:
        for seed in range(12):
            result = task("once", 12, seed=seed, return_details=True)
            assert "".join(client.stream("once", 12, seed=seed)) == result.text
            reasons.add(result.finish_reason)
            has_textless |= textless_id in result.token_ids[:-1]
    assert has_textless and "stop" in reasons
