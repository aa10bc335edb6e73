"""What the recipes that read whole documents share."""

import collections
import dataclasses
import glob
import hashlib
import pathlib
import tempfile
from typing import Literal

from keras_llm.errors import InputError
from keras_llm.recipes.common import runs

_SAMPLE = 20e6  # bytes of a streamed corpus, for what needs them in memory
_COUNTED = 5_000_000  # tokens of it that baselines count


@dataclasses.dataclass
class Options(runs.Options):
    """What a recipe can be told that trains on documents."""

    corpus: str = "movie-reviews"
    """A corpus of the kind "texts"; `keras-llm recipes` lists them."""
    data: str | None = None
    """Your own .txt, .jsonl or .parquet file, a folder of them, hf:NAME:SPLIT or tfds:NAME:SPLIT,
    instead of a corpus."""
    text_field: str = "text"
    """The field of a JSONL record, or the column of a table, that holds the text."""
    max_megabytes: float = 34.0
    """Use no more than this much text."""
    near_duplicates: float = 0.0
    """Leave out documents of which this share is in another, e.g. 0.8; 0 leaves out none."""
    scrub: bool = False
    """Replace e-mail and IP addresses, card and phone numbers."""

    stream = False  # an option of the recipes that can

    def __post_init__(self):
        super().__post_init__()
        self.check(
            ("max_megabytes", self.max_megabytes > 0, "> 0"),
            ("near_duplicates", 0 <= self.near_duplicates <= 1, "in [0, 1]"),
        )


@dataclasses.dataclass
class LanguageModelOptions(Options):
    """What a recipe can be told that trains a causal language model on documents."""

    held_out: float = 0.05
    """Share of the documents that is held out."""
    max_megabytes: float = 20.0
    """Use no more than this much text."""
    preset: str = "llama-3m"
    """Shape of the model."""
    vocabulary_size: int = 4096
    """Tokens in the vocabulary."""
    sequence_length: int = 128
    """Tokens in a training window."""
    batch_size: int = 8
    """Windows in a batch."""
    evaluations: int = 4
    """Held-out evaluations (on at most 32 batches), samples and checkpoints in each pass."""
    optimizer: Literal["adamw", "muon"] = "muon"
    """AdamW, or Muon for the matrices of the blocks: more to compute, fewer steps from scratch."""
    learning_rate: float = 3e-3
    """Peak learning rate; it warms up linearly."""
    weight_decay: float = 0.1
    """Decoupled weight decay, on matrices."""
    dropout: float = 0.0
    """Dropout in the model."""
    prompt: str = "This"
    """What the logged samples continue."""

    def __post_init__(self):
        super().__post_init__()
        self.check(
            ("dropout", 0 <= self.dropout < 1, "in [0, 1)"),
            ("prompt", bool(self.prompt), "a text"),
        )


@dataclasses.dataclass
class StreamOptions(Options):
    """What a recipe can be told whose data need not fit into memory."""

    stream: bool = False
    """Read --data anew when it is wanted and keep its tokens on disk beside --out until the run is
    whole, so that it need not fit into memory; see --max-megabytes."""

    def __post_init__(self):
        super().__post_init__()
        self.check(
            ("stream", not self.stream or self.data is not None, "off without --data"),
            ("near_duplicates", not (self.stream and self.near_duplicates), "0 with --stream"),
        )


def documents(options):
    """The training and held-out documents that the options name.

    Args:
        options: `Options`.

    Returns:
        Two lists of str; with `stream` the first is a `data.StreamedDocuments`.

    Raises:
        InputError: if the data cannot be read or is too little.
    """
    return prepared(options)[:2]


def prepared(options):
    """What `documents` returns, and what was done to it.

    Returns:
        What `documents` returns, and a dict for `metrics.json` and `notes`: `dropped`, how many
        documents were left out by reason, which is said on stderr too, and `scrubbed`, what was
        replaced.
    """
    train, held_out, report = (_streamed if options.stream else _in_memory)(options)
    runs.say(
        f"{len(train):,} documents for training, {len(held_out):,} held out; dropped: "
        f"{runs.reasons(report['dropped'])}"
    )
    return train, held_out, report


def _in_memory(options):
    from keras_llm import data
    from keras_llm.recipes.corpora import registry

    if options.data is None:
        found = registry.load(options.corpus)
    else:
        found = data.stream_texts(options.data, text_field=options.text_field)
    texts, empty = [], 0
    for text in found:
        if text.strip():
            texts.append(text)
        else:
            empty += 1
    if not texts:
        raise InputError(f"{options.data} holds no text.")
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
        used, nearly = data.without_near_duplicates(used, options.near_duplicates)
        report["dropped"] |= nearly
    if options.scrub:
        used, report["scrubbed"] = data.scrub_texts(used)
    return *data.split_documents(used, options.held_out, options.seed), report


def _streamed(options):
    """The same without holding the documents; those held out are a list."""
    from keras_llm import data

    scrubbed = collections.Counter()

    def read():
        for text in data.stream_texts(options.data, options.text_field):
            if options.scrub:
                text, found = data.scrub(text)
                scrubbed.update(found)
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
    """Training documents that fit into memory: of a streamed corpus 20 MB, drawn at random."""
    return documents.sample(_SAMPLE) if options.stream else documents


def token_ids(options, documents, tokenizer):
    """`data.encode_documents`; of a streamed corpus on disk, in a file that a run which was stopped
    finds again if documents and tokenizer are the same, until `remove_token_files`."""
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
    """Remove what `token_ids` wrote."""
    out = pathlib.Path(options.out)
    for path in out.parent.glob(f"{glob.escape(out.name)}.tokens-*.npy"):
        path.unlink()


def counted(options, token_ids):
    """What baselines count of the training tokens: of a streamed corpus the first five million."""
    import numpy as np

    return np.array(token_ids[:_COUNTED], "int32") if options.stream else token_ids


def measured_contamination(train, held_out):
    """`data.contamination`, said on stderr."""
    from keras_llm import data

    found = data.contamination(train, held_out)
    runs.say(
        f"{found['known_runs']:.1%} of the 13-word runs of held-out documents occur in the training"
    )
    return found


def notes(training):
    """Lines for a model card about what `prepared` and `measured_contamination` found.

    Args:
        training: dict, `metrics["training"]`.
    """
    lines = []
    if "counted_tokens" in training:
        lines.append(
            "The corpus was streamed: baselines that count tokens counted the first "
            f"{min(training['counted_tokens'], training['tokens']):,} of the training."
        )
    if "scrubbed" in training:
        found = ", ".join(f"{count:,} {name}" for name, count in training["scrubbed"].items())
        lines.append(f"Scrubbed from the data: {found or 'nothing was found'}.")
    if "contamination" not in training:
        return lines
    found = training["contamination"]
    lines.append(
        f"Of the runs of 13 words in held-out documents {found['known_runs']:.1%} occur in the "
        f"training ({found['texts_with_a_known_run']:,} of {found['texts']:,} documents have one)."
    )
    return lines


def check_length(options, config):
    """Raise InputError if `sequence_length` is more than a model of this config takes."""
    options.check(
        (
            "sequence_length",
            options.sequence_length <= config.max_length,
            f"at most the preset's {config.max_length}",
        ),
    )
