"""Compare classifiers and regressors on texts with the text classification pipeline."""

import numpy as np
import pytest
import transformers

import keras_llm
from keras_llm import models, tokenizers
from keras_llm.checkpoints import from_hugging_face, to_hugging_face

TEXTS = ["a paraphrase says the same", "in other words", "is it true"]


@pytest.fixture(scope="module")
def tok():
    return tokenizers.WordPiece.train(TEXTS * 9, 90)


def randomized(model):
    rng = np.random.default_rng(0)
    for variable in model.variables:
        if "seed_generator" not in variable.path:
            variable.assign(rng.normal(scale=0.3, size=variable.shape))
    return model


@pytest.mark.parametrize(
    "family, outputs, options",
    [
        ("bert", 3, {}),
        ("distilbert", 4, {"multi_label": True}),
        ("bert", 1, {}),
        ("distilbert", 1, {"output_activation": "sigmoid"}),
    ],
)
def test_text_classification(family, outputs, options, tok, tmp_path, record):
    config = models.preset(f"{family}-tiny", vocabulary_size=tok.vocabulary_size)
    pooler = {"activation": "relu"} if family == "distilbert" else {}
    if outputs == 1:
        model = randomized(models.text_regressor(config, **pooler, **options))
        task = keras_llm.TextRegression(model, tok)
    else:
        model = randomized(models.text_classifier(config, outputs, **pooler))
        labels = [f"L{i}" for i in range(outputs)]
        task = keras_llm.TextClassification(model, tok, labels, options)
    to_hugging_face(task, tmp_path / "ours")
    pipeline = transformers.pipeline("text-classification", str(tmp_path / "ours"), top_k=None)
    expected = [{row["label"]: row["score"] for row in rows} for rows in pipeline(TEXTS)]
    for ours in (task, from_hugging_face(tmp_path / "ours")):
        if outputs == 1:
            scores = [{"LABEL_0": value} for value in ours(TEXTS)]
        else:
            scores = [row.probabilities for row in ours(TEXTS, return_details=True)]
        rows = zip(scores, expected, strict=True)
        differences = [abs(ours[name] - theirs[name]) for ours, theirs in rows for name in theirs]
        assert max(differences) < 1e-5
        assert all(
            ours.keys() == theirs.keys() for ours, theirs in zip(scores, expected, strict=True)
        )
    name = ", ".join([family, f"{outputs} outputs", *map(str, options)])
    record("Text classification", name, f"{max(differences):.1e}")
