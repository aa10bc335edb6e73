"""Read, clean and split documents."""

import collections
import dataclasses
import glob
import hashlib
import pathlib
import tempfile

from keras_llm.errors import InputError
from keras_llm.recipes.common import flags, runs

_SAMPLE = 20e6  # bytes of a streamed corpus to hold in memory, such as for the tokenizer
_COUNTED = 5_000_000  # tokens of a streamed corpus that baselines use


@dataclasses.dataclass
class Options(flags.Options):
    """Options of recipes that train on documents."""

    corpus: str = "movie-reviews"
    """Name of a corpus of the kind "texts"; `keras-llm recipes` lists them."""
    data: str | None = None
    """Your own .txt, .jsonl or .parquet file, a folder of them, hf:NAME:SPLIT or tfds:NAME:SPLIT,
    instead of a corpus."""
    text_field: str = "text"
    """JSON field or table column of the text."""
    max_megabytes: flags.PositiveFloat = 34.0
    """Maximum size of the text, in MB."""
    near_duplicates: flags.Proportion = 0.0
    """Drop documents that share at least this fraction with another, such as 0.8; 0 drops none."""
    scrub: bool = False
    """Redact e-mail and IP addresses, card and phone numbers."""

    stream = False  # an option in `StreamOptions`


@dataclasses.dataclass
@flags.defaults(
    held_out=0.05,
    max_megabytes=20.0,
    preset="llama-3m",
    vocabulary_size=4096,
    optimizer="muon",
    learning_rate=3e-3,
    weight_decay=0.1,
)
class LanguageModelOptions(Options):
    """Options of recipes that train a causal language model on documents."""

    sequence_length: flags.Positive = 128
    """Tokens per training window."""
    batch_size: flags.Positive = 8
    """Windows per batch."""
    dropout: flags.Rate = 0.0
    """Dropout rate."""
    prompt: str = "This"
    """Prompt of the logged samples."""

    def __post_init__(self):
        super().__post_init__()
        self.check(("prompt", bool(self.prompt), "a non-empty text"))


@dataclasses.dataclass
class StreamOptions(Options):
    """Options of recipes that support data larger than memory."""

    stream: bool = False
    """Support data larger than memory: read --data again when needed, and keep its tokens on disk
    next to --out until the run is complete. See --max-megabytes."""

    def __post_init__(self):
        super().__post_init__()
        self.check(
            ("stream", not self.stream or self.data is not None, "off without --data"),
            ("near_duplicates", not (self.stream and self.near_duplicates), "0 with --stream"),
        )


def documents(options):
    """Return the training and held-out documents of the options; see `prepared`."""
    return prepared(options)[:2]


def texts(options):
    """Like `documents`; of a streamed corpus, return only a sample of the training documents."""
    train, held_out = documents(options)
    return list(sample(options, train)), held_out


def prepared(options, contamination=False):
    """Return the documents of the options and a report.

    Args:
        options: `Options`.
        contamination: bool. Whether to search the training data for held-out text.

    Returns:
        Training and held-out documents, lists of str (with `stream`, the first is a
        `data.StreamedDocuments`); and a dict for `metrics.json` and `notes`: `dropped`, the number
        of dropped documents by reason; `scrubbed`, the number of redactions by type; and
        `contamination`, see `data.contamination`.

    Raises:
        InputError: if the data cannot be read or is too small.
    """
    from keras_llm import data

    train, held_out, report = (_streamed if options.stream else _in_memory)(options)
    runs.say(
        f"{len(train):,} documents for training, {len(held_out):,} held out; dropped: "
        f"{runs.reasons(report['dropped'])}"
    )
    if contamination:
        report["contamination"] = data.contamination(train, held_out)
        runs.say(
            f"{report['contamination']['known_runs']:.1%} of the 13-word runs of held-out "
            "documents occur in the training data"
        )
    return train, held_out, report


def _in_memory(options):
    from keras_llm import data
    from keras_llm.recipes.corpora import registry

    if options.data is None:
        source = registry.load(options.corpus)
    else:
        source = data.stream_texts(options.data, text_field=options.text_field)
    texts, empty = [], 0
    for text in source:
        if text.strip():
            texts.append(text)
        else:
            empty += 1
    if not texts:
        raise InputError(f"{options.data} contains no text.")
    if options.data is not None:
        runs.say_unread(options.data)
    shuffled = data.shuffle_documents(texts, options.seed)
    repeated = len(texts) - len(shuffled)
    limit, size, used = options.max_megabytes * 1e6, 0, []
    for text in shuffled:
        size += len(text.encode())
        if size > limit and len(used) > 1:
            break
        used.append(text)
    beyond = len(shuffled) - len(used)
    dropped = {"empty": empty, "repeated": repeated, "beyond --max-megabytes": beyond}
    report = {"dropped": {reason: count for reason, count in dropped.items() if count}}
    if options.near_duplicates:
        used, near_duplicates = data.without_near_duplicates(used, options.near_duplicates)
        report["dropped"] |= near_duplicates
    if options.scrub:
        used, report["scrubbed"] = data.scrub_texts(used)
    return *data.split_documents(used, options.held_out, options.seed), report


def _streamed(options):
    """Like `_in_memory`, without loading the training documents."""
    from keras_llm import data

    scrubbed = collections.Counter()

    def read():
        for text in data.stream_texts(options.data, options.text_field):
            if options.scrub:
                text, counts = data.scrub(text)
                scrubbed.update(counts)
            yield text

    limit = options.max_megabytes * 1e6
    train, held_out, dropped = data.split_stream(read, options.held_out, options.seed, limit)
    runs.say_unread(options.data)
    beyond = dropped.pop("beyond the limit", 0)
    if beyond:
        dropped["beyond --max-megabytes"] = beyond
    report = {"dropped": dropped, "counted_tokens": _COUNTED}
    if options.scrub:
        report["scrubbed"] = dict(scrubbed)
    return train, list(held_out), report


def sample(options, documents):
    """Return training documents that fit in memory: 20 MB at random of a streamed corpus."""
    return documents.sample(_SAMPLE) if options.stream else documents


def token_ids(options, documents, tokenizer):
    """Encode documents with `data.encode_documents`; with `stream` to a file on disk.

    A resumed run reuses the file if documents and tokenizer are the same; `remove_token_files`
    deletes it.
    """
    import numpy as np

    from keras_llm import data

    if not options.stream:
        return data.encode_documents(documents, tokenizer)
    out = pathlib.Path(options.out)
    key = hashlib.blake2b(documents.fingerprint.encode(), digest_size=8)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save(folder)
        for path in sorted(pathlib.Path(folder).iterdir()):
            key.update(path.read_bytes())
    path = out.with_name(f"{out.name}.tokens-{key.hexdigest()}.npy")
    if path.is_file():
        return np.load(path, mmap_mode="r")
    return data.encode_documents(documents, tokenizer, path)


def remove_token_files(options):
    """Remove the files that `token_ids` has written."""
    out = pathlib.Path(options.out)
    for path in out.parent.glob(f"{glob.escape(out.name)}.tokens-*.npy"):
        path.unlink()


def counted(options, token_ids):
    """Return the training tokens for baselines: of a streamed corpus, the first five million."""
    import numpy as np

    return np.array(token_ids[:_COUNTED], "int32") if options.stream else token_ids


def notes(training):
    """Return lines for a model card about the report of `prepared`.

    Args:
        training: dict, `metrics["training"]`.
    """
    lines = []
    if "counted_tokens" in training:
        lines.append(
            "The corpus was streamed: baselines use only the first "
            f"{min(training['counted_tokens'], training['tokens']):,} training tokens."
        )
    if "scrubbed" in training:
        counts = ", ".join(f"{count:,} {name}" for name, count in training["scrubbed"].items())
        lines.append(f"Redacted in the data: {counts or 'nothing was found'}.")
    if "contamination" not in training:
        return lines
    contamination = training["contamination"]
    lines.append(
        f"{contamination['known_runs']:.1%} of the runs of 13 words in held-out documents occur in "
        f"the training data ({contamination['texts_with_a_known_run']:,} of "
        f"{contamination['texts']:,} documents have one)."
    )
    return lines


def check_length(options, config):
    """Raise InputError if `sequence_length` exceeds the maximum length of a config."""
    options.check(
        (
            "sequence_length",
            options.sequence_length <= config.max_length,
            f"at most the preset's {config.max_length}",
        ),
    )
