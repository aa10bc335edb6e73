"""What the recipes that read whole documents share."""

import dataclasses

from keras_llm.recipes import runs


@dataclasses.dataclass
class Options(runs.Options):
    """What a recipe can be told that trains on documents."""

    corpus: str = "movie-reviews"
    """A corpus of the kind "texts"; `keras-llm recipes` lists them."""
    data: str | None = None
    """Your own .txt or .jsonl file, or a folder of them, instead of a corpus."""
    text_field: str = "text"
    """The field of a JSONL record that holds the text."""
    max_megabytes: float = 34.0
    """Use no more than this much text."""

    def __post_init__(self):
        super().__post_init__()
        self.check(("max_megabytes", self.max_megabytes > 0, "> 0"))


def documents(options):
    """The training and held-out documents that the options name.

    Args:
        options: `Options`.

    Returns:
        Two lists of str.

    Raises:
        InputError: if the data cannot be read or is too little.
    """
    from keras_llm import data
    from keras_llm.recipes import corpora

    if options.data is None:
        texts = corpora.load(options.corpus)
    else:
        texts = data.read_texts(options.data, text_field=options.text_field)
    limit, size, used = options.max_megabytes * 1e6, 0, []
    for text in data.shuffle_documents(texts, options.seed):
        size += len(text.encode())
        if size > limit and len(used) > 1:
            break
        used.append(text)
    return data.split_documents(used, options.held_out, options.seed)


def check_length(options, config):
    """Raise InputError if `sequence_length` is more than a model of this config takes."""
    options.check(
        (
            "sequence_length",
            options.sequence_length <= config.max_length,
            f"at most the preset's {config.max_length}",
        ),
    )
