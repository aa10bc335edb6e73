"""Test that generation and tasks on JAX give TensorFlow's tokens, both greedy and sampled."""

import json
import os
import subprocess
import sys

GENERATION_SCRIPT = """
import json, sys
import numpy as np
from keras_llm import generation, models, training
model = models.causal_lm(models.preset("llama-tiny"))
rng = np.random.default_rng(0)
model.set_weights([rng.normal(0, 0.3, w.shape) for w in model.get_weights()])
ids, lengths = np.arange(3, 30, dtype="int32").reshape(3, 9), np.array([3, 9, 5], "int32")
results = {}
for settings in ((0.0, 0, 1.0, 7), (1.0, 40, 0.9, 7)):
    state = generation.generate(
        model, ids, lengths, np.array([20], "int32"), generation.Sampling(*settings).tensors(), 2, 0
    )
    results[str(settings)] = np.asarray(state.token_ids).tolist()
stream = np.arange(2, 60, dtype="int32")
results["score"] = np.asarray(generation.score(model, ids, lengths)).tolist()
results["held out"] = training.evaluate_language_model(model, stream, 50, 1, 9)["perplexity"]
results["tensorflow"] = "tensorflow" in sys.modules
print(json.dumps(results))
"""


def run(backend, program=GENERATION_SCRIPT):
    completed = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env={**os.environ, "KERAS_BACKEND": backend},
    )
    assert completed.returncode == 0, completed.stderr
    return json.loads(completed.stdout.splitlines()[-1])


def test_generation_matches_tensorflow():
    jax, tensorflow = run("jax"), run("tensorflow")
    assert tensorflow.pop("tensorflow") and not jax.pop("tensorflow")
    for name in ("score", "held out"):
        ours, theirs = jax.pop(name), tensorflow.pop(name)
        ours, theirs = (v if isinstance(v, list) else [v] for v in (ours, theirs))
        assert all(abs(a - b) < 1e-3 * abs(b) for a, b in zip(ours, theirs, strict=True))
    assert jax == tensorflow


TASKS_SCRIPT = """
import json
import keras
import numpy as np
from keras_llm import models, tasks, tokenizers

text = "once upon a time there was a little cat"
tokenizer = tokenizers.SentencePiece.train([text] * 9, 285, "bpe")
model = models.causal_lm(models.preset("llama-tiny", vocabulary_size=285))
rng = np.random.default_rng(0)
model.set_weights([rng.normal(0, 0.3, w.shape) for w in model.get_weights()])
task, prompts = tasks.TextGeneration(model, tokenizer), ["once upon", "a"]
greedy = {"max_new_tokens": 8, "temperature": 0}
results = {
    "greedy": task(prompts, **greedy),
    "sampled": task(prompts, 8, seed=3, top_k=20, num_return_sequences=2),
    "stopped": task(prompts, 8, seed=3, stop="e"),
    "streamed": list(task.stream("once", 8, seed=5)),
    "beams": task(prompts, 8, beam_width=3),
    "contrastive": task(prompts, 8, contrastive_alpha=0.5),
    "looked up": task(prompts, prompt_lookup=2, **greedy),
    "drafted": task(prompts, draft=task, **greedy),
    "constrained": task("a", 8, seed=1, regex="[a-c ]+"),
}
numbers = [*task.score(prompts), task("a", return_details=True, **greedy).log_probability]
model.set_weights([0.5 * w for w in model.get_weights()])
results["other weights"] = task(prompts, **greedy)
source = models.seq2seq(models.preset("t5-tiny", vocabulary_size=285, start_id=1))
source.set_weights([rng.normal(0, 0.3, w.shape) for w in source.get_weights()])
translation = tasks.Translation(source, tokenizer)
results["translated"] = translation(prompts, beam_width=2, max_new_tokens=8)
print(json.dumps([results, numbers, keras.backend.backend()]))
"""


def test_tasks_match_tensorflow():
    (texts, numbers, backend), (expected, expected_numbers, _) = (
        run(name, TASKS_SCRIPT) for name in ("jax", "tensorflow")
    )
    assert backend == "jax" and texts == expected
    assert all(abs(a - b) < 1e-3 * abs(b) for a, b in zip(numbers, expected_numbers, strict=True))
    assert texts["other weights"] != texts["greedy"] and texts["looked up"] == texts["greedy"]
