"""Test the command line: output, exit codes and error messages."""

import contextlib
import importlib
import io
import json
import re
import resource
import shutil
import signal
import subprocess
import sys

import pytest

import keras_llm
from keras_llm import cli, models, tokenizers
from keras_llm.commands import COMMANDS, entry_points
from keras_llm.export import children


def run(*arguments, **options):
    return subprocess.run(
        [sys.executable, "-m", "keras_llm", *map(str, arguments)],
        capture_output=True,
        text=True,
        **options,
    )


def called(capfd, *arguments):
    """Run a command in this process; return the exit code, stdout and stderr."""
    code = cli.main(list(map(str, arguments)))
    captured = capfd.readouterr()
    return code, captured.out, captured.err


@pytest.fixture(scope="module")
def loaded(task, run_folder):
    """Return the tasks that `loaded_once` has loaded already: `run_folder` is `task`."""
    return {str(run_folder): task}


def imported(program):
    """Return the heavy modules that a program imports, as the str of a list."""
    heavy = ["tensorflow", "tensorflow_text", "keras", "keras_nlp", "sentencepiece", "numpy"]
    program += f"\nimport sys; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def test_import_keras_llm_imports_nothing_heavy():
    assert imported("import keras_llm") == "[]"


def test_library_does_not_import_tensorflow_text():
    program = "from keras_llm import layers, models, tokenizers, data, generation, training, export"
    found = imported(program + "\nimport keras_llm; keras_llm.TextGeneration; keras_llm.load")
    assert "tensorflow_text" not in found and "keras_nlp" not in found


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["recipes"], ["train", "--help"], ["generate", "--help"]]
    + [["train", name, "--help"] for name in ("text_generation", "question_answering")],
)
def test_help_imports_nothing_heavy(arguments):
    program = f"""
from keras_llm import cli
try:
    code = cli.main({arguments!r})
except SystemExit as stop:
    code = stop.code
assert not code"""
    assert imported(program) == "[]"


def test_help_lists_commands_recipes_and_options(capfd):
    done = run("--help")
    assert done.returncode == 0 and done.stderr == ""
    for name in ("train", "generate", "chat", "evaluate", "export", "recipes", "inspect"):
        assert f"\n  {name} " in done.stdout
    assert called(capfd) == (0, done.stdout, "")
    code, printed, _ = called(capfd, "train", "--help")
    assert code == 0 and "text_generation" in printed
    with pytest.raises(SystemExit) as stop:
        cli.main(["train", "text_generation", "--help"])
    options = capfd.readouterr().out
    assert not stop.value.code
    for flag in ("--out", "--corpus", "--data", "--smoke", "--seed", "--learning-rate"):
        assert flag in options


def test_flags_that_turn_something_off_say_so(capfd):
    commands = [[name] for name in COMMANDS] + [["train", name] for name in entry_points.recipes()]
    texts = []
    for command in commands:
        with contextlib.suppress(SystemExit):
            cli.main([*command, "--help"])
        texts.append(" ".join(re.sub("[│╭╮╰╯─]", " ", capfd.readouterr().out).split()))
    # `--no-repeat-ngram-size INT` turns nothing off.
    flags = [re.findall(r"--no-[\w-]+(?![\w-]| INT)", text) for text in texts]
    assert sum(map(len, flags)) >= 6
    for names in flags:  # in the list of options, and in the text of the option
        assert all(names.count(name) == 2 for name in names), names


def test_generate_prints_only_the_text(run_folder, task):
    arguments = ["generate", run_folder, "The", "--max-new-tokens", 12, "--temperature", 0]
    done = run(*arguments)
    assert done.returncode == 0
    assert done.stdout == task("The", 12, temperature=0.0) + "\n"
    assert done.stderr == ""


def test_generate_streams_and_prints_json(run_folder, task, capfd, loaded_once):
    settings = ["--max-new-tokens", 12, "--seed", 4, "--top-p", 0.9]
    text = task("The", 12, seed=4, top_p=0.9)
    code, out, _ = called(capfd, "generate", run_folder, "The", *settings, "--stream")
    assert code == 0 and out == text + "\n"
    code, out, _ = called(capfd, "generate", run_folder, "The", *settings, "--json")
    found = json.loads(out)
    assert code == 0 and found["text"] == text and found["prompt"] == "The"
    assert set(found) >= {"token_ids", "num_tokens", "log_probability", "finish_reason"}


def test_generate_passes_all_settings(run_folder, task, tmp_path, capfd, loaded_once):
    (tmp_path / "schema.json").write_text('{"enum": [12, 345]}')
    settings = ["--max-new-tokens", 12, "--json-schema", tmp_path / "schema.json", "--seed", 3]
    code, out, _ = called(capfd, "generate", run_folder, "The", *settings)
    assert code == 0 and out in ("12\n", "345\n")
    (tmp_path / "pairs.lark").write_text('start: "(" start ")" | "x"')
    settings = ["--max-new-tokens", 60, "--grammar", tmp_path / "pairs.lark", "--seed", 3]
    code, out, _ = called(capfd, "generate", run_folder, "The", *settings)
    begin, _, end = out.strip().partition("x")
    assert code == 0 and begin == "(" * len(end) and end == ")" * len(begin)
    settings = ["--beam-width", 3, "--num-return-sequences", 2, "--max-new-tokens", 9]
    code, out, _ = called(
        capfd, "generate", run_folder, "The", *settings, "--logit-bias", "\n", -9, "--json"
    )
    expected = task(
        "The",
        beam_width=3,
        num_return_sequences=2,
        max_new_tokens=9,
        logit_bias={"\n": -9.0},
        return_details=True,
    )
    found = json.loads(out)
    assert code == 0 and [row["text"] for row in found] == [row.text for row in expected]
    assert [row["score"] for row in found] == pytest.approx([row.score for row in expected])
    draft = f"{run_folder}/."  # another path, so that it is loaded beside the model
    arguments = ["--temperature", 0, "--draft", draft, "--stop", "e", "--max-new-tokens", 12]
    code, out, _ = called(capfd, "generate", run_folder, "The", *arguments)
    assert code == 0 and out == task("The", 12, temperature=0.0, stop="e") + "\n"
    code, out, told = called(capfd, "generate", run_folder, "The", "--top-p", 0)
    assert code == 2 and out == "" and "`top_p`" in told and told.count("\n") == 1


def test_chat_reads_messages_line_by_line(task, tmp_path, capfd, monkeypatch, loaded_once):
    template = "{% for m in messages %}{{ m.role[0] }}: {{ m.content }}\n{% endfor %}a:"
    made = keras_llm.TextGeneration(task.model, task.tokenizer, {"chat_template": template})
    made.save(tmp_path / "chatty")
    chatty = keras_llm.load(tmp_path / "chatty")
    settings = {"max_new_tokens": 8, "seed": 2, "stop": "\n"}
    first = [{"role": "user", "content": "Hi"}]
    system = next(  # one that the model heeds
        text
        for text in ("Hm.", "The value is a number.", "In 1984", "def f(x):", "A list of words.")
        if chatty.chat([{"role": "system", "content": text}, *first], **settings)
        != chatty.chat(first, **settings)
    )
    arguments = ["--max-new-tokens", 8, "--seed", 2, "--stop", "\n", "--system", system]
    messages, answers = [{"role": "system", "content": system}], []
    for text in ("Hi", "Why?"):
        messages.append({"role": "user", "content": text})
        answers.append(chatty.chat(messages, **settings))
        messages.append({"role": "assistant", "content": answers[-1]})
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hi\n\nWhy?\n/reset\nHi\n/exit\nNo\n"))
    code, out, _ = called(capfd, "chat", tmp_path / "chatty", *arguments)
    assert code == 0 and out == "".join(f"{text}\n" for text in [*answers, answers[0]])
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hi\n"))
    code, out, _ = called(capfd, "chat", tmp_path / "chatty", *arguments, "--json")
    assert json.loads(out) == {"role": "assistant", "content": answers[0]}
    task.save(tmp_path / "plain")
    code, _, told = called(capfd, "chat", tmp_path / "plain")
    assert code == 2 and "no chat template" in told


def test_train_evaluate_and_export(text_folder, tmp_path, capfd, monkeypatch, loaded_once):
    """Use a model with one layer, which is faster to train and trace."""
    table = importlib.import_module("keras_llm.models.presets")._PRESETS
    row = table["llama-tiny"]
    small = type(row).from_dict({**row.to_dict(), "num_layers": 1})
    monkeypatch.setitem(table, "llama-tiny", small)
    out = tmp_path / "runs" / "mine"
    arguments = ["--data", text_folder, "--out", out, "--smoke", "--max-megabytes", 0.05]
    code, printed, told = called(capfd, "train", "text_generation", *arguments)
    assert code == 0 and "perplexity" in printed and "trigram" in printed
    assert "tensorboard --logdir" in told
    metrics = json.loads((out / "metrics.json").read_text())

    code, printed, _ = called(capfd, "evaluate", out, "--json")
    assert code == 0
    assert json.loads(printed) == pytest.approx(metrics["held_out"])
    (tmp_path / "other.txt").write_text("Something else.")
    code, printed, _ = called(capfd, "evaluate", out, "--data", tmp_path / "other.txt")
    assert code == 0 and "bits_per_byte" in printed
    updated = json.loads((out / "metrics.json").read_text())
    assert list(updated["other_text"]) == [str(tmp_path / "other.txt")]
    assert updated["unigram"] == metrics["unigram"]

    code, printed, _ = called(
        capfd, "export", out, "--to", "saved_model", "--out", tmp_path / "serving", "--version", 2
    )
    assert code == 0 and "serving_default" in printed
    assert (tmp_path / "serving" / "2" / "saved_model.pb").is_file()
    target = tmp_path / "mobile" / "mine.tflite"
    code, printed, _ = called(
        capfd, "export", out, "--to", "litert", "--out", target, "--quantization", "int8", "--json"
    )
    assert code == 0 and json.loads(printed)["quantization"] == "int8" and target.is_file()


def test_model_of_a_changed_copy_of_a_recipe(run_folder, tmp_path, capfd):
    shutil.copytree(run_folder, tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    config = json.loads(path.read_text("utf-8"))
    config["metadata"]["options"]["my_option"] = 3
    path.write_text(json.dumps(config), "utf-8")
    code, printed, told = called(capfd, "evaluate", tmp_path / "model", "--json")
    assert code == 0 and json.loads(printed)["perplexity"] > 1
    assert "recipe text_generation lacks: my_option" in told
    del config["metadata"]["options"]
    path.write_text(json.dumps(config), "utf-8")
    code, _, told = called(capfd, "evaluate", tmp_path / "model")
    assert code == 2 and told.endswith("does not record the options of its recipe.\n")


def test_evaluate_a_model_without_recipe_on_a_file(task, tmp_path, capfd):
    keras_llm.TextGeneration(task.model, task.tokenizer).save(tmp_path / "model")
    (tmp_path / "text.txt").write_text("A word and another.")
    arguments = ["evaluate", tmp_path / "model", "--data", tmp_path / "text.txt", "--json"]
    code, printed, _ = called(capfd, *arguments)
    assert code == 0 and json.loads(printed)["perplexity"] > 1
    code, _, told = called(capfd, "evaluate", tmp_path / "model")
    assert code == 2 and "--data" in told and len(told.splitlines()) == 1


def test_evaluate_a_head_without_recipe_on_a_table(tmp_path, capfd):
    tok = tokenizers.WordPiece.train(["a good film", "a bad film"] * 9, 80)
    config = models.preset("bert-tiny", vocabulary_size=tok.vocabulary_size, num_layers=1)
    classifier, labels = models.text_classifier(config, 2), ["good", "bad"]
    contexts = {"context_separator": " "}
    tasks = {
        "plain": keras_llm.TextClassification(classifier, tok, labels),
        "contexts": keras_llm.TextClassification(classifier, tok, labels, contexts),
        "numbers": keras_llm.TextRegression(models.text_regressor(config), tok),
    }
    tables = {
        "plain": "text,label\na good film,good\na film,bad\n",
        "contexts": "text,label,context\na good film,good,a\na film,bad,film\n",
        "numbers": "text,label\na good film,1\na film,-1.5\n",
    }
    for name, task in tasks.items():
        task.save(tmp_path / name)
        (tmp_path / f"{name}.csv").write_text(tables[name])
        arguments = ["evaluate", tmp_path / name, "--data", tmp_path / f"{name}.csv", "--json"]
        code, printed, _ = called(capfd, *arguments)
        rows = [line.split(",") for line in tables[name].splitlines()[1:]]
        if name == "contexts":
            rows = [(text, context, label) for text, label, context in rows]
        assert code == 0 and json.loads(printed) == pytest.approx(task.evaluate(rows))
    embedding = keras_llm.TextEmbedding(models.sentence_embedder(models.encoder(config)), tok)
    embedding.save(tmp_path / "embedding")
    code, _, told = called(
        capfd, "evaluate", tmp_path / "embedding", "--data", tmp_path / "plain.csv"
    )
    assert code == 2 and "TextEmbedding; call `evaluate`" in told and len(told.splitlines()) == 1


def test_inspect_counts_parameters_and_memory(run_folder, task, capfd):
    code, printed, _ = called(capfd, "inspect", run_folder, "--json")
    found = json.loads(printed)
    assert code == 0
    assert found["parameters"] == task.model.count_params()
    assert found["parameters"] == sum(layer["parameters"] for layer in found["layers"])
    assert found["weight_bytes"] == 4 * found["parameters"]
    assert found["cache_bytes_per_token"] == 2 * 2 * 2 * 16 * 4  # k and v, layers, heads, size
    code, printed, _ = called(capfd, "inspect", "gpt-tiny")
    assert code == 0 and "position_embedding" in printed


def test_recipes_command(capfd):
    code, printed, _ = called(capfd, "recipes")
    assert code == 0
    for name in ("text_generation", "movie-reviews", "python-stdlib"):
        assert name in printed
    code, printed, _ = called(capfd, "recipes", "--json")
    assert set(json.loads(printed)) == {"recipes", "corpora"}


WRONG = [
    (["juggle"], "unknown command 'juggle'"),
    (["train", "juggling"], "unknown recipe 'juggling'"),
    (["train", "text_generation"], "--out"),
    (["train", "text_generation", "--out", "{tmp}/x", "--epochs", "many"], "--epochs"),
    (["train", "text_generation", "--out", "{tmp}/x", "--epochs", "0"], "--epochs"),
    (["train", "text_generation", "--out", "{tmp}/x", "--speed", "9"], "--speed"),
    (
        ["train", "text_generation", "--out", "{tmp}/x", "--preset", "huge", "--data", "{text}"],
        "huge",
    ),
    (["train", "text_generation", "--out", "{tmp}/x", "--corpus", "none"], "python-stdlib"),
    (["train", "text_generation", "--out", "{tmp}/x", "--data", "{tmp}/none.txt"], "none.txt"),
    (["train", "text_generation", "--out", "{tmp}/x", "--data", "{tmp}/empty.txt"], "no text"),
    (["train", "text_generation", "--out", "{tmp}/x", "--data", "{tmp}/latin.txt"], "not UTF-8"),
    (["train", "text_generation", "--out", "{run}", "--data", "{text}"], "exists"),
    (["train", "text_classification", "--out", "{tmp}/x", "--data", "{text}"], "has no .csv"),
    (["train", "text_classification", "--out", "{tmp}/x", "--corpus", "python-stdlib"], "labeled"),
    (["train", "text_classification", "--out", "{run}"], "exists"),
    (["predict", "{run}", "The"], "TextGeneration"),
    (["generate", "{tmp}/none", "The"], "not a model folder"),
    (["generate", "{run}", ""], "empty"),
    (["generate", "{run}", "word " * 300], "max_length"),
    (["generate", "{run}", "The", "--max-new-tokens", "0"], "max_new_tokens"),
    (["generate", "{run}", "The", "--max-new-tokens", "-1"], "max_new_tokens"),
    (["generate", "{run}", "The", "--temperature", "-1"], "temperature"),
    (["generate", "{run}", "", "--stream"], "empty"),
    (["evaluate", "{tmp}"], "not a model folder"),
    (["evaluate", "{run}", "--data", "{tmp}/empty.txt"], "no text"),
    (["export", "{run}", "--to", "onnx", "--out", "{tmp}/x"], "onnx"),
    (["export", "{run}", "--to", "saved_model", "--out", "{tmp}/x", "--version", "0"], "version"),
    (["export", "{run}", "--to", "litert", "--out", "{tmp}/x"], ".tflite"),
    (["export", "{run}", "--to", "litert", "--out", "{tmp}/taken.tflite"], "exists"),
    (
        ["export", "{run}", "--to", "litert", "--out", "{tmp}/x.tflite", "--version", "1"],
        "--version",
    ),
    (
        ["export", "{run}", "--to", "saved_model", "--out", "{tmp}/x", "--quantization", "int8"],
        "litert",
    ),
    (["export", "{run}", "--to", "litert_lm", "--out", "{tmp}/x.tflite"], ".litertlm"),
    (
        ["export", "{run}", "--to", "litert", "--out", "{tmp}/x.tflite", "--cache-length", "1"],
        "cache_length",
    ),
    (
        ["export", "{run}", "--to", "saved_model", "--out", "{tmp}/x", "--max-quality-loss", "1"],
        "litert",
    ),
    (["inspect", "{tmp}/none"], "neither a model folder nor a preset"),
]


@pytest.mark.parametrize("arguments, words", WRONG)
def test_invalid_input_prints_one_line_and_exits_with_2(
    arguments, words, run_folder, text_folder, tmp_path, capfd, loaded_once
):
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "latin.txt").write_bytes("é".encode("latin-1"))
    (tmp_path / "taken.tflite").write_text("")
    before = sorted(tmp_path.rglob("*"))
    names = {"tmp": tmp_path, "run": run_folder, "text": text_folder}
    code, out, err = called(capfd, *[str(a).format(**names) for a in arguments])
    assert code == 2 and out == ""
    assert len(err.splitlines()) == 1 and err.startswith("keras-llm: "), err
    assert words in err
    assert sorted(tmp_path.rglob("*")) == before


def test_exit_code_of_the_process():
    done = run("juggle")
    assert done.returncode == 2 and done.stdout == ""
    assert len(done.stderr.splitlines()) == 1 and "unknown command 'juggle'" in done.stderr


@pytest.fixture
def small_files():
    """Limit files of this process and of its children to 100 kB."""
    # An export keeps its child for the next one, which would be limited too: it is started before.
    with children.child("keras_llm.export.saved_model.worker", "that runs the SavedModel"):
        pass
    usual = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    signal.signal(signal.SIGXFSZ, usual)


def test_full_disk_prints_one_line_and_leaves_no_files(
    task, tmp_path, tmp_path_factory, capfd, request
):
    config = models.preset("encoder-tiny", num_layers=1)  # its embedding is 131 kB
    sorter = models.text_classifier(config, 2)
    model = tmp_path_factory.mktemp("small") / "model"
    keras_llm.TextClassification(sorter, task.tokenizer, ["good", "bad"]).save(model)
    request.getfixturevalue("small_files")
    arguments = ["export", model, "--to", "saved_model", "--out", tmp_path / "serving"]
    code, out, told = called(capfd, *arguments)
    assert code == 2 and out == ""
    assert len(told.splitlines()) == 1 and told.startswith("keras-llm: ")
    assert "File too large" in told
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []
