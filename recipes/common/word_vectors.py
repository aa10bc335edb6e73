"""Evaluate word vectors, train gensim's for comparison, and write them to files."""

_PROJECTED = 5000  # words in TensorBoard's projector


def measures(options, table, words):
    """Evaluate vectors on analogies and similarities, if `benchmarks` is on."""
    from keras_llm import training
    from keras_llm.recipes.corpora import registry

    if not options.benchmarks:
        return {}
    benchmarks = registry.load("word-similarity", "benchmarks")
    metrics = training.evaluate_analogies(table, words, benchmarks["analogies"])
    for name in ("wordsim", "simlex"):
        row = training.evaluate_similarities(table, words, benchmarks[name])
        metrics |= {f"{name}_pairs": row["pairs"], f"{name}_spearman": row["spearman"]}
    return metrics


def gensim_vectors(stream, task, options):
    """Train gensim's Word2Vec on the same words and settings; return vectors and words."""
    import numpy as np
    from gensim.models import Word2Vec

    names = np.array(task.tokenizer.vocabulary)
    breaks = np.flatnonzero(np.diff(stream > 0)) + 1
    texts = [names[part].tolist() for part in np.split(stream, breaks) if part[0] > 0]
    keyed_vectors = Word2Vec(
        texts,
        vector_size=options.dimension,
        window=options.window,
        min_count=1,
        sample=options.threshold,
        negative=options.negatives,
        sg=int(options.objective == "skip_gram"),
        epochs=options.epochs,
        seed=options.seed,
        workers=2,
    ).wv
    return keyed_vectors.vectors, keyed_vectors.index_to_key


def write_vectors(folder, task):
    """Write vectors.txt in GloVe's format, and the files of TensorBoard's projector."""
    from keras_llm import checkpoints

    checkpoints.write_glove(folder / "vectors.txt", task.table, task.words)
    shown = task.table[:_PROJECTED]
    logs = folder / "logs" / "train"
    lines = ("\t".join(f"{value:.6g}" for value in row) for row in shown)
    (logs / "vectors.tsv").write_text("\n".join(lines) + "\n", "utf-8")
    (logs / "words.tsv").write_text("\n".join(task.words[:_PROJECTED]) + "\n", "utf-8")
    (logs / "projector_config.pbtxt").write_text(
        'embeddings {\n  tensor_name: "words"\n  tensor_path: "vectors.tsv"\n'
        '  metadata_path: "words.tsv"\n}\n'
    )
