"""Compare the SavedModel signatures of every task with the task, for every kind of tokenizer."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_llm
from keras_llm import export, models, tokenizers
from keras_llm.errors import ExportError, InputError
from keras_llm.export.saved_model.signatures import module_of
from keras_llm.export.saved_model.verify import verification_of
from keras_llm.export.saved_model.worker import run_calls

LABELS = ["first", "second", "third"]


@pytest.fixture(scope="module")
def tokenizers_by_name(text_folder):
    texts = [path.read_text("utf-8") for path in sorted(text_folder.iterdir())[:20]]
    return {
        "word_piece": tokenizers.WordPiece.train(texts, 400),
        "byte_pair": tokenizers.BytePair.train(texts, 400, special_tokens=["<mask>"]),
        "sentencepiece": tokenizers.SentencePiece.train(texts, 400, "bpe"),
    }


@pytest.fixture(scope="module")
def make_task(tokenizers_by_name):
    """Return a function that makes a task of a tiny model once. One layer is enough, except for
    caches."""
    keras.utils.set_random_seed(0)
    sizes = {"vocabulary_size": 400, "initializer_range": 0.3, "num_layers": 1}
    encoder = models.preset("bert-tiny", **sizes)
    decoder = models.preset("llama-tiny", **sizes)
    pair = models.preset("transformer-tiny", **sizes, num_decoder_layers=2, start_id=1)
    kinds = {
        "classify": lambda t: keras_llm.TextClassification(
            models.text_classifier(encoder, 3), t, LABELS
        ),
        "classify, decoder": lambda t: keras_llm.TextClassification(
            models.text_classifier(decoder, 3), t, LABELS
        ),
        "tag": lambda t: keras_llm.TokenClassification(
            models.token_classifier(encoder, 3), t, LABELS
        ),
        "answer": lambda t: keras_llm.QuestionAnswering(models.span_qa(encoder), t),
        "answer, two separators": lambda t: keras_llm.QuestionAnswering(
            models.span_qa(encoder), t, {"num_separators": 2, "longest_answer": 4}
        ),
        "answer, unanswerable": lambda t: keras_llm.QuestionAnswering(
            models.span_qa(encoder), t, {"unanswerable": True, "longest_answer": 1}
        ),
        "embed": lambda t: keras_llm.TextEmbedding(models.sentence_embedder(encoder), t),
        "regress": lambda t: keras_llm.TextRegression(models.text_regressor(encoder), t),
        "fill_mask": lambda t: keras_llm.MaskedLanguageModel(models.masked_lm(encoder), t),
        "translate": lambda t: keras_llm.Translation(models.seq2seq(pair), t),
    }
    tasks = {}

    def make(kind, tokenizer):
        if (kind, tokenizer) not in tasks:
            task = kinds[kind](tokenizers_by_name[tokenizer])
            tasks[kind, tokenizer] = task, module_of(task).signatures()
        return tasks[kind, tokenizer]

    return make


@pytest.fixture(scope="module")
def verify_task(make_task):
    """Return a function that verifies a task once and returns the checks and the outputs."""
    verified = {}

    def verify(kind, tokenizer):
        if (kind, tokenizer) not in verified:
            task, signatures = make_task(kind, tokenizer)
            checks = verification_of(task)
            checks.expect()
            verified[kind, tokenizer] = checks, run_calls(signatures, checks.calls())
        return verified[kind, tokenizer]

    return verify


CASES = [
    ("classify", "word_piece"),
    ("classify, decoder", "sentencepiece"),
    ("tag", "word_piece"),
    ("tag", "byte_pair"),
    ("tag", "sentencepiece"),
    ("answer", "word_piece"),
    ("answer, two separators", "byte_pair"),
    ("answer", "sentencepiece"),
    ("answer, unanswerable", "word_piece"),
    ("embed", "byte_pair"),
    ("regress", "word_piece"),
    ("fill_mask", "word_piece"),
    ("fill_mask", "byte_pair"),
    ("translate", "sentencepiece"),
]


@pytest.mark.parametrize("kind, tokenizer", CASES)
def test_signature_matches_task(kind, tokenizer, make_task, verify_task):
    _, signatures = make_task(kind, tokenizer)
    assert signatures["serving_default"] is signatures[kind.split(",")[0]]
    checks, outputs = verify_task(kind, tokenizer)
    measured = checks.compare(outputs)
    assert all(value == 1.0 for name, value in measured.items() if name.endswith("_equal"))


def test_verification_fails_if_outputs_differ(verify_task):
    for kind, name, change in (
        ("classify", "label", lambda x: ["third" if v != "third" else "first" for v in x]),
        ("classify", "probabilities", lambda x: (np.array(x) + 0.01).tolist()),
        ("tag", "start", lambda x: (np.array(x) + 1).tolist()),
        ("answer", "end", lambda x: (np.array(x) + 1).tolist()),
        ("regress", "value", lambda x: (np.array(x) + 0.01).tolist()),
        ("fill_mask", "text", lambda x: [v + "!" for v in x]),
    ):
        checks, (outputs,) = verify_task(kind, "word_piece")
        with pytest.raises(ExportError, match="of the exported model"):
            checks.compare([{**outputs, name: change(outputs[name])}])


def test_output_names_and_types(make_task):
    rows, words = [None], [None, None]
    expected = {
        ("classify", "word_piece"): {
            **{"label": ("string", rows), "probability": ("float32", rows)},
            **{"labels": ("string", [None, 3]), "probabilities": ("float32", [None, 3])},
        },
        ("tag", "word_piece"): {
            **{"word": ("string", words), "label": ("string", words)},
            **{"start": ("int32", words), "end": ("int32", words)},
            **{"probability": ("float32", words), "num_words": ("int32", rows)},
        },
        ("answer", "word_piece"): {
            **{"answer": ("string", rows), "probability": ("float32", rows)},
            **{"start": ("int32", rows), "end": ("int32", rows)},
        },
        ("embed", "byte_pair"): {"embedding": ("float32", [None, 64])},
        ("regress", "word_piece"): {"value": ("float32", rows)},
        ("fill_mask", "word_piece"): {
            **{"text": ("string", rows), "num_masks": ("int32", rows)},
            "tokens": ("string", [None, None, 5]),
            "probabilities": ("float32", [None, None, 5]),
        },
        ("translate", "sentencepiece"): {
            **{"translation": ("string", rows), "score": ("float32", rows)},
            **{"num_tokens": ("int32", rows), "finish_reason": ("string", rows)},
        },
    }
    for case, outputs in expected.items():
        _, signatures = make_task(*case)
        actual = signatures["serving_default"].structured_outputs
        actual = {name: (spec.dtype.name, spec.shape.as_list()) for name, spec in actual.items()}
        assert actual == {**outputs, "truncated": ("bool", rows)}


@pytest.mark.parametrize("kind", ["classify", "tag", "answer", "fill_mask"])
def test_invalid_utf8_inputs(kind, make_task):
    _, signatures = make_task(kind, "word_piece")
    invalid = [b"a \xff b", b"\xc3(", b"\x00", b"\xed\xa0\x80", b" \n\t ", "\u200b".encode()]
    if kind == "fill_mask":
        invalid = [text + b"[MASK]" for text in invalid]
    if kind == "answer":
        outputs = signatures[kind](question=tf.constant(invalid), context=tf.constant(invalid))
        for text, answer, start, end in zip(
            invalid, *(outputs[k].numpy() for k in ("answer", "start", "end")), strict=True
        ):
            decoded = text.decode("utf-8", "replace")
            assert 0 <= start <= end <= len(decoded)
            assert answer.decode() == decoded[start:end] or "\ufffd" in decoded
    else:
        outputs = signatures[kind](text=tf.constant(invalid))
    assert not outputs["truncated"].numpy().any()
    for value in outputs.values():
        if value.dtype.is_floating:
            assert np.isfinite(value.numpy()).all()


def test_invalid_inputs_raise_error(make_task):
    greedy = {
        name: tf.constant([value])
        for name, value in (
            *(("max_new_tokens", 4), ("temperature", 0.0), ("top_k", 0)),
            *(("top_p", 1.0), ("seed", 0)),
        )
    }
    empty, none = tf.constant(["a", ""]), tf.constant([], tf.string)
    for kind, tokenizer in (
        *(("classify", "word_piece"), ("tag", "word_piece"), ("embed", "byte_pair")),
        *(("fill_mask", "word_piece"), ("translate", "sentencepiece")),
    ):
        _, signatures = make_task(kind, tokenizer)
        settings = greedy if kind == "translate" else {}
        for text, message in (
            (empty, "text must not be empty"),
            (none, "must not be an empty list"),
        ):
            with pytest.raises(tf.errors.InvalidArgumentError, match=message):
                signatures[kind](text=text, **settings)
    _, signatures = make_task("answer", "word_piece")
    two = tf.constant(["a", "b"])
    for question, context, message in (
        (two, two[:1], "context must have as many texts as question"),
        (empty, two, "question must not be empty"),
        (two, empty, "context must not be empty"),
        (none, none, "question must not be an empty list"),
    ):
        with pytest.raises(tf.errors.InvalidArgumentError, match=message):
            signatures["answer"](question=question, context=context)
    _, signatures = make_task("fill_mask", "word_piece")
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"text must have a \[MASK\]"):
        signatures["fill_mask"](text=tf.constant(["[MASK]", "no gap"]))
    _, signatures = make_task("translate", "sentencepiece")
    for name, value in (
        *(("temperature", [float("nan")]), ("temperature", [-1.0]), ("top_p", [0.0])),
        *(("top_k", [-1]), ("max_new_tokens", [0]), ("seed", [1, 2])),
    ):
        settings = {**greedy, name: tf.constant(value)}
        with pytest.raises(tf.errors.InvalidArgumentError, match=name):
            signatures["translate"](text=tf.constant(["a"]), **settings)


def test_save_and_load(make_task, tmp_path):
    """Test one task with a full export; the others differ only in their graphs."""
    task, _ = make_task("tag", "word_piece")
    report = export.saved_model(task, tmp_path / "tagger")
    assert set(report["signatures"]) == {"serving_default", "tag"}
    assert report["parity"]["labels_equal"] == 1.0 and report["parity"]["words"] > 50
    assert report["texts_per_second"] > 0
    assert report["non_core_ops"] == ["FastWordpieceTokenizeWithOffsets", "NormalizeUTF8"]
    loaded = tf.saved_model.load(str(tmp_path / "tagger" / "1")).signatures["tag"]
    outputs = loaded(text=tf.constant(["Some text."]))
    labels = [word.decode() for word in outputs["label"].numpy()[0]]
    assert labels == [label for _, label in task("Some text.")]


def test_xla_loop_matches_plain_loop(make_task, verify_task):
    task, plain = make_task("translate", "sentencepiece")
    compiled = module_of(task, xla=True).signatures()
    checks, _ = verify_task("translate", "sentencepiece")
    assert checks.compare(run_calls(compiled, checks.calls()))["greedy_texts_equal"]
    # Five rows and budgets are padded to the checks' 8 rows and 32 tokens: one compilation.
    sampled = {
        "text": ["string", ["The", "A longer text, words", "x", "I", "é"]],
        "max_new_tokens": ["int32", [3, 11, 7, 17, 1]],
        "temperature": ["float32", [0.7, 1.5, 0.0, 1.0, 0.9]],
        "top_k": ["int32", [0, 9, 0, 0, 5]],
        "top_p": ["float32", [0.9]],
        "seed": ["int32", [1, 2, 3, 4, 5]],
    }
    (plain_outputs,), (compiled_outputs,) = (
        run_calls(s, [("translate", sampled)]) for s in (plain, compiled)
    )
    np.testing.assert_allclose(plain_outputs.pop("score"), compiled_outputs.pop("score"), atol=1e-3)
    assert plain_outputs == compiled_outputs
    with pytest.raises(tf.errors.InvalidArgumentError, match="top_p must be in"):
        run_calls(compiled, [("translate", {**sampled, "top_p": ["float32", [0.0]]})])


def test_invalid_arguments_raise_error(make_task, tmp_path):
    task, _ = make_task("classify", "word_piece")
    for value in (task.model, "task", None):
        with pytest.raises(InputError, match="`task` must be one of TextGeneration"):
            export.saved_model(value, tmp_path / "out")
    with pytest.raises(InputError, match='`weights` must be None, "float16" or "int8"'):
        export.saved_model(task, tmp_path / "out", weights="int4")
    with pytest.raises(InputError, match="`xla` is only supported for generative tasks"):
        export.saved_model(task, tmp_path / "out", xla=True)
    assert not (tmp_path / "out").exists()
