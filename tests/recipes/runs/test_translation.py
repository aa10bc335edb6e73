"""Test the translation recipe on generated English and Spanish sentences."""

import itertools
import json
import subprocess

import numpy as np
import pytest

import keras_llm
from keras_llm import cli
from keras_llm.errors import InputError
from keras_llm.recipes import translation
from keras_llm.recipes.common import translations
from keras_llm.recipes.corpora import debian_readers, registry

pytestmark = pytest.mark.usefixtures("one_layer")

NOUNS = {"house": "casa", "table": "mesa", "chair": "silla", "door": "puerta", "flower": "flor"}
ADJECTIVES = {"red": "roja", "white": "blanca", "new": "nueva", "old": "vieja", "big": "grande"}
VERBS = {"see": "veo", "want": "quiero", "have": "tengo", "sell": "vendo"}


def pairs():
    for verb, adjective, noun in itertools.product(VERBS, ADJECTIVES, NOUNS):
        for size in ("", " very"):
            source = f"I {verb} the{size} {adjective} {noun}."
            behind = f"{' muy' * bool(size)} {ADJECTIVES[adjective]}"
            yield source, f"{VERBS[verb].capitalize()} la {NOUNS[noun]}{behind}."


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("translation")
    lines = [json.dumps({"en": source, "es": target}) for source, target in pairs()]
    lines += [json.dumps({"en": f"I {i} " * 70, "es": f"yo {i}"}) for i in range(20)]
    (folder / "pairs.jsonl").write_text("\n".join([*lines, lines[0], '{"en": "", "es": "x"}']))
    options = translation.Options(
        out=str(folder / "run"),
        data=str(folder / "pairs.jsonl"),
        source_column="en",
        target_column="es",
        held_out=0.1,
        smoke=True,
    )
    options.epochs, options.learning_rate, options.beam_width, options.test_rows = 12, 5e-3, 2, 10
    return folder / "run", translation.run(options)


def test_model_beats_the_baselines(run):
    folder, metrics = run
    held_out = metrics["held_out"]
    assert held_out["bleu"] > 60 > metrics["copy"]["bleu"]
    assert held_out["chrf"] > metrics["memory"]["chrf"] > metrics["copy"]["chrf"]
    assert "nrefs:1" in held_out["bleu_signature"]
    dropped = metrics["training"]["dropped"]
    assert (dropped["repeated"], dropped["empty"]) == (1, 1)
    assert held_out["sources_too_long"] > 0  # held-out sources that do not fit the model
    assert dropped["longer than 48 tokens"] + held_out["sources_too_long"] == 20
    assert sum(row["sources"] for row in metrics["by_length"]) == 10
    card = (folder / "README.md").read_text()
    assert f"{held_out['bleu']:.4f}" in card and held_out["bleu_signature"] in card
    assert f"{metrics['memory']['chrf']:.4f}" in card


def test_generate_and_evaluate_commands(run, capfd, loaded_once):
    folder, metrics = run
    task = keras_llm.load(folder)
    source, _ = next(pairs())
    assert cli.main(["generate", str(folder), source, "--beam-width", "2"]) == 0
    assert capfd.readouterr().out == task(source, beam_width=2) + "\n"
    assert cli.main(["evaluate", str(folder), "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert found == {
        key: value if isinstance(value, str) else pytest.approx(value, rel=1e-4)
        for key, value in metrics["held_out"].items()
    }
    assert cli.main(["evaluate", str(folder)]) == 0
    assert "bleu_signature" in capfd.readouterr().out


def test_batches_shift_targets_and_long_pairs_are_dropped(run, loaded_once):
    task = keras_llm.load(run[0])
    tok = task.tokenizer
    rows = [("I see", "Veo"), ("I want " * 30, "Quiero"), ("the door", "la puerta")]
    settings = translation.Options(out="x", max_length=24)
    short, dropped = translations.short_pairs(task, rows, settings)
    assert short == [rows[0], rows[2]] and dropped == {"longer than 24 tokens": 1}
    longest = 2 + max(len(tok.encode(text)) for row in short for text in row)
    settings.max_length = longest
    assert translations.short_pairs(task, short, settings) == (short, {})
    settings.max_length = 2
    with pytest.raises(InputError, match="none of 3 pairs fits into --max-length 2"):
        translations.short_pairs(task, rows, settings)
    ((inputs, targets, _),) = task.dataset(short, batch_size=2)
    sources, decoder = (t.numpy() for t in inputs.values())
    assert {tuple(row[row != tok.pad_id]) for row in sources} == {
        (*tok.encode(text), tok.eos_id) for text in ("I see", "the door")
    }
    for before, after in zip(decoder, targets.numpy(), strict=True):
        assert before[0] == tok.bos_id
        np.testing.assert_array_equal(before[1:], after[:-1])
        known = after[after != tok.pad_id]
        assert known[-1] == tok.eos_id and tok.decode(known.tolist()) in ("Veo", "la puerta")


def test_many_long_pairs_are_reported_with_percentiles(run, capfd, loaded_once):
    task = keras_llm.load(run[0])
    rows = [("I see", "Veo"), ("I want " * 30, "Quiero")]
    settings = translation.Options(out="x", max_length=24)
    translations.short_pairs(task, rows, settings, warn=True)
    told = capfd.readouterr().err
    assert "warning: 50% of the rows are longer than --max-length 24" in told
    assert "90 % have at most" in told
    translations.short_pairs(task, rows[:1] * 19 + rows[1:], settings, warn=True)
    assert capfd.readouterr().err == ""


def test_long_texts_are_cut_to_what_the_model_reads(run, loaded_once):
    task = keras_llm.load(run[0])
    room = task.model.config.max_length - 1
    texts = ["I see", "über-" * 200, "日本語" * 90]
    cut_texts, cut = translations.shortened(task, texts)
    assert cut == 2 and cut_texts[0] == texts[0]
    for text in cut_texts:
        assert len(task.tokenizer.encode(text)) <= room
    rows = [(text, "x") for text in texts]
    assert task.fitting_rows(rows) == (rows[:1], 2)
    with pytest.raises(InputError, match="no text of 2 rows fits"):
        task.fitting_rows(rows[1:])
    assert len(task(cut_texts, max_new_tokens=2)) == 3


def test_invalid_choices_raise_before_training(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(json.dumps({"source": a, "target": b}) for a, b in pairs()))
    for changes, words in (
        ({"bleu_tokenizer": "none such"}, "`tokenizer` must be one of"),
        ({"max_length": 999}, "--max-length must be at most the preset's"),
    ):
        settings = translation.Options(
            out=str(tmp_path / "run"), data=str(path), smoke=True, **changes
        )
        with pytest.raises(InputError, match=words):
            translation.run(settings)
        assert list(tmp_path.iterdir()) == [path]


def test_nearest_source_baseline():
    train = [("open the file", "A"), ("close the window", "B"), ("print a page", "C")]
    rows = [("Close the file window", "?"), ("print", "?")]
    assert translations.nearest(train, rows) == ["B", "C"]


def build_package(folder, language, pages):
    """Build a Debian package with help pages."""
    root = folder / language
    (root / "DEBIAN").mkdir(parents=True)
    (root / "DEBIAN" / "control").write_text(
        f"Package: help-{language.lower()}\nVersion: 1\nArchitecture: all\n"
        "Maintainer: nobody <no@body>\nDescription: help\n"
    )
    for name, content in pages.items():
        page = root / "usr/share/libreoffice/help" / language / "text" / name
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(content, "utf-8")
    path = folder / f"{language}.deb"
    subprocess.run(["dpkg-deb", "--build", root, path], check=True, capture_output=True)
    return path


def test_help_pages_are_joined_by_file_and_element(tmp_path):
    english = {
        "a/b.html": '<h1 id="t">Tables &amp; rows</h1><p id="x">A <b>bold</b>\n word.</p>'
        '<p id="same">OK</p><p id="alone">Alone</p>',
        "notes.txt": '<p id="x">no page</p>',
    }
    other = {"a/b.html": '<h1 id="t">表格和行</h1><p id="x">Un mot.</p><p id="same">OK</p>'}
    paths = build_package(tmp_path, "en-US", english), build_package(tmp_path, "zh-CN", other)
    assert debian_readers.libreoffice_help(*paths) == [
        ("Tables & rows", "表格和行"),
        ("A bold word.", "Un mot."),
    ]


def test_error_without_apt(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("KERAS_LLM_CACHE", str(tmp_path))
    with pytest.raises(InputError, match="apt-get is not installed"):
        registry.load("libreoffice-help-fr", "pairs")


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"beam_width": 0}, "beam-width"),
        ({"max_length": 1}, "max-length"),
        ({"test_rows": 0}, "test-rows"),
    ],
)
def test_invalid_options_name_the_flag(changes, words):
    with pytest.raises(InputError, match=f"--{words}"):
        translation.Options(out="runs/none", **changes)
