"""Compare explanations of models with values that the models compute."""

import dataclasses
import html.parser
import json
import re
import struct
import zlib

import keras
import numpy as np
import pytest

import keras_llm
from keras_llm import cli, models, tasks, tokenizers
from keras_llm.commands import explain_page
from keras_llm.errors import InputError
from keras_llm.tasks.gradients import integrated_gradients

TEXT = "Ada was born in London & wrote of engines <b>there</b>."


@pytest.fixture(scope="module")
def tok():
    return tokenizers.WordPiece.train([TEXT, "Grace was born in New York."] * 9, 90)


@pytest.fixture(scope="module")
def tasks_by_kind(tok):
    """Return a task of each kind, with random weights large enough to avoid near ties."""
    keras.utils.set_random_seed(3)
    sizes = {"vocabulary_size": tok.vocabulary_size, "initializer_range": 0.3}
    encoder, decoder, pair = (
        models.preset(name, **sizes) for name in ("bert-tiny", "gemma2-tiny", "t5-tiny")
    )
    labels = ["good", "bad", "other"]
    return {
        "generate": tasks.TextGeneration(models.causal_lm(decoder), tok),
        "classify": tasks.TextClassification(models.text_classifier(encoder, 3), tok, labels),
        "classify, decoder": tasks.TextClassification(
            models.text_classifier(models.preset("llama-tiny", **sizes), 3), tok, labels
        ),
        "answer": tasks.QuestionAnswering(models.span_qa(encoder), tok),
        "fill": tasks.MaskedLanguageModel(models.masked_lm(encoder), tok),
        "tag": tasks.TokenClassification(models.token_classifier(encoder, 3), tok, labels),
        "embed": tasks.TextEmbedding(models.sentence_embedder(encoder), tok),
        "translate": tasks.Translation(models.seq2seq(pair), tok),
    }


KINDS = ["generate", "classify", "classify, decoder", "answer", "fill", "tag", "embed", "translate"]


@pytest.mark.parametrize("kind", KINDS)
def test_attention_sums_to_one(kind, tasks_by_kind):
    task = tasks_by_kind[kind]
    context = "Ada wrote." if kind == "answer" else None
    explanation = tasks.explain(task, TEXT, context)
    config, length = task.model.config, len(explanation.tokens)
    assert len(explanation.attention) == config.num_layers
    for maps in explanation.attention:
        assert maps.shape == (config.num_heads, length, length)
        np.testing.assert_allclose(maps.sum(-1), 1, atol=1e-5)
        if kind in ("generate", "classify, decoder"):
            assert np.triu(maps, 1).max() == 0
        else:
            assert np.triu(maps, 1).max() > 0.01
    for row in explanation.heads:
        p = explanation.attention[row["layer"]][row["head"]]
        queries = range(length)
        assert row["to_first"] == pytest.approx(sum(p[i][0] for i in queries) / length)
        assert row["to_self"] == pytest.approx(sum(p[i][i] for i in queries) / length)
        previous = sum(p[i][i - 1] for i in queries if i)
        assert row["to_previous"] == pytest.approx(previous / length)
        distance = sum(p[i][j] * abs(i - j) for i in queries for j in queries)
        assert row["distance"] == pytest.approx(distance / length, rel=1e-4)
        entropy = -sum(x * np.log(x) for x in p.reshape(-1).tolist() if x > 0)
        assert row["entropy"] == pytest.approx(entropy / length, rel=1e-4)
    assert (explanation.lens is not None) == (kind == "generate")
    assert (explanation.attributions is not None) == kind.startswith("classify")


def test_logit_lens_matches_shorter_models(tasks_by_kind, tok):
    model = tasks_by_kind["generate"].model
    ids = np.array([tok.encode(TEXT)])
    logits = np.asarray(models.logit_lens(model, ids))
    config = model.config
    assert logits.shape == (config.num_layers + 1, 1, ids.size, config.vocabulary_size)
    np.testing.assert_allclose(logits[-1], model(ids), atol=1e-5)
    shorter = models.causal_lm(dataclasses.replace(config, num_layers=1))
    for layer in shorter.layers:
        layer.set_weights(model.get_layer(layer.name).get_weights())
    np.testing.assert_allclose(logits[1], shorter(ids), atol=1e-5)
    lens = tasks.explain(tasks_by_kind["generate"], TEXT).lens
    best = np.asarray(model(np.array([tok.encode_prompt(TEXT)])))[0].argmax(-1)
    assert lens["tokens"][-1] == [tok.token(int(i)) for i in best]
    with pytest.raises(InputError, match="causal_lm"):
        models.logit_lens(tasks_by_kind["embed"].model, ids)


@pytest.mark.parametrize("kind", ["classify", "classify, decoder"])
def test_attributions_sum_to_output_minus_baseline(kind, tasks_by_kind, tok):
    task = tasks_by_kind[kind]
    (row,), _ = task.framed("texts", [tok.encode(TEXT)], False)
    blank = [i if i in (tok.bos_id, tok.eos_id) else tok.mask_id for i in row]
    rows, length = np.array([row, blank], "int32"), np.array([len(row)] * 2, "int32")
    probabilities = np.asarray(task.probabilities(rows, length))
    expected, baseline = np.log(probabilities)
    attributions = tasks.explain(task, TEXT).attributions
    label = int(expected.argmax())
    assert attributions["label"] == task.labels[label] == task(TEXT)
    assert attributions["output"] == pytest.approx(expected[label], abs=1e-4)
    assert attributions["baseline"] == pytest.approx(baseline[label], abs=1e-4)
    assert attributions["tokens"].sum() == pytest.approx(
        expected[label] - baseline[label], abs=2e-3
    )
    assert attributions["error"] < 2e-3 < np.abs(attributions["tokens"]).max()
    assert attributions["tokens"][0] == attributions["tokens"][-1] == 0.0  # special tokens
    inputs = task.inputs(rows[:1], length[:1])
    other = integrated_gradients(task.model, inputs, np.array([blank]), (label + 1) % 3)
    assert other["tokens"].sum() == pytest.approx((expected - baseline)[(label + 1) % 3], abs=2e-3)


def test_neighbors_have_largest_cosines(tasks_by_kind, tok):
    task = tasks_by_kind["translate"]
    table = task.model.get_layer("token_embedding").get_weights()[0]
    (index,) = tok.encode("in")
    ((token, near),) = tasks.nearest_tokens(task, [index, index, tok.eos_id], 3).items()
    cosine = [
        a @ table[index] / np.linalg.norm(a) / np.linalg.norm(table[index])
        for a in table[: tok.vocabulary_size]
    ]
    order = [i for i in np.argsort(cosine)[::-1] if i != index][:3]
    assert token == "in" and [name for name, _ in near] == [tok.token(int(i)) for i in order]
    assert [value for _, value in near] == pytest.approx([cosine[i] for i in order], abs=1e-5)


class Page(html.parser.HTMLParser):
    """Collect a page's tags with their attributes, and its text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data


def decode_gray_png(uri):
    """Decode a gray PNG to an array (T, T)."""
    import base64

    data = base64.b64decode(uri.removeprefix("data:image/png;base64,"))
    width, height = struct.unpack(">II", data[16:24])
    start = data.index(b"IDAT")
    size = struct.unpack(">I", data[start - 4 : start])[0]
    lines = np.frombuffer(zlib.decompress(data[start + 4 : start + 4 + size]), "uint8")
    return lines.reshape(height, width + 1)[:, 1:]


@pytest.mark.parametrize("kind", ["classify", "generate"])
def test_page_shows_values_and_loads_nothing(kind, tasks_by_kind):
    explanation = tasks.explain(tasks_by_kind[kind], TEXT)
    text = explain_page.render(explanation, "a <run>")
    page = Page(text)
    assert not [tag for tag, _ in page.tags if tag in ("link", "iframe", "b ")]
    assert "http" not in text and "url(" not in text and "there</b>" not in text
    assert TEXT in page.text and "a <run>" in page.text
    sources = [a["src"] for tag, a in page.tags if tag == "img" and "src" in a]
    config = tasks_by_kind[kind].model.config
    assert len(sources) == config.num_layers * config.num_heads
    shares, p = (
        ((255 - decode_gray_png(sources[1]).astype("float64")) / 255) ** 2,
        explanation.attention[0][1],
    )
    np.testing.assert_allclose(shares * p.max(), p, atol=0.005)
    assert f"layer 1, head 2; maximum {p.max():.2f}" in text
    if kind == "classify":
        titles = re.findall(r'<span style="[^"]*" title="([^"]*)">', text)
        assert [float(t) for t in titles] == pytest.approx(
            explanation.attributions["tokens"], abs=1e-4
        )
    else:
        assert "Logit lens" in page.text and explanation.lens["tokens"][-1][-1] in page.text


def test_command_line(tasks_by_kind, tmp_path, capfd):
    tasks_by_kind["classify"].save(tmp_path / "run")
    arguments = ["explain", str(tmp_path / "run"), TEXT]
    assert cli.main([*arguments, "--out", str(tmp_path / "page.html")]) == 0
    output = capfd.readouterr().out
    assert "nearest embeddings" in output and tasks_by_kind["classify"](TEXT) in output
    assert (tmp_path / "page.html").read_text("utf-8").startswith("<!doctype html>")
    assert cli.main([*arguments, "--out", str(tmp_path / "page.html")]) == 2
    assert "exists" in capfd.readouterr().err
    assert cli.main([*arguments, "--json", "--max-tokens", "9"]) == 0
    explanation = json.loads(capfd.readouterr().out)
    assert len(explanation["tokens"]) == len(explanation["attributions"]["tokens"]) == 9
    assert cli.main([*arguments, "--context", "Ada."]) == 2
    assert "`context` is only for models that read one" in capfd.readouterr().err
    assert cli.main([*arguments, "--max-tokens", "0"]) == 2
    assert "`max_tokens` must be a positive int" in capfd.readouterr().err


def test_invalid_arguments_raise_error(tasks_by_kind):
    with pytest.raises(InputError, match="`context` is missing"):
        tasks.explain(tasks_by_kind["answer"], "Who?")
    with pytest.raises(InputError, match="leaves no room for the context"):
        tasks.explain(tasks_by_kind["answer"], TEXT, TEXT, max_tokens=8)
    with pytest.raises(InputError, match="`text` is empty"):
        tasks.explain(tasks_by_kind["fill"], "")


def test_word_vectors_have_only_neighbors():
    tok = tokenizers.WordPiece(["[PAD]", "[UNK]", "film", "story", "play"])
    task = keras_llm.WordVectors(models.word_vectors(models.WordVectorsConfig(5, 8)), tok)
    explanation = tasks.explain(task, "film", count=2)
    assert (
        explanation.neighbors == {"film": task.nearest("film", 2)} and explanation.attention is None
    )
    assert "film" in explain_page.render(explanation, "words")
