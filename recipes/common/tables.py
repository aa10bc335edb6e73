"""Read rows of texts from a file or a corpus, clean and split them."""

import random

from keras_llm.recipes.common import runs


def rows(options, columns, kind, by=0, unique=0, may_be_empty=()):
    """Read the rows of `--data` or `--corpus` and split them.

    Empty rows, rows that repeat the `unique` columns of an earlier row, and training rows whose
    text is also held out are dropped and counted on stderr.

    Args:
        options: `Options`.
        columns: list of str, the columns of a file.
        kind: str, the kind of a corpus.
        by: int, the index of the column by which rows are split: rows with the same text are on
            the same side.
        unique, may_be_empty: see `data.clean_rows`.

    Returns:
        Training rows and held-out rows, lists of tuples of str, and a dict of dropped rows by
        reason.
    """
    from keras_llm import data
    from keras_llm.recipes.corpora import registry
    from keras_llm.recipes.corpora.readers import Split

    if options.data is None:
        records = registry.load(options.corpus, kind)
    else:
        records = data.read_records(options.data, columns)
        runs.say_unread(options.data, columns)
    rules = {"unique": unique, "may_be_empty": may_be_empty}
    if isinstance(records, Split):
        held_out, dropped = data.clean_rows(records.held_out, **rules)
        train, others = data.clean_rows(records.train, **rules)
        dropped = {key: dropped.get(key, 0) + others.get(key, 0) for key in {**dropped, **others}}
    else:
        records, dropped = data.clean_rows(records, **rules)
        train, held_out = data.split_rows(records, options.held_out, options.seed, by)
    train, contaminated = data.without_contamination(train, held_out, by)
    dropped |= contaminated
    reasons = runs.reasons(dropped)
    runs.say(f"{len(train):,} rows for training, {len(held_out):,} held out; dropped: {reasons}")
    return train, held_out, dropped


def validation_sample(held_out, options):
    """Return the held-out rows to validate on during training: a random sample of 32 batches."""
    count = min(len(held_out), 32 * options.batch_size)
    return random.Random(options.seed).sample(held_out, count)
