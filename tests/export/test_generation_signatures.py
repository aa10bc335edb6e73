"""Signatures with every setting, of chats and of beam search, beside the task in Python."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_llm
from keras_llm import export, generation, models, tokenizers
from keras_llm.export.signatures import TextGenerationModule, module_of, save
from keras_llm.export.signatures.loop import ALL_SETTINGS

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}\n"
    "{% endfor %}assistant:"
)


@pytest.fixture(scope="module")
def chatty(task):
    return keras_llm.TextGeneration(task.model, task.tokenizer, {"chat_template": TEMPLATE})


@pytest.fixture(scope="module")
def served(chatty, tmp_path_factory):
    folder = tmp_path_factory.mktemp("serving") / "chatty"
    report = export.saved_model(chatty, folder, beam_width=3)
    assert set(report["signatures"]) >= {"chat", "beam_search", "generate_extended"}
    assert report["parity"]["max_beam_score_error"] < 1e-3
    return folder / "1"


@pytest.fixture(scope="module")
def signatures(served):
    return tf.saved_model.load(str(served)).signatures


def call(signature, prompts, **settings):
    """With the defaults for what is left out."""
    values = {"max_new_tokens": 12, **generation.Sampling()._asdict(), **settings}
    return signature(
        prompt=tf.constant(prompts),
        **{
            name: tf.constant(np.ravel(values[name]), spec.dtype)
            for name, spec in ALL_SETTINGS.items()
        },
    )


def texts(outputs):
    return [text.decode() for text in outputs["text"].numpy()]


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0.0, "repetition_penalty": 1.5, "no_repeat_ngram_size": 2},
        {"seed": 5, "min_p": 0.05, "presence_penalty": 0.3, "frequency_penalty": 0.2},
        {"seed": 6, "typical_p": 0.8, "min_new_tokens": 12, "temperature": 0.7, "top_k": 40},
    ],
)
def test_every_setting_gives_the_text_of_python(task, signatures, settings):
    outputs = call(signatures["generate_extended"], ["The", "A value"], **settings)
    expected = task(["The", "A value"], 12, return_details=True, **settings)
    assert texts(outputs) == [row.text for row in expected]
    for i, row in enumerate(expected):
        ids = outputs["token_ids"].numpy()[i, : row.num_tokens]
        assert ids.tolist() == row.token_ids
        log_p = outputs["token_log_probabilities"].numpy()[i, : row.num_tokens]
        np.testing.assert_allclose(log_p, row.token_log_probabilities, atol=1e-4)


def test_each_row_has_settings_of_its_own(task, signatures):
    penalties = [1.0, 0.1, 1.3]
    outputs = call(
        signatures["generate_extended"], ["The"] * 3, temperature=0.0, repetition_penalty=penalties
    )
    expected = [task("The", 12, temperature=0.0, repetition_penalty=p) for p in penalties]
    assert texts(outputs) == expected and len(set(expected)) > 1


def test_a_chat_is_answered_as_in_python(chatty, signatures):
    messages = [{"role": "user", "content": "What is a class?"}]
    settings = {"temperature": 0.8, "top_p": 0.9, "seed": 4}
    outputs = call(signatures["chat"], [chatty.render(messages)], **settings)
    assert texts(outputs) == [chatty.chat(messages, max_new_tokens=12, **settings)]
    conversation = chatty.conversation()
    assert conversation.say("What is a class?", max_new_tokens=12, **settings) == texts(outputs)[0]
    # What the template writes as special tokens is plain text elsewhere.
    plain = call(signatures["generate_extended"], [chatty.render(messages)], **settings)
    assert texts(plain) == [chatty(chatty.render(messages), 12, **settings)]


def test_beams_are_those_of_python(task, signatures):
    penalties = [0.0, 1.5]
    outputs = signatures["beam_search"](
        prompt=tf.constant(["The", "A value"]),
        max_new_tokens=tf.constant([9]),
        length_penalty=tf.constant(penalties),
    )
    for i, (prompt, penalty) in enumerate(zip(["The", "A value"], penalties, strict=True)):
        expected = task(
            prompt,
            9,
            beam_width=3,
            num_return_sequences=3,
            length_penalty=penalty,
            return_details=True,
        )
        found = [text.decode() for text in outputs["text"].numpy()[i]]
        assert found == [row.text for row in expected]
        np.testing.assert_allclose(outputs["score"][i], [row.score for row in expected], atol=1e-4)


def test_a_server_is_told_what_may_be_left_out(served):
    from tensorflow.core.protobuf import saved_model_pb2

    saved = saved_model_pb2.SavedModel.FromString((served / "saved_model.pb").read_bytes())
    signature = saved.meta_graphs[0].signature_def["generate_extended"]
    assert set(signature.defaults) == set(signature.inputs) - {"prompt"}
    values = {name: tf.make_ndarray(value) for name, value in signature.defaults.items()}
    assert values["temperature"].tolist() == [1.0] and values["temperature"].dtype == "float32"
    assert values["max_new_tokens"].tolist() == [64] and values["seed"].dtype == "int32"
    assert set(saved.meta_graphs[0].signature_def["score"].defaults) == set()


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"min_p": 1.5}, "min_p must be in"),
        ({"top_k": 10**6}, "top_k must be at most"),
        ({"typical_p": 0.0}, "typical_p must be in"),
        ({"repetition_penalty": 0.0}, "repetition_penalty must be"),
        ({"repetition_penalty": float("nan")}, "repetition_penalty must be"),
        ({"presence_penalty": float("inf")}, "presence_penalty must be"),
        ({"no_repeat_ngram_size": -1}, "no_repeat_ngram_size must be"),
        ({"min_new_tokens": [1, 2, 3]}, "min_new_tokens must have length 1"),
    ],
)
def test_wrong_settings_are_refused(signatures, settings, words):
    with pytest.raises(tf.errors.InvalidArgumentError, match=words):
        call(signatures["generate_extended"], ["The", "A"], **settings)


def test_logits_that_are_no_numbers_are_refused(task):
    model = models.causal_lm(task.model.config)
    model.set_weights([np.full_like(w, np.nan) for w in task.model.get_weights()])
    broken = keras_llm.TextGeneration(model, task.tokenizer)
    graphs = module_of(broken, beam_width=2).signatures()
    with pytest.raises(tf.errors.InvalidArgumentError, match="not numbers"):
        call(graphs["generate_extended"], ["The"])
    with pytest.raises(tf.errors.InvalidArgumentError, match="not numbers"):
        graphs["beam_search"](
            prompt=tf.constant(["The"]),
            max_new_tokens=tf.constant([3]),
            length_penalty=tf.constant([1.0]),
        )


def test_steps_of_a_client_take_no_id_that_the_tokenizer_lacks(serve, tmp_path):
    tok = tokenizers.SentencePiece.train(["once upon a time there was"] * 9, 280, "bpe")
    task = unsure(tok, {}, vocabulary_size=296)
    kernel = task.model.get_layer("token_embedding").reverse_embeddings
    kernel.assign(np.where(np.arange(296) < 280, np.array(kernel), 50 * np.array(kernel)))
    save(TextGenerationModule(task), tmp_path / "spare" / "1")
    server = serve(tmp_path / "spare")
    with export.Client(f"localhost:{server.port}", "spare") as client:
        for settings in ({"temperature": 0.0}, {"seed": 3}):
            text = client.generate("once", 12, **settings)
            assert text == task("once", 12, **settings)
            assert "".join(client.stream("once", 12, **settings)) == text


def test_a_stream_ends_where_the_text_does(serve, tmp_path):
    """Not at a token without text, and also at an end token that has one."""
    tok = tokenizers.SentencePiece.train(["once upon a time there was"] * 9, 280, "bpe")
    often, end = tok.bos_id, 100
    task = unsure(tok, {"end_token_ids": [end]}, vocabulary_size=280)
    assert tok.decode([often]) == "" and tok.decode([end])
    kernel = np.array(task.model.get_layer("token_embedding").reverse_embeddings)
    kernel[:, often] *= 20
    kernel[:, end] = kernel[:, often]
    task.model.get_layer("token_embedding").reverse_embeddings.assign(kernel)
    save(TextGenerationModule(task), tmp_path / "ends" / "1")
    server = serve(tmp_path / "ends")
    reasons, inside = set(), False
    with export.Client(f"localhost:{server.port}", "ends") as client:
        for seed in range(12):
            found = task("once", 12, seed=seed, return_details=True)
            assert "".join(client.stream("once", 12, seed=seed)) == found.text
            reasons.add(found.finish_reason)
            inside |= often in found.token_ids[:-1]
    assert inside and "stop" in reasons


def unsure(tok, metadata, **sizes):
    """A task whose model was not trained."""
    keras.utils.set_random_seed(0)
    config = models.preset("llama-tiny", tie_embeddings=False, num_layers=1, **sizes)
    return keras_llm.TextGeneration(models.causal_lm(config), tok, metadata)
