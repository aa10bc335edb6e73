"""Test on-device encoders: the same outputs and decisions as in Keras."""

import keras
import numpy as np
import pytest

import keras_llm
from keras_llm import export, models, tokenizers
from keras_llm.errors import ExportError, InputError
from keras_llm.export.litert import conversion

TEXT = "Ada Lovelace was born in London, and wrote of engines. "


def make_encoder(num_layers):
    tok = tokenizers.WordPiece.train([TEXT] * 9, 90)
    config = models.preset(
        "bert-tiny",
        vocabulary_size=tok.vocabulary_size,
        num_layers=num_layers,
        initializer_range=0.3,
        max_length=48,
    )
    return models.encoder(config), tok


@pytest.fixture(scope="module")
def encoder_and_tokenizer():
    return make_encoder(num_layers=1)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    return tmp_path_factory.mktemp("heads")


def export_and_load(task, path, **options):
    report = export.litert(task, path, **options)
    assert report["parity"]["max_error"] < 1e-4 and report["parity"]["decisions_equal"] == 1.0
    assert list(report["signatures"]) == [export.LiteRTModel(path).manifest["signature"]]
    assert report["speed"][0]["calls_per_second"] > 0
    return export.LiteRTModel(path)


def test_classification(encoder_and_tokenizer, files):
    encoder, tok = encoder_and_tokenizer
    labels = ["good", "bad", "neither"]
    task = keras_llm.TextClassification(models.text_classifier(encoder, 3), tok, labels)
    device = export_and_load(task, files / "classify.tflite", cache_length=24)
    expected = task("Ada wrote.", return_details=True)
    result = device.classify("Ada wrote.")
    assert result["label"] == expected.label and not result["truncated"]
    np.testing.assert_allclose(
        list(result["probabilities"].values()), list(expected.probabilities.values()), atol=1e-4
    )
    with pytest.raises(InputError, match="truncate"):
        device.classify(TEXT * 3)
    assert device.classify(TEXT * 3, truncate=True)["truncated"] is True
    with pytest.raises(InputError, match="`text`"):
        device.classify("")
    with pytest.raises(InputError, match="`generate` needs a TextGeneration"):
        device.generate("Ada")


def test_tagging(encoder_and_tokenizer, files):
    encoder, tok = encoder_and_tokenizer
    task = keras_llm.TokenClassification(models.token_classifier(encoder, 2), tok, ["O", "NAME"])
    device = export_and_load(task, files / "tag.tflite")
    expected = task(TEXT, truncate=True, return_details=True)
    result = device.tag(TEXT, truncate=True)
    assert [(w["text"], w["label"], w["start"]) for w in result["words"]] == [
        (word.text, word.label, word.start) for word in expected.words
    ]


def test_question_answering_with_contexts_of_any_length(encoder_and_tokenizer, files):
    encoder, tok = encoder_and_tokenizer
    task = keras_llm.QuestionAnswering(models.span_qa(encoder), tok)
    device = export_and_load(task, files / "answer.tflite")
    for context in (TEXT, TEXT * 9):
        expected = task("Where was Ada born?", context, return_details=True)
        result = device.answer("Where was Ada born?", context)
        assert (result["text"], result["start"], result["end"]) == (
            expected.text,
            expected.start,
            expected.end,
        )
        assert result["probability"] == pytest.approx(expected.probability, abs=1e-4)
    with pytest.raises(InputError, match="`question` has"):
        device.answer(TEXT * 9, TEXT)
    with pytest.raises(InputError, match="does not support `cache_length`"):
        export.litert(task, files / "x.tflite", cache_length=24)


def test_embeddings(encoder_and_tokenizer, files):
    encoder, tok = encoder_and_tokenizer
    task = keras_llm.TextEmbedding(models.sentence_embedder(encoder), tok)
    report = export.litert(
        task, files / "embed.tflite", "int8", held_out=[TEXT, "Ada wrote."], max_quality_loss=0.01
    )
    assert report["quality"]["text"] == "given" and 0 <= report["quality"]["loss"] < 0.01
    device = export.LiteRTModel(files / "embed.tflite")
    ours, theirs = device.embed("Ada wrote."), task("Ada wrote.")
    assert ours @ theirs / np.linalg.norm(ours) / np.linalg.norm(theirs) > 0.99


def test_regression(encoder_and_tokenizer, files):
    encoder, tok = encoder_and_tokenizer
    keras.utils.set_random_seed(1)
    task = keras_llm.TextRegression(models.text_regressor(encoder), tok)
    texts = [TEXT, "Ada wrote.", "London", "born of engines", "was in and of", "Lovelace wrote"]
    report = export.litert(task, files / "score_8.tflite", "int8", held_out=texts)
    coarse = export.LiteRTModel(files / "score_8.tflite")
    ours = np.array([coarse.regress(text)["value"] for text in texts])
    theirs = np.array([task(text) for text in texts])
    relative_error = np.abs(ours - theirs).mean() / theirs.std()
    assert 0 < report["quality"]["loss"] == pytest.approx(relative_error, rel=1e-3)
    assert relative_error < 0.2
    device = export_and_load(task, files / "score.tflite")
    result = device.regress("Ada wrote.")
    assert result == {"value": pytest.approx(task("Ada wrote."), abs=1e-4), "truncated": False}
    with pytest.raises(InputError, match="`classify` needs a TextClassification"):
        device.classify("Ada")


def test_mask_filling(files):
    encoder, tok = make_encoder(num_layers=2)  # test one head on several layers
    task = keras_llm.MaskedLanguageModel(models.masked_lm(encoder), tok)
    device = export_and_load(task, files / "fill.tflite")
    for text in ("Ada [MASK] born in [MASK].", " ".join(["[MASK]"] * 11)):
        expected = task(text, top_k=3, return_details=True)
        result = device.fill_mask(text, top_k=3)
        assert result["text"] == expected.text
        assert [[t for t, _ in row] for row in result["tokens"]] == [
            [t for t, _ in row] for row in expected.tokens
        ]
    with pytest.raises(InputError, match="MASK"):
        device.fill_mask("Ada was born.")
    with pytest.raises(InputError, match="`top_k`"):
        device.fill_mask("Ada [MASK].", top_k=0)


def test_failed_verification_writes_no_file(encoder_and_tokenizer, files, tmp_path, monkeypatch):
    encoder, tok = encoder_and_tokenizer
    labels = ["good", "bad", "neither"]
    other = keras_llm.TextClassification(models.text_classifier(encoder, 3), tok, labels)
    manifest = export.LiteRTModel(files / "classify.tflite").manifest
    model = (files / "classify.tflite").read_bytes()[slice(*manifest["model"])]
    monkeypatch.setattr(
        conversion, "write", lambda plan, graphs, path, progress: path.write_bytes(model)
    )
    with pytest.raises(ExportError, match="the outputs of the file differ from Keras"):
        export.litert(other, tmp_path / "x.tflite", cache_length=24)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"prefill_lengths": [8]}, "prefill_lengths"),
        ({"quantization": "int8_static", "calibration": ["Ada"]}, "static"),
        ({"quantization": "int8", "held_out": [3]}, "held_out"),
    ],
)
def test_invalid_arguments_raise_error(encoder_and_tokenizer, tmp_path, arguments, message):
    encoder, tok = encoder_and_tokenizer
    task = keras_llm.TextEmbedding(models.sentence_embedder(encoder), tok)
    with pytest.raises(InputError, match=message):
        export.litert(task, tmp_path / "x.tflite", **arguments)
