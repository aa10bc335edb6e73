"""Train every recipe on two workers; the first one writes the model."""

import json
import math
import os
import pathlib
import socket
import subprocess
import sys

import pytest

import keras_llm

NAMES = (
    "text_generation",
    "masked_lm",
    "next_sentence",
    "code_generation",
    "skip_gram",
    "classes",
    "spans",
    "yes_no",
    "quiz",
    "translation",
    "chatbot",
    "finetune",
    "preference_tuning",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("workers")


def start(command, folder, index, addresses):
    config = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
    log = open(folder / f"worker_{index}.log", "w")  # noqa: SIM115, closed with the process
    return subprocess.Popen(
        [sys.executable, "-m", "keras_llm", "train", *command],
        cwd=folder,
        stdout=log,
        stderr=log,
        env={**os.environ, "TF_CONFIG": json.dumps(config)},
    )


def free_addresses(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [server.getsockname()[1] for server in sockets]
    for server in sockets:
        server.close()
    return [f"127.0.0.1:{port}" for port in ports]


def test_all_recipes_are_listed(recipe_commands):
    from keras_llm.commands import entry_points

    assert set(NAMES) == set(recipe_commands)
    assert {command[0] for command in recipe_commands.values()} == set(entry_points.recipes())


@pytest.mark.parametrize("name", NAMES)
def test_recipe_on_two_workers(name, recipe_commands, folder):
    out = "chatbot" if name == "chatbot" else f"run_{name}"
    command = [*recipe_commands[name], "--out", out, "--distribution", "multi_worker"]
    addresses = free_addresses(2)
    workers = [start(command, folder, index, addresses) for index in (0, 1)]
    codes = [worker.wait(timeout=900) for worker in workers]
    logs = [pathlib.Path(folder / f"worker_{index}.log").read_text() for index in (0, 1)]
    assert codes == [0, 0], logs
    assert "done; the first worker writes the model" in logs[1]
    metrics = json.loads((folder / out / "metrics.json").read_text())
    _, losses, held_out = zip(*metrics["training"]["history"], strict=True)
    assert all(map(math.isfinite, losses + held_out))
    assert losses[-1] < losses[0] or len(losses) == 1
    count = keras_llm.load(folder / out).model.count_params()
    assert 1000 < count <= metrics["training"]["parameters"]  # may include a second head
