"""Test text embedding, translation and chat."""

import keras
import numpy as np
import pytest

import keras_llm
from keras_llm import models, tokenizers
from keras_llm.errors import InputError


@pytest.fixture(scope="module")
def tok(text_folder):
    texts = [path.read_text("utf-8") for path in sorted(text_folder.iterdir())[:20]]
    return tokenizers.SentencePiece.train(texts, 400, "bpe")


@pytest.fixture(scope="module")
def embedding(tok):
    options = {"vocabulary_size": 400, "num_layers": 1, "initializer_range": 0.2}
    config = models.preset("bert-tiny", **options)
    return keras_llm.TextEmbedding(models.sentence_embedder(config), tok, {"source": "test"})


@pytest.fixture(scope="module")
def copier(tok):
    """Return an encoder-decoder that was trained to copy one of eight words."""
    keras.utils.set_random_seed(0)
    config = models.preset(
        "transformer-tiny",
        vocabulary_size=400,
        start_id=tok.bos_id,
        dropout=0.0,
        num_layers=1,
        num_decoder_layers=1,
    )
    task = keras_llm.Translation(models.seq2seq(config), tok)
    rows = [[*tok.encode(word), tok.eos_id] for word in WORDS]
    width = max(map(len, rows))
    rows = np.array([row + [0] * (width - len(row)) for row in rows] * 8, "int32")
    decoder = np.concatenate([np.full((len(rows), 1), tok.bos_id), rows[:, :-1]], axis=1)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=0)
    task.model.compile(keras.optimizers.Adam(3e-3), loss, jit_compile=False)
    task.model.fit([rows, decoder], rows, epochs=40, verbose=0, batch_size=16)
    return task


WORDS = ["class", "import", "the value", "exception", "yield", "a string", "None", "object"]


def test_embeddings_do_not_depend_on_batch(embedding):
    texts = ["a", "a longer text, with a comma", "and another one"]
    vectors = embedding(texts)
    assert vectors.shape == (3, 64) and vectors.dtype == "float32"
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, rtol=1e-5)
    for text, vector in zip(texts, vectors, strict=True):
        np.testing.assert_allclose(embedding(text), vector, atol=1e-5)
    np.testing.assert_allclose(embedding(texts, batch_size=1), vectors, atol=1e-5)
    assert embedding.similarity("a", "a") == pytest.approx(1.0, abs=1e-5)
    assert embedding.similarity(texts, texts[:2]).shape == (3, 2)


def test_save_and_load_embedding(embedding, tmp_path):
    embedding.save(tmp_path / "task")
    loaded = keras_llm.load(tmp_path / "task")
    assert type(loaded) is keras_llm.TextEmbedding and loaded.metadata == {"source": "test"}
    np.testing.assert_array_equal(loaded("some text"), embedding("some text"))


def test_long_texts_raise_error_or_are_truncated(embedding):
    long = "word " * 200
    with pytest.raises(InputError, match=r"`texts` 1 has .* tokens"):
        embedding(["short", long])
    cut = embedding(long, truncate=True)
    np.testing.assert_allclose(np.linalg.norm(cut), 1.0, rtol=1e-5)


def test_train_save_and_load_translation(copier, tmp_path):
    assert copier(WORDS) == WORDS
    assert [copier(word) for word in WORDS[:2]] == WORDS[:2]
    details = copier("class", return_details=True)
    assert details.finish_reason == "stop" and details.log_probability > -1.0
    assert copier("exception", max_new_tokens=1, return_details=True).finish_reason == "length"
    copier.save(tmp_path / "task")
    assert keras_llm.load(tmp_path / "task")(WORDS[:3]) == WORDS[:3]


def test_translation_samples_by_seed(copier):
    hot = {"temperature": 3.0, "max_new_tokens": 12}
    assert copier("class", seed=1, **hot) == copier("class", seed=1, **hot)
    assert len({copier("class", seed=seed, **hot) for seed in range(5)}) > 1


def test_wrong_model_class_raises_error(tok):
    decoder = models.causal_lm(models.preset("llama-tiny"))
    for task in (keras_llm.TextEmbedding, keras_llm.Translation):
        with pytest.raises(InputError, match=r"models\."):
            task(decoder, tok)
    with pytest.raises(InputError, match=r"models\.causal_lm"):
        keras_llm.TextGeneration(models.seq2seq(models.preset("t5-tiny")), tok)


@pytest.mark.parametrize("texts", ["", [], ["a", ""], ["a", 3], "\ud800"])
def test_invalid_texts_raise_error(embedding, copier, texts):
    for task in (embedding, copier):
        with pytest.raises(InputError, match="`text"):
            task(texts)


def test_chat_without_template_raises_error(task):
    with pytest.raises(InputError, match="no chat template"):
        task.chat("hello")


def test_chat_continues_rendered_prompt(shallow, tmp_path):
    template = "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    metadata = {"chat_template": template}
    chat_task = keras_llm.TextGeneration(shallow.model, shallow.tokenizer, metadata)
    chat_task.save(tmp_path / "chat")
    chat_task = keras_llm.load(tmp_path / "chat")
    settings = {"max_new_tokens": 12, "temperature": 0.0}
    answer = chat_task.chat("What is a class?", **settings)
    # The template writes the begin token, which calling the task adds by itself.
    assert answer == shallow("user: What is a class?\n", **settings)
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    expected = shallow("system: Be brief.\nuser: Hi\n", **settings)
    assert chat_task.chat(messages, **settings) == expected
    with pytest.raises(InputError, match="role"):
        chat_task.chat([{"content": "Hi"}])
