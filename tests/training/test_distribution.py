"""What is not right on several replicas is refused there, in a process with two of them."""

import json
import subprocess
import sys

SCRIPT = """
import json
import keras
import numpy as np
import tensorflow as tf

cpus = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(cpus[0], 2 * [tf.config.LogicalDeviceConfiguration()])
from keras_llm import models, training
from keras_llm.errors import InputError

told = []


def refused(function):
    try:
        function()
    except InputError as error:
        told.append(str(error))
    else:
        told.append(None)


def fit(optimizer, callbacks):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile(optimizer, "mse", jit_compile=False)
    x = np.ones((4, 2), "float32")
    model.fit(x, x[:, :1], batch_size=4, verbose=0, callbacks=callbacks)


with tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"]).scope():
    language_model = models.causal_lm(models.preset("llama-tiny", num_layers=1))
    refused(lambda: training.LanguageModelTrainer(language_model))
    refused(lambda: fit(training.AdamW(0.1), []))
    refused(lambda: fit(keras.optimizers.SGD(0.1), [training.Resume("checkpoints")]))
    refused(lambda: fit(keras.optimizers.SGD(0.1), []))
print(json.dumps(told))
"""


def test_what_is_for_one_replica_is_refused_on_two(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    trainer, optimizer, resume, plain = json.loads(done.stdout.splitlines()[-1])
    for told, name in ((trainer, "LanguageModelTrainer"), (optimizer, "AdamW"), (resume, "Resume")):
        assert told.startswith(f"training.{name} is for one replica, and this strategy has 2")
    assert plain is None  # Keras itself trains there
