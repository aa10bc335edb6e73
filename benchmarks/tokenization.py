"""Compare the speed of tokenizers with Hugging Face's, with the same vocabulary and texts.

    python benchmarks/tokenization.py --page docs/tokenization_benchmarks.md

The tokenizers of keras_llm run in a TensorFlow graph, as in `tf.data` and in a SavedModel. Those of
Hugging Face run in Rust: `encode_batch` with offsets, which transformers uses, and
`encode_batch_fast`. They take turns in every round; results are megabytes of text per second,
medians of the rounds.
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
    """Return a dict from name to a function that encodes the texts and one that lists the ids."""
    import tensorflow as tf

    from keras_llm import tokenizers

    tok = getattr(tokenizers, kind).train(texts[: len(texts) // 4], VOCABULARY_SIZE)
    graph = tf.function(tok.tokenize, input_signature=[tf.TensorSpec((None,), tf.string)])
    rust = tok.rust
    strings = tf.constant(texts)
    return {
        "keras_llm, graph": (lambda: graph(strings), lambda ragged: ragged.to_list()),
        "tokenizers, encode_batch": (
            lambda: rust.encode_batch(texts, add_special_tokens=False),
            lambda encodings: [encoding.ids for encoding in encodings],
        ),
        "tokenizers, encode_batch_fast": (
            lambda: rust.encode_batch_fast(texts, add_special_tokens=False),
            lambda encodings: [encoding.ids for encoding in encodings],
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
    parser.add_argument("--page", type=pathlib.Path, help="Markdown file to write")
    options = parser.parse_args()
    rows = []
    for corpus, name in CORPORA.items():
        texts = texts_of(name, options.megabytes * 1e6)
        size = sum(len(text.encode()) for text in texts) / 1e6
        for kind in ("WordPiece", "BytePair"):
            peers = functions(kind, texts)
            # This is also the warm-up call, which is not timed.
            ids = {peer: ids_of(run()) for peer, (run, ids_of) in peers.items()}
            equal = all(rows_of_ids == ids["keras_llm, graph"] for rows_of_ids in ids.values())
            times = {peer: [] for peer in peers}
            for _ in range(options.rounds):
                for peer, (run, _) in peers.items():
                    times[peer].append(measure(run))
            for peer in peers:
                wall, cpu = (statistics.median(t) for t in zip(*times[peer], strict=True))
                rows.append((kind, corpus, peer, size / wall, size / cpu, equal))
                print(rows[-1], flush=True)
    if options.page:
        options.page.write_text(page(rows, options), "utf-8")


def page(rows, options):
    lines = [
        "# Tokenizers compared with Hugging Face's",
        "",
        "Written by `python benchmarks/tokenization.py --page docs/tokenization_benchmarks.md`: a "
        f"vocabulary of {VOCABULARY_SIZE:,}, {options.megabytes:g} MB of",
        f"text, two cores, medians of {options.rounds}; one library after the other in every "
        "round. The ids are identical. The ratio is",
        "keras_llm's MB per CPU second divided by that of the row.",
        "",
        "| tokenizer | text | library | MB/s | MB/CPU s | ratio |",
        "|---|---|---|---|---|---|",
    ]
    speeds = {row[:2]: row[4] for row in rows if row[2] == "keras_llm, graph"}
    for kind, corpus, peer, wall, cpu, equal in rows:
        assert equal, (kind, corpus)
        ratio = speeds[kind, corpus] / cpu
        lines.append(f"| {kind} | {corpus} | {peer} | {wall:.1f} | {cpu:.1f} | {ratio:.1f} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
