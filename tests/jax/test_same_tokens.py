"""`make test-jax`: generation on JAX gives TensorFlow's tokens, sampled ones too."""

import json
import os
import subprocess
import sys

PROGRAM = """
import json, sys
import numpy as np
from keras_llm import generation, models, training
model = models.causal_lm(models.preset("llama-tiny"))
rng = np.random.default_rng(0)
model.set_weights([rng.normal(0, 0.3, w.shape) for w in model.get_weights()])
ids, lengths = np.arange(3, 30, dtype="int32").reshape(3, 9), np.array([3, 9, 5], "int32")
found = {}
for settings in ((0.0, 0, 1.0, 7), (1.0, 40, 0.9, 7)):
    state = generation.generate(
        model, ids, lengths, np.array([20], "int32"), generation.Sampling(*settings).tensors(), 2, 0
    )
    found[str(settings)] = np.asarray(state.token_ids).tolist()
stream = np.arange(2, 60, dtype="int32")
found["score"] = np.asarray(generation.score(model, ids, lengths)).tolist()
found["held out"] = training.evaluate_language_model(model, stream, 50, 1, 9)["perplexity"]
found["tensorflow"] = "tensorflow" in sys.modules
print(json.dumps(found))
"""


def run(backend):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        capture_output=True,
        text=True,
        env={**os.environ, "KERAS_BACKEND": backend},
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_jax_generates_what_tensorflow_generates():
    jax, tensorflow = run("jax"), run("tensorflow")
    assert tensorflow.pop("tensorflow") and not jax.pop("tensorflow")
    for name in ("score", "held out"):
        ours, theirs = jax.pop(name), tensorflow.pop(name)
        ours, theirs = (v if isinstance(v, list) else [v] for v in (ours, theirs))
        assert all(abs(a - b) < 1e-3 * abs(b) for a, b in zip(ours, theirs, strict=True))
    assert jax == tensorflow
