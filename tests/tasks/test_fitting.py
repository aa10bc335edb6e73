"""Test `fit` and `evaluate` of tasks, which train on strings."""

import keras
import numpy as np
import pytest

import keras_llm
from keras_llm import data, models, tokenizers, training
from keras_llm.errors import InputError

COLORS = ["red", "green", "blue", "white"]
TEMPLATE = """{% for message in messages -%}
<|{{ message.role }}|>{{ message.content }}<|end|>
{%- endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"""


@pytest.fixture(scope="module")
def word_piece():
    texts = [f"the {color} thing is {color} and was {color} here" for color in COLORS]
    texts += ["what color is it ?", "nobody knows", "O COLOR"]
    return tokenizers.WordPiece.train(texts * 9, 200)


def encoder_config(tokenizer, **options):
    sizes = {
        "vocabulary_size": tokenizer.vocabulary_size,
        "max_length": 32,
        "dropout": 0.0,
        "num_layers": 1,
    }
    return models.preset("encoder-tiny", **{**sizes, **options})


def fit_task(task, rows, **options):
    """Fit and check that the loss decreases."""
    options = {"batch_size": 8, "epochs": 6, "verbose": 0, **options}
    history = task.fit(rows, **options).history["loss"]
    assert history[-1] < history[0]


def test_fit_text_generation():
    texts = [f"the {color} thing is {color}. " * 6 for color in COLORS] * 8
    tokenizer = tokenizers.SentencePiece.train(texts, vocabulary_size=300, model_type="bpe")
    config = models.preset("llama-tiny", vocabulary_size=tokenizer.vocabulary_size, num_layers=1)
    task = keras_llm.TextGeneration(models.causal_lm(config), tokenizer)
    before = task.evaluate(texts[:4], sequence_length=24)
    fit_task(task, texts, sequence_length=24, validation_data=texts[:8])
    after = task.evaluate(texts[:4], sequence_length=24)
    assert after["perplexity"] < before["perplexity"] / 4
    assert task.generate("the red thing is", 2, temperature=0.0).strip().startswith("red")


def test_fit_conversations():
    specials = ["<|user|>", "<|assistant|>", "<|end|>"]
    conversations = [
        [
            {"role": "user", "content": f"say {color}"},
            {"role": "assistant", "content": f"{color} it is"},
        ]
        for color in COLORS
    ]
    texts = [message["content"] for conversation in conversations for message in conversation]
    tokenizer = tokenizers.BytePair.train(texts * 9, 300, special_tokens=specials)
    config = models.preset("llama-tiny", vocabulary_size=tokenizer.vocabulary_size, num_layers=1)
    end = tokenizer.special_tokens["<|end|>"]
    task = keras_llm.TextGeneration(
        models.causal_lm(config), tokenizer, {"chat_template": TEMPLATE, "end_token_ids": [end]}
    )
    fit_task(task, conversations * 8, epochs=12)
    assert task.evaluate(conversations)["accuracy"] > 0.9
    assert [
        task.chat(conversation[:1], max_new_tokens=8, temperature=0.0)
        for conversation in conversations
    ] == [conversation[1]["content"] for conversation in conversations]


def test_fit_translation():
    pairs = [(f"a {color} {word}", f"{word} {color}") for color in COLORS for word in "xyz"]
    texts = [text for pair in pairs for text in pair]
    tokenizer = tokenizers.SentencePiece.train(texts * 9, vocabulary_size=300, model_type="bpe")
    config = models.preset(
        "transformer-tiny",
        vocabulary_size=tokenizer.vocabulary_size,
        start_id=tokenizer.bos_id,
        pad_id=tokenizer.pad_id,
        dropout=0.0,
        num_layers=1,
    )
    task = keras_llm.Translation(models.seq2seq(config), tokenizer)
    task.compile(learning_rate=3e-3)
    fit_task(task, pairs * 8, epochs=12)
    results = task([source for source, _ in pairs], max_new_tokens=12)
    assert sum(a == target for a, (_, target) in zip(results, pairs, strict=True)) >= 9
    measures = task.evaluate(pairs)
    assert measures["chrf"] > 60
    # A text that `fit` leaves out because of its length is left out of the evaluation, too.
    assert task.evaluate([("a " * 300, "x"), *pairs]) == {**measures, "texts_too_long": 1}
    with pytest.raises(InputError, match="no text of 1 rows fits"):
        task.evaluate([("a " * 300, "x")])


def test_fit_classification_and_regression(word_piece):
    rows = [(f"the {color} thing is here", color) for color in COLORS] * 16
    model = models.text_classifier(encoder_config(word_piece), len(COLORS))
    task = keras_llm.TextClassification(model, word_piece, COLORS)
    fit_task(task, rows, validation_data=rows[:8])
    assert task.evaluate(rows[:8])["accuracy"] == 1.0
    assert task("the blue thing is here") == "blue"

    numbers = [(text, float(COLORS.index(label))) for text, label in rows]
    regressor = keras_llm.TextRegression(
        models.text_regressor(encoder_config(word_piece)), word_piece
    )
    fit_task(regressor, numbers, epochs=12)
    assert regressor.evaluate(numbers[:8])["rmse"] < 0.6


def test_fit_classification_with_contexts(word_piece):
    answers = ["yes", "no"]
    rows = [("the thing is red here", f"what is {color} ?", "yes") for color in COLORS[:1]]
    rows += [("the thing is red here", f"what is {color} ?", "no") for color in COLORS[1:2]]
    model = models.text_classifier(encoder_config(word_piece), 2)
    task = keras_llm.TextClassification(model, word_piece, answers, {"context_separator": " "})
    fit_task(task, rows * 16, validation_data=rows, epochs=12)
    assert task.evaluate(rows)["accuracy"] == 1.0
    assert [task(text, context) for text, context, _ in rows] == answers
    assert task.evaluate([(f"{text} {context}", label) for text, context, label in rows]) == (
        task.evaluate(rows)
    )
    with pytest.raises(InputError, match=r"row 1 must be a triple \(text, context, label\)"):
        task.fit([rows[0], ("the red thing", "yes")] * 8)
    without = keras_llm.TextClassification(model, word_piece, answers)
    with pytest.raises(InputError, match=r"row 0 must be a pair \(text, label\)"):
        without.fit(rows * 16)
    with pytest.raises(InputError, match="row 0 must be a pair") as error:
        without.fit(["a text " * 1000] * 16)
    assert len(str(error.value)) < 100


def test_fit_token_classification(word_piece):
    rows = [(["the", color, "thing"], ["O", "COLOR", "O"]) for color in COLORS] * 16
    model = models.token_classifier(encoder_config(word_piece), 2)
    task = keras_llm.TokenClassification(model, word_piece, ["O", "COLOR"])
    fit_task(task, rows)
    results = task("the red thing", return_details=True).words
    assert [word.label for word in results] == ["O", "COLOR", "O"]
    assert task.evaluate(rows[:8])["accuracy"] == 1.0


def test_fit_question_answering(word_piece):
    rows = [("what color is it ?", f"the thing is {color} here", color) for color in COLORS] * 16
    model = models.span_qa(encoder_config(word_piece, num_segments=2))
    task = keras_llm.QuestionAnswering(model, word_piece)
    fit_task(task, rows, epochs=12)
    assert task.evaluate(rows[:4])["exact_match"] == 1.0


def test_fit_mask_filling_and_embedding(word_piece):
    texts = [f"the {color} thing is {color} and was {color} here" for color in COLORS] * 16
    filler = keras_llm.MaskedLanguageModel(models.masked_lm(encoder_config(word_piece)), word_piece)
    before = filler.evaluate(texts[:8], sequence_length=16)
    fit_task(filler, texts, sequence_length=16, epochs=8)
    assert filler.evaluate(texts[:8], sequence_length=16)["perplexity"] < before["perplexity"] / 2

    pairs = [(f"the {color} thing", f"{color} is here") for color in COLORS]
    embedder = keras_llm.TextEmbedding(
        models.sentence_embedder(encoder_config(word_piece)), word_piece
    )
    fit_task(embedder, pairs * 8, batch_size=4)
    assert embedder.evaluate(pairs)["accuracy"] == 1.0


@pytest.mark.parametrize("objective", ["skip_gram", "cbow", "glove"])
def test_word_vectors_are_trained(objective):
    texts = ["red green blue red", "one two three one"] * 40
    tokenizer = data.word_vocabulary(texts, 10)
    config = models.WordVectorsConfig(tokenizer.vocabulary_size, 8, objective)
    task = keras_llm.WordVectors(models.word_vectors(config), tokenizer)
    task.compile(learning_rate=0.05)
    fit_task(task, texts, epochs=8, window=3)
    assert {word for word, _ in task.nearest("red", 2)} == {"green", "blue"}
    stream = data.word_stream(texts, tokenizer, 3)
    batches = [task.dataset(rows, 8, window=3, seed=4) for rows in (texts, stream)]
    assert len(batches[0]) > 0
    assert_equal_batches(*batches)


def assert_equal_batches(first, second):
    for one, other in zip(first, second, strict=True):
        for a, b in zip(keras.tree.flatten(one), keras.tree.flatten(other), strict=True):
            np.testing.assert_array_equal(a, b)


def test_datasets_take_token_ids(word_piece):
    texts = [f"the {color} thing is {color} and was {color} here" for color in COLORS] * 8
    ids = data.encode_documents(texts, word_piece)
    size = {"vocabulary_size": word_piece.vocabulary_size, "num_layers": 1}
    generator = keras_llm.TextGeneration(
        models.causal_lm(models.preset("llama-tiny", **size)), word_piece
    )
    filler = keras_llm.MaskedLanguageModel(models.masked_lm(encoder_config(word_piece)), word_piece)
    for task in (generator, filler):
        for options in ({"seed": 3, "epochs": 2}, {}, {"drop_remainder": True}):
            rows = (task.dataset(rows, 5, sequence_length=9, **options) for rows in (texts, ids))
            assert_equal_batches(*rows)
    text = ids[ids != word_piece.bos_id]
    for task, windows in ((generator, data.windows(ids, 9)), (filler, data.windows(text, 7))):
        assert windows % 4
        whole, dropped, alone = (
            [len(y) for _, y in task.dataset(ids, size, sequence_length=9, drop_remainder=drop)]
            for size, drop in ((4, False), (4, True), (windows + 9, False))
        )
        assert dropped == [4] * (windows // 4) and alone == [windows]
        assert whole == [*dropped, windows % 4]
        assert len(task.dataset(ids, 4, sequence_length=9)) == len(whole)


def test_metrics_of_validation_are_independent_of_the_batch_size(word_piece):
    config = models.preset("llama-tiny", vocabulary_size=word_piece.vocabulary_size, num_layers=1)
    task = keras_llm.TextGeneration(models.causal_lm(config), word_piece)
    ids = np.random.default_rng(0).integers(5, word_piece.vocabulary_size, 7 * 9 + 1)
    ids[ids == word_piece.bos_id] = 5  # no ignored targets
    trainer = task.trainer("sgd")
    one, several = (
        trainer.evaluate(task.dataset(ids, size, sequence_length=9), verbose=0, return_dict=True)
        for size in (7, 3)
    )
    assert one == pytest.approx(several, rel=1e-5)


def test_windows_of_separate_documents():
    texts = [f"the {color} thing is {color}. " * 3 for color in COLORS] * 8
    tokenizer = tokenizers.SentencePiece.train(texts, vocabulary_size=300, model_type="bpe")
    config = models.preset("llama-tiny", vocabulary_size=300, num_layers=1)
    task = keras_llm.TextGeneration(models.causal_lm(config), tokenizer)
    for inputs, _ in task.dataset(texts, 4, sequence_length=24, segments=True).take(2):
        begins = np.asarray(inputs["token_ids"]) == tokenizer.bos_id
        np.testing.assert_array_equal(inputs["segment_ids"], np.cumsum(begins, axis=1))
    fit_task(task, texts, sequence_length=24, segments=True, epochs=2)
    joint, apart = (task.evaluate(texts, sequence_length=24, segments=s) for s in (False, True))
    assert joint["tokens"] == apart["tokens"] and joint["perplexity"] != apart["perplexity"]


def test_own_training_loop(word_piece):
    """`trainer` and `dataset` train like `fit`; weights of the batches count in the evaluation."""
    pairs = [(f"a {color} {word}", f"{word} {color}") for color in COLORS for word in "xyz"]
    config = models.preset(
        "transformer-tiny", vocabulary_size=word_piece.vocabulary_size, dropout=0.0, num_layers=1
    )
    tasks = [keras_llm.Translation(models.seq2seq(config), word_piece) for _ in range(2)]
    tasks[1].model.set_weights(tasks[0].model.get_weights())
    tasks[0].compile(keras.optimizers.SGD(0.1))
    tasks[0].fit(pairs, batch_size=8, epochs=2, seed=1, verbose=0)
    trainer = tasks[1].trainer(keras.optimizers.SGD(0.1))
    trainer.fit(tasks[1].dataset(pairs, 8, epochs=2, seed=1), verbose=0)
    for one, other in zip(*(task.model.get_weights() for task in tasks), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
    batches = tasks[0].dataset([("a red x", "x red"), ("a blue y", "y blue and a red one")], 2)
    unweighted = batches.map(lambda x, y, weights: (x, y))
    counted, padded = (
        training.evaluate_targets(tasks[0].model, rows, ignore_id=-1)["tokens"]
        for rows in (batches, unweighted)
    )
    ((_, targets, weights),) = batches
    assert counted == int(np.sum(weights)) < padded == np.size(targets)


def test_fit_with_own_optimizer_and_invalid_rows(word_piece):
    rows = [("the red thing", "red"), ("the blue thing", "blue")] * 8
    model = models.text_classifier(encoder_config(word_piece, dropout=0.0), 2)
    task = keras_llm.TextClassification(model, word_piece, ["red", "blue"])
    task.compile(keras.optimizers.Adam(3e-3))
    fit_task(task, rows)
    with pytest.raises(InputError, match="row 8: the model has no label 'green'"):
        task.fit([*rows[:8], ("the green thing", "green")])
    with pytest.raises(InputError, match=r"row 1: the model has no label \['red'\]"):
        task.fit([rows[0], ("the red thing", ["red"])])
    with pytest.raises(InputError, match="pair"):
        task.fit(["the green thing"] * 8)
    with pytest.raises(InputError, match="batch of 32"):
        task.fit(rows[:4])


def test_evaluation_takes_token_ids_and_options(word_piece):
    texts = [f"the {color} thing is {color} and was {color} here" for color in COLORS]
    ids = data.encode_documents(texts, word_piece)
    size = {"vocabulary_size": word_piece.vocabulary_size, "num_layers": 1}
    task = keras_llm.TextGeneration(
        models.causal_lm(models.preset("llama-tiny", **size)), word_piece
    )
    metrics = task.evaluate(texts, sequence_length=5)
    of_ids = task.evaluate(ids, batch_size=3, sequence_length=5)
    assert of_ids == pytest.approx({k: v for k, v in metrics.items() if k != "bits_per_byte"})
    dropped = task.evaluate(texts, batch_size=3, sequence_length=5, drop_remainder=True)
    batches = task.dataset(texts, 3, sequence_length=5, drop_remainder=True)
    targets = np.concatenate([np.ravel(y) for _, y in batches])
    assert dropped["tokens"] == np.sum(targets != -1) < metrics["tokens"]
    assert "bits_per_byte" in metrics and "bits_per_byte" not in dropped


def test_unknown_options_raise_error(word_piece):
    config = encoder_config(word_piece)
    classifier = keras_llm.TextClassification(
        models.text_classifier(config, 2), word_piece, ["red", "blue"]
    )
    filler = keras_llm.MaskedLanguageModel(models.masked_lm(config), word_piece)
    rows = [("the red thing", "red")] * 8
    with pytest.raises(InputError, match=r"`window` is not an option of TextClassification.fit"):
        classifier.fit(rows, window=3)
    with pytest.raises(InputError, match=r"`window` .* TextClassification.evaluate; valid: none"):
        classifier.evaluate(rows, window=3)
    with pytest.raises(InputError, match=r"`window` .*valid: .*`sequence_length`.*`rate`"):
        filler.evaluate(["the red thing"], window=3)


def test_enable_and_merge_lora():
    texts = [f"the {color} thing is {color}. " * 6 for color in COLORS] * 8
    tokenizer = tokenizers.SentencePiece.train(texts, vocabulary_size=300, model_type="bpe")
    config = models.preset("llama-tiny", vocabulary_size=tokenizer.vocabulary_size, num_layers=1)
    task = keras_llm.TextGeneration(models.causal_lm(config), tokenizer)
    task.enable_lora(rank=4, target=r"query|value")
    names = {variable.path for variable in task.model.trainable_variables}
    assert names and all("lora" in name for name in names)
    assert all("query" in name or "value" in name for name in names)
    fit_task(task, texts, sequence_length=24)
    merged = training.merge_lora(task.model)
    ids = tokenizer.encode("the red thing")
    assert keras.ops.shape(merged(np.array([ids])))[-1] == config.vocabulary_size


def test_end_token_is_target_when_used_as_padding():
    """Tokenizers without a padding token pad with the end token."""
    texts = ["a b c"] * 64
    tokenizer = tokenizers.SentencePiece.train(texts, vocabulary_size=264, model_type="bpe")
    config = models.preset("llama-tiny", vocabulary_size=264, max_length=32, num_layers=1)
    task = keras_llm.TextGeneration(models.causal_lm(config), tokenizer)
    tokenizer.pad_id = tokenizer.eos_id
    targets = np.concatenate([np.ravel(y) for _, y in task.dataset(texts, 4, sequence_length=8)])
    assert tokenizer.eos_id in targets
    trainer, _ = task._objective()
    assert trainer.ignore_id != tokenizer.eos_id


def test_lora_is_used_in_compiled_and_merged_models():
    texts = [f"the {color} thing is {color}. " * 6 for color in COLORS] * 8
    tokenizer = tokenizers.SentencePiece.train(texts, vocabulary_size=300, model_type="bpe")
    config = models.preset("llama-tiny", vocabulary_size=300, num_layers=1)
    task = keras_llm.TextGeneration(models.causal_lm(config), tokenizer)
    before = task.score(texts[0])
    task.enable_lora(rank=4)
    task.compile(learning_rate=3e-2)
    fit_task(task, texts, sequence_length=24)
    after = task.score(texts[0])
    assert after > before + 1
    merged = task._merged()
    assert merged.model is not task.model and task._merged().score(texts[0]) == pytest.approx(
        after, abs=1e-2
    )
