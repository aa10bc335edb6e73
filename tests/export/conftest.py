"""Small SavedModels and servers for them."""

import importlib.util
import os
import pathlib
import shutil

import pytest


@pytest.fixture(scope="session")
def save_tiny(tmp_path_factory):
    """Return a function that writes a small SavedModel: `save_tiny(folder, factor)`.

    The folder is copied under a temporary name and then renamed, so that it appears complete.
    """
    folders = {}

    def save(folder, factor):
        if factor not in folders:
            folders[factor] = tmp_path_factory.mktemp("tiny")
            _write_tiny(folders[factor], factor)
        partial = folder.with_name(f"{folder.name}.partial")
        shutil.copytree(folders[factor], partial)
        os.rename(partial, folder)

    return save


@pytest.fixture(scope="session")
def tiny_base(save_tiny, tmp_path_factory):
    """Return the base path of a small model with version 1."""
    base = tmp_path_factory.mktemp("served") / "tiny"
    save_tiny(base / "1", 1.0)
    return base


@pytest.fixture(scope="session")
def text_base(task, tmp_path_factory):
    """Return the base path of the reference task with version 1, with warmup of `generate`."""
    from keras_llm.export.saved_model.signatures import TextGenerationModule, save
    from keras_llm.export.saved_model.warmup import write_warmup

    base = tmp_path_factory.mktemp("served") / "stories"
    save(TextGenerationModule(task), base / "1")
    inputs = {
        "prompt": ["string", ["The"]],
        "max_new_tokens": ["int32", [2]],
        "temperature": ["float32", [1.0]],
        "top_k": ["int32", [0]],
        "top_p": ["float32", [1.0]],
        "seed": ["int32", [0]],
    }
    write_warmup(base / "1", "stories", [("generate", inputs)])
    return base


@pytest.fixture(scope="session")
def embedder():
    """Return the kind of task that is exported fastest: one short graph, no generated text."""
    import keras_llm
    from keras_llm import models, tokenizers

    tok = tokenizers.WordPiece.train(["Ada wrote of engines."] * 9, 80)
    config = models.preset(
        "bert-tiny",
        vocabulary_size=tok.vocabulary_size,
        num_layers=1,
        max_length=32,
        initializer_range=0.3,
    )
    return keras_llm.TextEmbedding(models.sentence_embedder(models.encoder(config)), tok)


@pytest.fixture(scope="session")
def serve():
    """Return a function that starts a server on free ports; all servers are closed at the end."""
    from keras_llm import export

    servers = []

    def start(base_path="", **options):
        if base_path:
            options["model_base_path"] = str(base_path)
        options = {"port": 0, "rest_api_port": -1, **options}
        servers.append(export.LocalServer(export.ServerOptions(**options)))
        return servers[-1]

    yield start
    for server in servers:
        server.close(grace=5)


@pytest.fixture(scope="session")
def text_server(text_base, serve):
    """Return a server of the reference task with batching."""
    return serve(text_base, enable_batching=True)


def _write_tiny(folder, factor):
    """Write a SavedModel with four signatures.

    `scale`: x (B, N) times `factor` times `by` (B,), which must not be negative. `upper`: text in
    upper case. `once`: a scalar without rows. `spin`: a loop of the given number of steps.
    """
    import tensorflow as tf

    class Tiny(tf.Module):
        def __init__(self):
            super().__init__()
            self.factor = tf.Variable(factor)

        def scale(self, x, by):
            check = tf.debugging.Assert(tf.reduce_all(by >= 0), ["by must not be negative"])
            with tf.control_dependencies([check]):
                return {
                    "y": x * by[:, None] * self.factor,
                    "rows": tf.fill(tf.shape(by), tf.size(by)),
                }

        def upper(self, text):
            return {"upper": tf.strings.upper(text)}

        def once(self, n):
            return {"n": n + 1}

        def spin(self, times):
            count = tf.while_loop(
                lambda i: i < tf.reduce_max(times), lambda i: i + 1, [tf.constant(0)]
            )
            return {"count": times * 0 + count[0]}

    def spec(shape, dtype, name):
        return tf.TensorSpec(shape, dtype, name=name)

    tiny = Tiny()
    signatures = {
        "serving_default": (
            tiny.scale,
            [spec((None, None), tf.float32, "x"), spec((None,), tf.float32, "by")],
        ),
        "upper": (tiny.upper, [spec((None,), tf.string, "text")]),
        "once": (tiny.once, [spec((), tf.int32, "n")]),
        "spin": (tiny.spin, [spec((None,), tf.int32, "times")]),
    }
    functions = {
        name: tf.function(function).get_concrete_function(*specs)
        for name, (function, specs) in signatures.items()
    }
    tf.saved_model.save(tiny, str(folder), signatures=functions)


@pytest.fixture(scope="session")
def hostile():
    """Return the class `Hostile`, which sends hostile requests."""
    path = pathlib.Path(__file__).with_name("hostile.py")
    spec = importlib.util.spec_from_file_location("hostile", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Hostile
