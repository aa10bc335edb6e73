"""Stream a corpus that is larger than the memory of the process."""

import json
import pathlib
import subprocess
import sys

import numpy as np

NUM_DOCUMENTS, MEBIBYTES = (
    720,
    8,
)  # documents of 4.2 kB in each of 8 files: 24 MB, as ids too


def test_corpus_larger_than_memory_limit(tmp_path):
    random = np.random.default_rng(0)
    words = np.array(["".join(random.choice(list("etaoinsh"), 6)) for _ in range(2000)])
    (tmp_path / "texts").mkdir()
    for number in range(8):
        documents = (" ".join(words[random.integers(0, 2000, 600)]) for _ in range(NUM_DOCUMENTS))
        (tmp_path / "texts" / f"{number}.txt").write_text("\n\n".join(documents))
    child = pathlib.Path(__file__).parents[2] / "data" / "stream_with_memory_limit.py"

    command = [sys.executable, str(child), str(tmp_path / "texts"), str(MEBIBYTES)]
    command = ["sh", "-c", 'ulimit -s 1024 && exec "$@"', "sh", *command]  # small thread stacks
    completed = subprocess.run(command, capture_output=True, text=True, timeout=300)
    lines = completed.stdout.splitlines()
    assert len(lines) == 1, completed.stderr[-2000:]  # only the streamed part succeeded
    sizes = json.loads(lines[0])
    assert sizes["tokens"] == len(np.load(tmp_path / "tokens.npy", mmap_mode="r")) > 5_000_000
    assert sizes["steps"] == (sizes["tokens"] - 1) // 128 // 8
    assert sizes["held out"] == round(0.01 * 8 * NUM_DOCUMENTS)
    assert completed.returncode != 0  # the limit works: reading all texts at once fails
