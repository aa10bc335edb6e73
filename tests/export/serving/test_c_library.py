"""Run each task's SavedModel in the C library that TensorFlow Serving links and with
`saved_model_cli`, and compare the outputs with Python."""

import ast
import re
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

import keras_llm
from keras_llm import export, models, tokenizers
from keras_llm.export.saved_model.worker import run_calls

LABELS = ["first", "second", "third"]
TEXTS = ["Some text, with words.", "é \u2014 and 日本語"]
GREEDY = {
    "max_new_tokens": np.array([12], "int32"),
    "temperature": np.array([0.0], "float32"),
    "top_k": np.array([0], "int32"),
    "top_p": np.array([1.0], "float32"),
    "seed": np.array([0], "int32"),
}


@pytest.fixture(scope="module")
def toks(text_folder):
    texts = [path.read_text("utf-8") for path in sorted(text_folder.iterdir())[:20]]
    return {
        "word_piece": tokenizers.WordPiece.train(texts, 400),
        "byte_pair": tokenizers.BytePair.train(texts, 400, special_tokens=["<mask>"]),
        "sentencepiece": tokenizers.SentencePiece.train(texts, 400, "bpe"),
    }


def make(kind, tok):
    keras.utils.set_random_seed(0)
    encoder = models.preset("bert-tiny", vocabulary_size=400, initializer_range=0.3)
    decoder = models.preset("llama-tiny", vocabulary_size=400, initializer_range=0.3)
    pair = models.preset("transformer-tiny", vocabulary_size=400, initializer_range=0.3, start_id=1)
    return {
        "generate": lambda: keras_llm.TextGeneration(models.causal_lm(decoder), tok),
        "translate": lambda: keras_llm.Translation(models.seq2seq(pair), tok),
        "classify": lambda: keras_llm.TextClassification(
            models.text_classifier(encoder, 3), tok, LABELS
        ),
        "tag": lambda: keras_llm.TokenClassification(
            models.token_classifier(encoder, 3), tok, LABELS
        ),
        "answer": lambda: keras_llm.QuestionAnswering(models.span_qa(encoder), tok),
        "embed": lambda: keras_llm.TextEmbedding(models.sentence_embedder(encoder), tok),
        "fill_mask": lambda: keras_llm.MaskedLanguageModel(models.masked_lm(encoder), tok),
    }[kind]()


def asked(kind, task):
    """Return the inputs of a request and the expected outputs."""
    if kind == "generate":
        return {"prompt": TEXTS, **GREEDY}, {"text": task(TEXTS, 12, temperature=0.0)}
    if kind == "translate":
        return {"text": TEXTS, **GREEDY}, {"translation": task(TEXTS, 12)}
    if kind == "classify":
        return {"text": TEXTS}, {"label": task(TEXTS)}
    if kind == "tag":
        rows = task(TEXTS, return_details=True)
        most = max(len(row.words) for row in rows)
        words = np.full((len(rows), most, 2), "", object)
        for place, row in enumerate(rows):
            words[place, : len(row.words)] = [(word.text, word.label) for word in row.words]
        words = words.reshape(-1, 2).T.tolist()
        return {"text": TEXTS}, dict(zip(("word", "label"), words, strict=True))
    if kind == "answer":
        questions = ["What?", "Who is it?"]
        rows = task(questions, TEXTS, return_details=True)
        expected = {"answer": [r.text for r in rows], "start": [r.start for r in rows]}
        return {"question": questions, "context": TEXTS}, expected
    if kind == "embed":
        return {"text": TEXTS}, {"embedding": task(TEXTS).reshape(-1).tolist()}
    texts = [f"{text} {task.mask_token}." for text in TEXTS]
    return {"text": texts}, {"text": task(texts)}


CASES = [
    ("generate", "sentencepiece", {}),
    ("generate", "byte_pair", {}),
    ("generate", "word_piece", {"weights": "float16"}),
    ("generate", "sentencepiece", {"weights": "int8"}),
    ("generate", "sentencepiece", {"xla": True}),
    ("translate", "sentencepiece", {}),
    ("classify", "word_piece", {}),
    ("classify", "word_piece", {"weights": "int8"}),
    ("tag", "sentencepiece", {}),
    ("tag", "byte_pair", {}),
    ("answer", "word_piece", {}),
    ("answer", "byte_pair", {}),
    ("embed", "sentencepiece", {}),
    ("fill_mask", "byte_pair", {}),
    ("fill_mask", "word_piece", {}),
]


@pytest.mark.parametrize("kind, tokenizer, options", CASES)
def test_saved_model_in_the_c_library(
    kind, tokenizer, options, toks, in_c_library, record, tmp_path
):
    task = make(kind, toks[tokenizer])
    report = export.saved_model(task, tmp_path / "model", **options)
    inputs, expected = asked(kind, task)
    answer = in_c_library(tmp_path / "model" / "1", "serving_default", inputs)
    assert answer.keys() == set(report["signatures"]["serving_default"]["outputs"])
    if options.get("weights"):  # compare with the same file in Python
        signatures = tf.saved_model.load(str(tmp_path / "model" / "1")).signatures
        calls = [("serving_default", {name: _typed(values) for name, values in inputs.items()})]
        (found,) = run_calls(signatures, calls)
        expected = {name: found[name] for name in expected}
    for name, values in expected.items():
        if isinstance(values[0], float):
            np.testing.assert_allclose(answer[name], values, atol=1e-5)
        else:
            assert answer[name] == values
    if not report["non_core_ops"]:  # TensorFlow alone is sufficient
        again = in_c_library(tmp_path / "model" / "1", "serving_default", inputs, text_ops=False)
        assert {name: again[name] for name in expected} == {n: answer[n] for n in expected}
    how = "".join(f", {name}={value}" for name, value in options.items())
    record(f"C library: {kind} with {tokenizer}{how}", "the same answer")


def _typed(values):
    values = np.asarray(values)
    return ["string" if values.dtype.kind == "U" else values.dtype.name, values.tolist()]


def test_saved_model_cli(toks, record, tmp_path):
    task = make("generate", toks["byte_pair"])
    export.saved_model(task, tmp_path / "model")
    inputs = {
        "prompt": np.array([b"Some text"]),
        "max_new_tokens": np.array([12], "int32"),
        "temperature": np.array([0], "float32"),
        "top_k": np.array([0], "int32"),
        "top_p": np.array([1], "float32"),
        "seed": np.array([0], "int32"),
    }
    for name, array in inputs.items():
        np.save(tmp_path / name, array)
    command = [
        sys.executable,
        "-m",
        "tensorflow.python.tools.saved_model_cli",
        "run",
        "--dir",
        str(tmp_path / "model" / "1"),
        "--tag_set",
        "serve",
        "--signature_def",
        "serving_default",
        "--inputs",
        ";".join(f"{name}={tmp_path / name}.npy" for name in inputs),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    shown = re.search(r"Result for output key text:\s*\[(b.*)\]", done.stdout).group(1)
    assert ast.literal_eval(shown).decode() == task("Some text", 12, temperature=0.0)
    record("saved_model_cli run", "the same text")
