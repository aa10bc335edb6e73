"""Measure exports to each target: wall time and peak memory of all processes together.

    python benchmarks/export.py                          # the demo's model and SmolLM2-135M
    python benchmarks/export.py --only llama3.2-1b       # a preset's shape with random weights
    python benchmarks/export.py --python OTHER/.venv/bin/python --source OTHER   # another checkout
    python benchmarks/export.py --only litert_lm --peer PEER/bin/python   # compare litert-torch

A peer is a Python environment with litert-torch 0.10.0, torch, transformers and tensorflow. It
exports the same weights from a Hugging Face folder, which is written beforehand, and does not
verify the export.

Each export runs alone in a separate process, once per round; results are medians of the rounds.
Memory is the maximum over time of the sum of the proportional set sizes of all processes of the
export (PSS: a page that several processes share counts once).
"""

import argparse
import atexit
import gc
import json
import os
import pathlib
import shutil
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
PEER_RECIPES = {"int8": "dynamic_wi8_afp32", "int4": "dynamic_wi4b32_afp32"}
# Large models have bfloat16 weights, like the published checkpoints.
SHAPES = {
    "demo": ("llama-3m", {}),
    "qwen3-0.6b": ("qwen3-0.6b", {"vocabulary_size": 49152, "max_length": 1024}),
    "llama3.2-1b": ("llama3.2-1b", {"max_length": 1024}),
}
_INTERVAL = 0.25  # seconds between memory samples


def task_of(model):
    """Return the task: published SmolLM2, or a preset's shape with random weights."""
    import pydoc_data.topics

    import keras

    import keras_llm
    from keras_llm import checkpoints, models, tokenizers

    if model == "smollm2-135m":
        from keras_llm.recipes.corpora import smollm2

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
    """Export one case in this process and print the measurements."""
    atexit.register(gc.freeze)  # like `keras-llm export`
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


def write_for_peer(case, out):
    """Write the task of a case as a Hugging Face folder."""
    from keras_llm import checkpoints

    checkpoints.to_hugging_face(task_of(CASES[case][0]), out)


def peer_worker(case, source, out):
    """Export a Hugging Face folder with litert-torch in this process; print like `worker`."""
    arguments = CASES[case][2]
    begin = time.perf_counter()
    from litert_torch.generative.export_hf import export

    built = time.perf_counter()
    export.export(
        source,
        out,
        prefill_lengths=[16, 128],
        cache_length=arguments.get("cache_length", 1024),
        quantization_recipe=PEER_RECIPES[arguments["quantization"]],
    )
    (path,) = pathlib.Path(out).glob("*.litertlm")
    seconds = time.perf_counter() - built
    size = path.stat().st_size
    print(json.dumps({"build": built - begin, "export": seconds, "bytes": size, "seconds": None}))


def measure(case, options, out, peer_source=None):
    """Run a case, or the peer on a Hugging Face folder, once; return a dict of measurements."""
    python, worker = options.python, ["--worker", case, "--out", str(out)]
    if peer_source is not None:
        python, worker = options.peer, [*worker, "--peer-source", str(peer_source)]
    command = [python, os.path.abspath(__file__), *worker]
    begin = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=options.source)
    peak = [0]
    watcher = threading.Thread(target=_watch, args=(process, peak))
    watcher.start()
    text, _ = process.communicate()
    wall = time.perf_counter() - begin
    watcher.join()
    if process.returncode:
        sys.exit(f"{case}: the export failed with exit code {process.returncode}")
    rows = text.strip().splitlines()
    return {"wall": wall, "peak_gb": peak[0] / 1e9, **(json.loads(rows[-1]) if rows else {})}


def _watch(process, peak):
    while process.poll() is None:
        processes = _tree(process.pid)
        if sum(map(_rss, processes)) > peak[0]:  # RSS is cheap to read and an upper bound of PSS
            peak[0] = max(peak[0], sum(map(_pss, processes)))
        time.sleep(_INTERVAL)


def _tree(root):
    """Return the ids of a process and all its descendants."""
    children = {}
    for path in pathlib.Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:  # the process has ended
            continue
        children.setdefault(int(fields[1]), []).append(int(path.parent.name))
    pids = [root]
    for pid in pids:
        pids += children.get(pid, [])
    return pids


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
    parser.add_argument("--only", nargs="+", help="run cases whose names contain one of these")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--python", default=sys.executable, help="Python of another checkout")
    parser.add_argument("--source", default=str(pathlib.Path(__file__).parents[1]))
    parser.add_argument("--folder", help="parent of the temporary folder to write files to")
    parser.add_argument("--peer", help="Python with litert-torch, to compare with")
    parser.add_argument("--peer-source", help=argparse.SUPPRESS)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--out", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker and options.peer_source == "write":
        write_for_peer(options.worker, options.out)
    elif options.worker and options.peer_source:
        peer_worker(options.worker, options.peer_source, options.out)
    elif options.worker:
        worker(options.worker, options.out)
    else:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            run(options, pathlib.Path(folder))


def run(options, folder):
    """Measure cases and print a table."""
    names = DEFAULT
    if options.only:
        names = [name for name in CASES if any(part in name for part in options.only)]
    print("| export | wall, s | loading, s | peak, GB | MB | seconds |\n|---|---|---|---|---|---|")
    if any(CASES[name][0] == "demo" for name in names):
        measure("demo litert", options, folder / "first")  # writes the demo model
    for name in names:
        sources = {name: None}
        if options.peer and CASES[name][1] == "litert_lm":
            sources[f"litert-torch: {name}"] = source = folder / "hugging_face"
            command = [options.python, os.path.abspath(__file__), "--worker", name]
            command += ["--out", str(source), "--peer-source", "write"]
            subprocess.run(command, check=True)
        rounds = {title: [] for title in sources}
        for _ in range(options.rounds):
            for title, source in sources.items():
                out = folder / "out"
                rounds[title].append(measure(name, options, out, source))
                shutil.rmtree(out)
        for title, results in rounds.items():
            keys = ("wall", "build", "peak_gb", "bytes")
            row = {key: statistics.median(result[key] for result in results) for key in keys}
            print(
                f"| {title} | {row['wall']:.1f} | {row['build']:.1f} | {row['peak_gb']:.2f} | "
                f"{row['bytes'] / 1e6:.1f} | {json.dumps(results[-1]['seconds'])} |",
                flush=True,
            )
        shutil.rmtree(folder / "hugging_face", ignore_errors=True)


if __name__ == "__main__":
    main()
