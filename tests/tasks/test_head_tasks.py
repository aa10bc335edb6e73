"""Test classification, tagging, question answering and mask filling."""

import keras
import numpy as np
import pytest

import keras_llm
from keras_llm import models, tokenizers
from keras_llm.checkpoints import from_hugging_face, to_hugging_face
from keras_llm.errors import InputError

LABELS = ["statement", "expression", "other"]
SPECIAL = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")


@pytest.fixture(scope="module")
def texts(text_folder):
    return [path.read_text("utf-8") for path in sorted(text_folder.iterdir())[:20]]


@pytest.fixture(scope="module")
def word_piece(texts):
    return tokenizers.WordPiece.train(texts, 400)


@pytest.fixture(scope="module")
def tokenizers_by_name(texts, word_piece):
    """Return a tokenizer of each class, two of them with a mask token."""
    trained = tokenizers.BytePair.train(texts, 400, special_tokens=["<mask>"])
    byte_pair = tokenizers.BytePair(
        trained.vocabulary,
        trained.merges,
        special_tokens=trained.special_tokens,
        **trained.roles,
        lstrip=["<mask>"],
    )
    return {
        "word_piece": word_piece,
        "byte_pair": byte_pair,
        "sentencepiece": tokenizers.SentencePiece.train(texts, 400),
    }


@pytest.fixture(scope="module")
def config(word_piece):
    size = word_piece.vocabulary_size
    return models.preset("bert-tiny", vocabulary_size=size, num_layers=1, initializer_range=0.3)


@pytest.fixture(scope="module")
def classifier(config, word_piece):
    model = models.text_classifier(config, 3)
    return keras_llm.TextClassification(model, word_piece, LABELS, {"source": "test"})


@pytest.fixture(scope="module")
def tagger(config, word_piece):
    model = models.token_classifier(config, 3)
    return keras_llm.TokenClassification(model, word_piece, LABELS)


@pytest.fixture(scope="module")
def answerer(config, word_piece):
    return keras_llm.QuestionAnswering(models.span_qa(config), word_piece)


@pytest.fixture(scope="module")
def mask_filler(config, word_piece):
    return keras_llm.MaskedLanguageModel(models.masked_lm(config), word_piece)


def test_class_and_probabilities(classifier):
    strings = ["import sys", "a longer text, with a comma", "None"]
    labels = classifier(strings)
    assert labels == [classifier(text) for text in strings] and set(labels) <= set(LABELS)
    details = classifier(strings, return_details=True)
    for text, label, row in zip(strings, labels, details, strict=True):
        assert (row.label, row.truncated) == (label, False)
        assert list(row.probabilities) == LABELS
        assert row.probability == max(row.probabilities.values()) == row.probabilities[label]
        ids = [2, *classifier.tokenizer.encode(text), 3]
        logits = classifier.model([np.array([x]) for x in (ids, [1] * len(ids), [0] * len(ids))])
        np.testing.assert_allclose(
            list(row.probabilities.values()), keras.ops.softmax(logits)[0], atol=1e-5
        )


def test_classifier_learns_labels(word_piece):
    keras.utils.set_random_seed(0)
    size = word_piece.vocabulary_size
    config = models.preset("bert-tiny", vocabulary_size=size, num_layers=1)
    model = models.text_classifier(config, 2, dropout=0.0)
    task = keras_llm.TextClassification(model, word_piece, ["class", "value"])
    strings = ["a class statement", "the value of this"] * 8
    ids = np.array([[2, *word_piece.encode(text)[:3], 3] for text in strings])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(3e-3), loss, jit_compile=False)
    model.fit([ids, ids > 0, 0 * ids], np.array([0, 1] * 8), epochs=12, verbose=0)
    assert task(strings[:2]) == ["class", "value"]


def test_text_and_context_are_joined(classifier):
    task = keras_llm.TextClassification(
        classifier.model, classifier.tokenizer, LABELS, {"context_separator": "?\n"}
    )
    result = task("is it", "It is.", return_details=True)
    assert result == classifier("is it?\nIt is.", return_details=True)
    texts, contexts = ["is it", "does a class"], ["It is.", "A class does."]
    batched = task(texts, contexts, return_details=True)
    assert [row.label for row in batched] == [
        task(*row) for row in zip(texts, contexts, strict=True)
    ]
    with pytest.raises(InputError, match="`context` must have as many texts as `texts`, 2"):
        task(texts, contexts[:1])


def test_word_label_is_that_of_first_token(tagger):
    text = "  The parser's  state, été (unfinishedness)."
    words = ["The", "parser", "'", "s", "state", ",", "été", "(", "unfinishedness", ")", "."]
    assert [word for word, _ in tagger(text)] == words
    result = tagger(text, return_details=True)
    tok = tagger.tokenizer
    ids, spans = tok.encode_with_offsets(text)
    framed = np.array([[2, *ids, 3]])
    logits = np.asarray(tagger.model([framed, framed > 0, 0 * framed]))[0, 1:-1]
    probabilities = np.asarray(keras.ops.softmax(logits))
    for word in result.words:
        assert text[word.start : word.end] == word.text
        row = probabilities[next(i for i, span in enumerate(spans) if span[0] == word.start)]
        assert word.label == LABELS[row.argmax()]
        assert word.probability == pytest.approx(row.max(), abs=1e-5)
    assert any(end < word.end for word in result.words for _, end in spans if end > word.start)


def test_answer_is_best_span_of_context(answerer):
    question, context = "What is a class?", " A class is a template for objects. "
    answer = answerer(question=question, context=context, return_details=True)
    assert answer.text == context[answer.start : answer.end] == answer.text.strip() != ""
    assert answerer(question, context) == answer.text
    tok = answerer.tokenizer
    first, (second, spans) = tok.encode(question), tok.encode_with_offsets(context)
    ids = [2, *first, 3, *second, 3]
    segments = [0] * (len(first) + 2) + [1] * (len(second) + 1)
    outputs = answerer.model([np.array([x]) for x in (ids, [1] * len(ids), segments)])
    begin = len(first) + 2
    start, end = (np.asarray(outputs[k])[0, begin:-1] for k in ("start", "end"))
    scores = np.triu(start[:, None] + end[None, :])
    scores[np.tril_indices(len(second), -1)] = -np.inf
    i, j = np.unravel_index(scores.argmax(), scores.shape)
    assert j - i < 30
    assert answer.text == context[spans[i][0] : spans[j][1]].strip()
    p = np.exp(start[i]) / np.exp(start).sum() * np.exp(end[j]) / np.exp(end).sum()
    assert answer.probability == pytest.approx(p, rel=1e-4)


def test_unanswerable_questions(answerer, texts):
    """In each window, the empty span is compared with the best span of all windows."""
    settings = {"unanswerable": True, "longest_answer": 3}
    task = keras_llm.QuestionAnswering(answerer.model, answerer.tokenizer, settings)
    tok, max_length = task.tokenizer, task.model.config.max_length
    questions = ["Who?", "What is a class?", "it", "How does a method know of its object?"] * 3
    contexts = ["class"] * 4 + ["of it"] * 4 + [texts[i][: 40 + 400 * i] for i in range(4)]
    answers = task(questions, contexts, return_details=True)
    assert {answer.text == "" for answer in answers} == {True, False}
    for question, context, answer in zip(questions, contexts, answers, strict=True):
        first, (second, spans) = tok.encode(question), tok.encode_with_offsets(context)
        window_size = max_length - len(first) - 3
        step, best, empty = window_size - window_size // 2, (-np.inf,), (np.inf,)
        for w in range(0, max(1, len(second) - window_size + step), step):
            part = second[w : w + window_size]
            ids = [2, *first, 3, *part, 3]
            segments = [0] * (len(first) + 2) + [1] * (len(part) + 1)
            outputs = task.model([np.array([x]) for x in (ids, [1] * len(ids), segments)])
            keep = [0, *range(len(first) + 2, len(ids) - 1)]
            start, end = (np.asarray(outputs[k])[0, keep] for k in ("start", "end"))
            p, q = (np.exp(x) / np.exp(x).sum() for x in (start, end))
            empty = min(empty, (start[0] + end[0], p[0] * q[0]))
            for i in range(1, len(keep)):
                for j in range(i, min(i + 3, len(keep))):
                    span = (start[i] + end[j], p[i] * q[j], w + i - 1, w + j - 1)
                    best = max(best, span)
        is_empty = empty[0] >= best[0]
        expected = "" if is_empty else context[spans[best[2]][0] : spans[best[3]][1]].strip()
        assert answer.text == expected and (answer.end > 0) == (expected != "")
        assert answer.probability == pytest.approx((empty if is_empty else best)[1], rel=1e-3)


def test_answers_do_not_depend_on_batch(answerer, texts):
    questions = ["What is it?", "Why does the class of an object matter here?", "Who?"]
    contexts = [texts[0][:400], "Short.", texts[1][:1500]]
    batched = answerer(question=questions, context=contexts, return_details=True)
    for question, context, answer in zip(questions, contexts, batched, strict=True):
        single = answerer(question, context, return_details=True)
        assert (single.text, single.start) == (answer.text, answer.start)
        assert single.probability == pytest.approx(answer.probability, rel=1e-4)


def test_long_context_is_read_to_its_end(texts, word_piece):
    """A model that detects a marked token finds it at any position."""
    config = models.preset("bert-tiny", vocabulary_size=word_piece.vocabulary_size, max_length=32)
    model = models.span_qa(config)
    for variable in model.variables:  # all except norms
        if len(variable.shape) > 1:
            variable.assign(np.zeros(variable.shape))
    (marked_id,) = word_piece.encode("*")
    assert marked_id != word_piece.unk_id
    table = model.get_layer("backbone").get_layer("token_embedding").embeddings
    rows = np.zeros(table.shape)
    rows[marked_id] = np.linspace(-1, 1, config.hidden_dim)
    table.assign(rows)
    kernel, bias = model.get_layer("span").get_weights()
    kernel[:] = np.linspace(-1, 1, len(kernel))[:, None]
    model.get_layer("span").set_weights([kernel, bias])
    task = keras_llm.QuestionAnswering(model, word_piece)
    filler = "the class of it . "
    for before in (0, 1, 7, 20, 41):
        context = filler * before + "* " + filler * (41 - before)
        answer = task("what?", context, return_details=True)
        assert (answer.text, answer.start) == ("*", len(filler) * before)


def test_masks_are_filled(mask_filler):
    text = "The [MASK] of an object is its [MASK]."
    result = mask_filler(text, return_details=True, top_k=3)
    assert mask_filler(text) == result.text and "[MASK]" not in result.text
    assert [len(row) for row in result.tokens] == [3, 3]
    tok = mask_filler.tokenizer
    ids = np.array([[2, *tok.encode(text, parse_special=True), 3]])
    positions = np.array([np.flatnonzero(ids[0] == tok.mask_id)])
    logits = np.array(mask_filler.model([ids, ids > 0, 0 * ids, positions]))[0]
    logits[:, list(tok.special_tokens.values())] = -1e30
    probabilities = np.asarray(keras.ops.softmax(logits))
    for row, expected in zip(result.tokens, probabilities, strict=True):
        best = np.argsort(-expected)[:3]
        expected_tokens = [tok.vocabulary[i].removeprefix("##") for i in best]
        assert [token.removeprefix("##") for token, _ in row] == expected_tokens
        np.testing.assert_allclose([p for _, p in row], expected[best], atol=1e-5)
    assert mask_filler(["[MASK]", text])[1] == result.text


def test_only_mask_token_is_parsed(mask_filler):
    ids = mask_filler.filler.encode("a [SEP] [MASK]")
    assert ids == [*mask_filler.tokenizer.encode("a [SEP] "), mask_filler.tokenizer.mask_id]


def test_mask_token_that_includes_preceding_space(tokenizers_by_name):
    tok = tokenizers_by_name["byte_pair"]
    assert tok.mask_id == tok.vocabulary["<mask>"] and tok.mask_takes_space
    config = models.preset("roberta-tiny", vocabulary_size=400, initializer_range=0.3)
    task = keras_llm.MaskedLanguageModel(models.masked_lm(config), tok)
    text = "The <mask> of an object\n<mask>."
    assert task.filler.encode(text) == tok.encode(text, parse_special=True)
    (best, *_), _ = task(text, return_details=True).tokens
    token = best[0]
    if token.startswith("##") or not token[0].isalnum():
        assert task(text).startswith("The" + token.removeprefix("##"))
    else:
        assert task(text).startswith(f"The {token} of")


@pytest.mark.parametrize("name", ["classifier", "tagger", "answerer", "mask_filler"])
def test_save_and_load(name, request, tmp_path):
    task = request.getfixturevalue(name)
    task.save(tmp_path / "task")
    loaded = keras_llm.load(tmp_path / "task")
    assert type(loaded) is type(task) and loaded.metadata == task.metadata
    arguments = {"answerer": ("What?", "This and that."), "mask_filler": ("A [MASK].",)}
    arguments = arguments.get(name, ("Some text.",))
    assert loaded(*arguments, return_details=True) == task(*arguments, return_details=True)


@pytest.mark.parametrize("name", ["classifier", "tagger", "answerer", "mask_filler"])
def test_hugging_face_round_trip(name, request, tmp_path):
    task = request.getfixturevalue(name)
    to_hugging_face(task, tmp_path / "out")
    loaded = from_hugging_face(tmp_path / "out")
    assert type(loaded) is type(task) and loaded.metadata.get("labels") == task.metadata.get(
        "labels"
    )
    arguments = {"answerer": ("What?", "This and that."), "mask_filler": ("A [MASK].",)}
    arguments = arguments.get(name, ("Some text.",))
    assert loaded(*arguments, return_details=True) == task(*arguments, return_details=True)


def test_long_texts_raise_error_or_are_truncated(classifier, tagger, answerer, mask_filler):
    long = "word " * 300
    for task in (classifier, tagger):
        with pytest.raises(InputError, match=r"`texts` 1 has .* tokens"):
            task(["short", long])
        short, cut = task(["short", long], truncate=True, return_details=True)
        assert (short.truncated, cut.truncated) == (False, True)
    assert 0 < len(cut.words) < 300
    with pytest.raises(InputError, match=r"`question` has .* tokens"):
        answerer(long, "Context.")
    assert answerer(long, "Context.", truncate=True, return_details=True).truncated
    with pytest.raises(InputError, match="tokens"):
        mask_filler("[MASK] " + long)
    cut = mask_filler("[MASK] " + long + "[MASK]", truncate=True, return_details=True)
    assert cut.truncated and len(cut.tokens) == 1 and cut.text.endswith("word [MASK]")


@pytest.mark.parametrize("strings", ["", [], ["a", ""], ["a", 3], "\ud800"])
def test_invalid_texts_raise_error(classifier, tagger, answerer, mask_filler, strings):
    for task in (classifier, tagger, mask_filler):
        with pytest.raises(InputError, match="`texts"):
            task(strings)
    with pytest.raises(InputError, match="`question"):
        answerer(strings, "Context.")
    with pytest.raises(InputError, match="`context"):
        answerer("What?", strings)


def test_invalid_arguments_raise_error(
    classifier, answerer, mask_filler, config, word_piece, tokenizers_by_name
):
    for labels in (None, LABELS[:2], ["a", "a", "b"], "abc", ["a", "b", 3]):
        with pytest.raises(InputError, match="`labels` must be 3 distinct non-empty strs"):
            keras_llm.TextClassification(classifier.model, word_piece, labels)
    with pytest.raises(InputError, match="batch_size"):
        classifier("a", batch_size=0)
    with pytest.raises(InputError, match="`context` must have as many texts as `question`, 2"):
        answerer(["a", "b"], ["c"])
    with pytest.raises(InputError, match=r"has no \[MASK\]"):
        mask_filler("no gap")
    with pytest.raises(InputError, match="top_k"):
        mask_filler("[MASK]", top_k=0)
    with pytest.raises(InputError, match="no mask token"):
        keras_llm.MaskedLanguageModel(models.masked_lm(config), tokenizers_by_name["sentencepiece"])
    with pytest.raises(InputError, match="num_separators"):
        keras_llm.QuestionAnswering(answerer.model, word_piece, {"num_separators": 0})
    tok = tokenizers_by_name["byte_pair"]
    tok = tokenizers.BytePair(
        tok.vocabulary, tok.merges, special_tokens=tok.special_tokens, **tok.roles, add_bos=False
    )
    with pytest.raises(InputError, match="begin token"):
        keras_llm.QuestionAnswering(answerer.model, tok, {"unanswerable": True})
    with pytest.raises(InputError, match="`context` is only for"):
        classifier("a", "b")
    for task in (keras_llm.QuestionAnswering, keras_llm.MaskedLanguageModel):
        with pytest.raises(InputError, match=r"models\."):
            task(classifier.model, word_piece)
