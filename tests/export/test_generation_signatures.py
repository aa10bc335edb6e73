"""Signatures of models that are not sure, and of models that are broken."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_llm
from keras_llm import export, generation, models, tokenizers
from keras_llm.export.saved_model.signatures import TextGenerationModule, save
from keras_llm.export.saved_model.signatures.loop import ALL_SETTINGS

SIZE, END = 280, 100  # the tokenizer's tokens, and one with text that ends a text


@pytest.fixture(scope="module")
def traced():
    """A task whose model was not trained and has more ids than the tokenizer; its module and the
    signatures of that, traced once for all tests; and its weights."""
    keras.utils.set_random_seed(0)
    tok = tokenizers.SentencePiece.train(["once upon a time there was"] * 9, SIZE, "bpe")
    config = models.preset("llama-tiny", tie_embeddings=False, num_layers=1, vocabulary_size=296)
    task = keras_llm.TextGeneration(models.causal_lm(config), tok, {"end_token_ids": [END]})
    module = TextGenerationModule(task, beam_width=2)
    return task, module, module.signatures(), task.model.get_weights()


@pytest.fixture
def unsure(traced):
    """The task, its module and signatures, with the weights as they were."""
    task, module, signatures, weights = traced
    task.model.set_weights(weights)
    return task, module, signatures


def test_logits_that_are_no_numbers_are_refused(unsure):
    task, _, signatures = unsure
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


def test_steps_of_a_client_take_no_id_that_the_tokenizer_lacks(unsure, serve, tmp_path):
    task, module, signatures = unsure
    kernel = task.model.get_layer("token_embedding").reverse_embeddings
    kernel.assign(np.where(np.arange(296) < SIZE, np.array(kernel), 50 * np.array(kernel)))
    save(module, tmp_path / "spare" / "1", signatures)
    server = serve(tmp_path / "spare")
    with export.Client(f"localhost:{server.port}", "spare") as client:
        for settings in ({"temperature": 0.0}, {"seed": 3}):
            expected = task("once", 12, **settings, return_details=True)
            assert expected.num_tokens == 12  # of prefill and of decode
            assert client.generate("once", 12, **settings) == expected.text
            assert "".join(client.stream("once", 12, **settings)) == expected.text


def test_a_stream_ends_where_the_text_does(unsure, serve, tmp_path):
    """Not at a token without text, and also at an end token that has one."""
    task, module, signatures = unsure
    often = task.tokenizer.bos_id
    assert task.tokenizer.decode([often]) == "" and task.tokenizer.decode([END])
    kernel = np.array(task.model.get_layer("token_embedding").reverse_embeddings)
    kernel[:, often] *= 20
    kernel[:, END] = kernel[:, often]
    task.model.get_layer("token_embedding").reverse_embeddings.assign(kernel)
    save(module, tmp_path / "ends" / "1", signatures)
    server = serve(tmp_path / "ends")
    reasons, inside = set(), False
    with export.Client(f"localhost:{server.port}", "ends") as client:
        for seed in range(12):
            found = task("once", 12, seed=seed, return_details=True)
            assert "".join(client.stream("once", 12, seed=seed)) == found.text
            reasons.add(found.finish_reason)
            inside |= often in found.token_ids[:-1]
    assert inside and "stop" in reasons
