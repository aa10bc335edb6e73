"""Rows of texts that a recipe reads: from a file or a corpus, cleaned and split."""

import random

from keras_llm.recipes.common import runs


def rows(options, columns, kind, by=0, unique=0, may_be_empty=()):
    """The rows that `--data` or `--corpus` names, split.

    What is left out, empty rows and those of which the `unique` columns have come before, is
    counted on stderr, and so are training rows whose text is held out too.

    Args:
        options: `Options`.
        columns: list of str, the columns of a file.
        kind: str, of a corpus.
        by: int, the place of the text that keeps rows on the same side of the split.
        unique, may_be_empty: as of `data.clean_rows`.

    Returns:
        Training and held-out rows, two lists of tuples of str, and the dict of what was dropped.
    """
    from keras_llm import data
    from keras_llm.recipes.corpora import registry
    from keras_llm.recipes.corpora.readers import Split

    if options.data is None:
        found = registry.load(options.corpus, kind)
    else:
        found = data.read_records(options.data, columns)
        runs.say_unread(options.data, columns)
    rules = {"unique": unique, "may_be_empty": may_be_empty}
    if isinstance(found, Split):
        held_out, dropped = data.clean_rows(found.held_out, **rules)
        train, others = data.clean_rows(found.train, **rules)
        dropped = {key: dropped.get(key, 0) + others.get(key, 0) for key in {**dropped, **others}}
    else:
        found, dropped = data.clean_rows(found, **rules)
        train, held_out = data.split_rows(found, options.held_out, options.seed, by)
    train, known = data.without_contamination(train, held_out, by)
    dropped |= known
    told = runs.reasons(dropped)
    runs.say(f"{len(train):,} rows for training, {len(held_out):,} held out; dropped: {told}")
    return train, held_out, dropped


def to_watch(held_out, options):
    """The held-out rows that the loss is watched on while a model is trained: all, or as many as
    32 batches have, drawn by the seed."""
    count = min(len(held_out), 32 * options.batch_size)
    return random.Random(options.seed).sample(held_out, count)
