"""Export a model to each target: wall time, CPU time and peak memory of all processes together.

    python benchmarks/export.py                          # the demo's model and SmolLM2-135M
    python benchmarks/export.py --only llama3.2-1b       # a preset's shape with random weights
    python benchmarks/export.py --python OTHER/.venv/bin/python --source OTHER   # another checkout

Every export runs in a process of its own, alone, once a round; figures are medians of the rounds.
Memory is the largest sum, over the processes of the export, of their proportional set sizes (PSS:
a page that several processes share counts once).
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import threading
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
# name -> (model, target, arguments of the export)
CASES = {
    "demo saved_model": ("demo", "saved_model", {}),
    "demo litert": ("demo", "litert", {}),
    "demo litert int8": ("demo", "litert", {"quantization": "int8"}),
    "smollm2-135m litert_lm int8": (
        "smollm2-135m",
        "litert_lm",
        {"quantization": "int8", "cache_length": 1024},
    ),
    "qwen3-0.6b litert_lm int4": ("qwen3-0.6b", "litert_lm", {"quantization": "int4"}),
    "llama3.2-1b litert_lm int4": ("llama3.2-1b", "litert_lm", {"quantization": "int4"}),
    "llama3.2-1b litert_lm int8": ("llama3.2-1b", "litert_lm", {"quantization": "int8"}),
    "llama3.2-1b saved_model": ("llama3.2-1b", "saved_model", {}),
}
DEFAULT = list(CASES)[:4]
# Weights of large models are bfloat16, as their publishers store them.
SHAPES = {
    "demo": ("llama-3m", {}),
    "qwen3-0.6b": ("qwen3-0.6b", {"vocabulary_size": 49152, "max_length": 1024}),
    "llama3.2-1b": ("llama3.2-1b", {"max_length": 1024}),
}
_INTERVAL = 0.25  # seconds between two looks at the memory


def task_of(model):
    """The task: SmolLM2 as published, or a preset's shape with random weights."""
    import pydoc_data.topics

    import keras

    import keras_llm
    from keras_llm import checkpoints, models, tokenizers

    if model == "smollm2-135m":
        from keras_llm.recipes import smollm2

        return checkpoints.from_gguf(smollm2.published())
    keras.utils.set_random_seed(0)
    preset, changes = SHAPES[model]
    config = models.preset(preset, **changes)
    tokenizer = tokenizers.SentencePiece.train(
        list(pydoc_data.topics.topics.values()), vocabulary_size=4096
    )
    dtype = None if model == "demo" else "bfloat16"
    return keras_llm.TextGeneration(models.causal_lm(config, dtype=dtype), tokenizer)


def worker(case, out):
    """Export one case in this process and print what it took."""
    model, target, arguments = CASES[case]
    begin = time.perf_counter()
    if model == "demo":
        import keras_llm

        folder = pathlib.Path(out).with_name("demo")
        if not folder.exists():
            task_of(model).save(folder)
            return
        task = keras_llm.load(folder)
    else:
        task = task_of(model)
    from keras_llm import export

    built = time.perf_counter()
    suffix = {"saved_model": "", "litert": ".tflite", "litert_lm": ".litertlm"}[target]
    path = pathlib.Path(out) / f"model{suffix}"
    report = getattr(export, target)(task, path, **arguments)
    print(
        json.dumps(
            {
                "build": built - begin,
                "export": time.perf_counter() - built,
                "bytes": report["bytes"]["total"],
                "seconds": report.get("seconds"),
                "parity": report["parity"],
            }
        )
    )


def measure(case, options, out):
    """Run a case once; a dict of what it took."""
    environment = dict(os.environ)
    command = [options.python, os.path.abspath(__file__), "--worker", case, "--out", str(out)]
    begin = time.perf_counter()
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, cwd=options.source, env=environment
    )
    peak = [0]
    watcher = threading.Thread(target=_watch, args=(process, peak))
    watcher.start()
    text, _ = process.communicate()
    wall = time.perf_counter() - begin
    watcher.join()
    if process.returncode:
        sys.exit(f"{case}: the export ended with {process.returncode}")
    rows = text.strip().splitlines()
    return {"wall": wall, "peak_gb": peak[0] / 1e9, **(json.loads(rows[-1]) if rows else {})}


def _watch(process, peak):
    while process.poll() is None:
        processes = _tree(process.pid)
        if sum(map(_rss, processes)) > peak[0]:  # cheap, and never below what is asked
            peak[0] = max(peak[0], sum(map(_pss, processes)))
        time.sleep(_INTERVAL)


def _tree(root):
    """The processes that descend from one, and itself."""
    children = {}
    for path in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:  # it has just ended
            continue
        children.setdefault(int(fields[1]), []).append(int(path.parent.name))
    found = [root]
    for pid in found:
        found += children.get(pid, [])
    return found


def _rss(pid):
    try:
        with open(f"/proc/{pid}/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def _pss(pid):
    try:
        with open(f"/proc/{pid}/smaps_rollup") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("Pss:"))
    except (OSError, StopIteration):
        return 0


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", help="cases whose names contain one of these")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--python", default=sys.executable, help="of another checkout")
    parser.add_argument("--source", default=str(pathlib.Path(__file__).parents[1]))
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--out", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker(options.worker, options.out)
        return
    names = DEFAULT
    if options.only:
        names = [name for name in CASES if any(part in name for part in options.only)]
    print(
        "| export | wall, s | of it loading | peak, GB | MB | seconds |\n|---|---|---|---|---|---|"
    )
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        if any(CASES[name][0] == "demo" for name in names):
            measure("demo litert", options, folder / "first")
        for name in names:
            rounds = [
                measure(name, options, folder / f"{i}_{name.replace(' ', '_')}")
                for i in range(options.rounds)
            ]
            row = {
                key: statistics.median(round_[key] for round_ in rounds)
                for key in ("wall", "build", "peak_gb", "bytes")
            }
            print(
                f"| {name} | {row['wall']:.1f} | {row['build']:.1f} | {row['peak_gb']:.2f} | "
                f"{row['bytes'] / 1e6:.1f} | {json.dumps(rounds[-1]['seconds'])} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
