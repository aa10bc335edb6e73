"""What is told of a model's inside, beside what the model itself gives."""

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
def made(tok):
    """A task of each kind with random weights, wide enough that nothing is nearly even."""
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
def test_attention_is_shared_out_whole(kind, made):
    task = made[kind]
    context = "Ada wrote." if kind == "answer" else None
    found = tasks.explain(task, TEXT, context)
    config, length = task.model.config, len(found.tokens)
    assert len(found.attention) == config.num_layers
    for maps in found.attention:
        assert maps.shape == (config.num_heads, length, length)
        np.testing.assert_allclose(maps.sum(-1), 1, atol=1e-5)
        if kind in ("generate", "classify, decoder"):
            assert np.triu(maps, 1).max() == 0
        else:
            assert np.triu(maps, 1).max() > 0.01
    for row in found.heads:
        p = found.attention[row["layer"]][row["head"]]
        queries = range(length)
        assert row["to_first"] == pytest.approx(sum(p[i][0] for i in queries) / length)
        assert row["to_self"] == pytest.approx(sum(p[i][i] for i in queries) / length)
        previous = sum(p[i][i - 1] for i in queries if i)
        assert row["to_previous"] == pytest.approx(previous / length)
        distance = sum(p[i][j] * abs(i - j) for i in queries for j in queries)
        assert row["distance"] == pytest.approx(distance / length, rel=1e-4)
        entropy = -sum(x * np.log(x) for x in p.reshape(-1).tolist() if x > 0)
        assert row["entropy"] == pytest.approx(entropy / length, rel=1e-4)
    assert (found.lens is not None) == (kind == "generate")
    assert (found.attributions is not None) == kind.startswith("classify")


def test_the_lens_shows_each_layer_as_a_shorter_model_would_speak(made, tok):
    model = made["generate"].model
    ids = np.array([tok.encode(TEXT)])
    logits = np.asarray(models.logit_lens(model, ids))
    config = model.config
    assert logits.shape == (config.num_layers + 1, 1, ids.size, config.vocabulary_size)
    np.testing.assert_allclose(logits[-1], model(ids), atol=1e-5)
    shorter = models.causal_lm(dataclasses.replace(config, num_layers=1))
    for layer in shorter.layers:
        layer.set_weights(model.get_layer(layer.name).get_weights())
    np.testing.assert_allclose(logits[1], shorter(ids), atol=1e-5)
    lens = tasks.explain(made["generate"], TEXT).lens
    best = np.asarray(model(np.array([tok.encode_prompt(TEXT)])))[0].argmax(-1)
    assert lens["tokens"][-1] == [tok.token(int(i)) for i in best]
    with pytest.raises(InputError, match="causal_lm"):
        models.logit_lens(made["embed"].model, ids)


@pytest.mark.parametrize("kind", ["classify", "classify, decoder"])
def test_attributions_sum_to_what_the_text_adds(kind, made, tok):
    task = made[kind]
    (row,), _ = task.framed("texts", [tok.encode(TEXT)], False)
    blank = [i if i in (tok.bos_id, tok.eos_id) else tok.mask_id for i in row]
    rows, length = np.array([row, blank], "int32"), np.array([len(row)] * 2, "int32")
    probabilities = np.asarray(task.probabilities(rows, length))
    expected, hidden = np.log(probabilities)
    found = tasks.explain(task, TEXT).attributions
    label = int(expected.argmax())
    assert found["label"] == task.labels[label] == task(TEXT)
    assert found["output"] == pytest.approx(expected[label], abs=1e-4)
    assert found["baseline"] == pytest.approx(hidden[label], abs=1e-4)
    assert found["tokens"].sum() == pytest.approx(expected[label] - hidden[label], abs=2e-3)
    assert found["error"] < 2e-3 < np.abs(found["tokens"]).max()
    assert found["tokens"][0] == found["tokens"][-1] == 0.0  # the frame is in both
    inputs = task.inputs(rows[:1], length[:1])
    other = integrated_gradients(task.model, inputs, np.array([blank]), (label + 1) % 3)
    assert other["tokens"].sum() == pytest.approx((expected - hidden)[(label + 1) % 3], abs=2e-3)


def test_neighbors_have_the_largest_cosines(made, tok):
    task = made["translate"]
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
    """The tags of a page with their attributes, and its text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text += data


def grey(uri):
    """The numbers of a grey PNG (T, T)."""
    import base64

    data = base64.b64decode(uri.removeprefix("data:image/png;base64,"))
    width, height = struct.unpack(">II", data[16:24])
    start = data.index(b"IDAT")
    size = struct.unpack(">I", data[start - 4 : start])[0]
    lines = np.frombuffer(zlib.decompress(data[start + 4 : start + 4 + size]), "uint8")
    return lines.reshape(height, width + 1)[:, 1:]


@pytest.mark.parametrize("kind", ["classify", "generate"])
def test_the_page_shows_the_numbers_and_asks_for_nothing(kind, made):
    found = tasks.explain(made[kind], TEXT)
    text = explain_page.render(found, "a <run>")
    page = Page(text)
    assert not [tag for tag, _ in page.tags if tag in ("link", "iframe", "b ")]
    assert "http" not in text and "url(" not in text and "there</b>" not in text
    assert TEXT in page.text and "a <run>" in page.text
    sources = [a["src"] for tag, a in page.tags if tag == "img" and "src" in a]
    heads = made[kind].model.config
    assert len(sources) == heads.num_layers * heads.num_heads
    shares, p = ((255 - grey(sources[1]).astype("float64")) / 255) ** 2, found.attention[0][1]
    np.testing.assert_allclose(shares * p.max(), p, atol=0.005)
    assert f"layer 1, head 2; maximum {p.max():.2f}" in text
    if kind == "classify":
        titles = re.findall(r'<span style="[^"]*" title="([^"]*)">', text)
        assert [float(t) for t in titles] == pytest.approx(found.attributions["tokens"], abs=1e-4)
    else:
        assert "Logit lens" in page.text and found.lens["tokens"][-1][-1] in page.text


def test_the_command_line_explains(made, tmp_path, capfd):
    made["classify"].save(tmp_path / "run")
    arguments = ["explain", str(tmp_path / "run"), TEXT]
    assert cli.main([*arguments, "--out", str(tmp_path / "page.html")]) == 0
    told = capfd.readouterr().out
    assert "nearest embeddings" in told and made["classify"](TEXT) in told
    assert (tmp_path / "page.html").read_text("utf-8").startswith("<!doctype html>")
    assert cli.main([*arguments, "--out", str(tmp_path / "page.html")]) == 2
    assert "exists" in capfd.readouterr().err
    assert cli.main([*arguments, "--json", "--max-tokens", "9"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert len(found["tokens"]) == len(found["attributions"]["tokens"]) == 9
    assert cli.main([*arguments, "--context", "Ada."]) == 2
    assert "`context` is only for models that read one" in capfd.readouterr().err
    assert cli.main([*arguments, "--max-tokens", "0"]) == 2
    assert "`max_tokens` must be a positive int" in capfd.readouterr().err


def test_what_cannot_be_explained_is_refused(made):
    with pytest.raises(InputError, match="`context` is missing"):
        tasks.explain(made["answer"], "Who?")
    with pytest.raises(InputError, match="leaves no room for the context"):
        tasks.explain(made["answer"], TEXT, TEXT, max_tokens=8)
    with pytest.raises(InputError, match="`text` is empty"):
        tasks.explain(made["fill"], "")


def test_word_vectors_have_neighbors_alone():
    tok = tokenizers.WordPiece(["[PAD]", "[UNK]", "film", "story", "play"])
    task = keras_llm.WordVectors(models.word_vectors(models.WordVectorsConfig(5, 8)), tok)
    found = tasks.explain(task, "film", count=2)
    assert found.neighbors == {"film": task.nearest("film", 2)} and found.attention is None
    assert "film" in explain_page.render(found, "words")
