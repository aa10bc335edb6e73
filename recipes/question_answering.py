"""Train a model that answers questions: with a span of a text, with yes or no, or from memory.

    keras-llm train question_answering --out runs/answers
    keras-llm train question_answering --out runs/yes_no --kind yes_no
    keras-llm train question_answering --out runs/quiz --kind generative
    keras-llm train question_answering --out runs/mine --data rows.jsonl

Rows of question, context and answer are cleaned and split by context, and all-MiniLM-L6-v2 or
another encoder is fine-tuned with `fit`. An empty answer means that the context has no answer, and
the model learns to return none. Without a context, an encoder-decoder learns to answer from memory.
The model and baselines of the same kind are evaluated on held-out questions.
"""

import dataclasses
import sys
from typing import Literal

from keras_llm import cli
from keras_llm.recipes.common import (
    answer_spans,
    flags,
    generative_answers,
    model_card,
    runs,
    tables,
    yes_no,
)

BASELINE = "baseline"
KINDS = {"span": answer_spans, "yes_no": yes_no, "generative": generative_answers}
NEXT = {name: kind.NEXT for name, kind in KINDS.items()}
CORPUS_KINDS = tuple(KINDS)


@dataclasses.dataclass
@flags.defaults(batch_size=16, evaluations=1)
class Options(flags.RowOptions):
    """Train a model that answers questions, about a text or from memory."""

    kind: Literal["span", "yes_no", "generative"] = "span"
    """Whether the answer is a span of the context, yes or no, or generated from memory."""
    corpus: str | None = None
    """Name of a corpus of this kind (default reading, boolq or trivia); `keras-llm recipes` lists
    them."""
    question_column: str = "question"
    """Column or JSON field of the question."""
    context_column: str = "context"
    """Column or JSON field of the text that the question is about (not for generative)."""
    answer_column: str = "answer"
    """Column or JSON field of the answer: a span of the context, empty if there is none; or yes or
    no; or for generative any text, with several correct answers separated by " | "."""
    start: str | None = None
    """Encoder to continue from: "minilm" (default) for all-MiniLM-L6-v2 (91 MB), the folder of a
    run with an encoder, or "scratch" (always for generative) for --preset with random weights."""
    preset: str | None = None
    """Model preset for scratch (default encoder-2m, for generative seq2seq-2m)."""
    max_length: flags.at_least(16) = 192
    """Maximum tokens of question and context. Longer contexts are split into windows for spans and
    truncated for yes and no; for generative, longer rows are dropped from the training data."""
    test_rows: flags.Positive = 1000
    """Number of held-out questions for the metrics of a generative model."""
    epochs: flags.Positive | None = None
    """Training epochs (default 2, for generative 10)."""
    learning_rate: flags.PositiveFloat | None = None
    """Peak learning rate, after linear warmup (default 2e-4, for generative 2e-3)."""

    starts = ("minilm", "scratch")

    def __post_init__(self):
        is_generative = self.kind == "generative"
        if is_generative:
            self.shrink(preset="seq2seq-tiny", vocabulary_size=400, epochs=16)
        else:
            self.shrink(preset="encoder-tiny", vocabulary_size=512, epochs=8)
        self.shrink(start="scratch", dropout=0.0, max_length=64, max_rows=1000)
        self.shrink(batch_size=16, learning_rate=3e-3)
        for name, value in KINDS[self.kind].DEFAULTS.items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        self.least_vocabulary = 261 if is_generative else 69
        super().__post_init__()
        self.check(("start", not is_generative or self.start == "scratch", "scratch if generative"))


def run(options):
    """Train, evaluate and save a model; return its metrics."""
    runs.prepare(options, "sklearn")
    kind = KINDS[options.kind]
    train, held_out, dropped = kind.rows(options)
    task = kind.untrained(options, train, options.metadata("question_answering"))
    train_data, too_long = kind.batches(task, train, options, options.seed)
    validation_data, _ = kind.batches(task, tables.validation_sample(held_out, options), options)
    baselines = kind.baselines(task, train, held_out, options)
    with runs.start(options) as run:
        fitted = run.fit(task, train_data, validation_data, kind.UNIT)
        metrics = {
            "held_out": kind.measured(task, held_out, options),
            **baselines,
            "training": {"rows": len(train), "dropped": dropped | too_long, **fitted},
        }
        run.save(task, metrics, _model_card(task, options, metrics, held_out))
    return metrics


def evaluate(folder, data=None):
    """Evaluate a trained model on its held-out rows or on the rows of a file."""
    task, options = runs.load(folder, Options)
    kind = KINDS[options.kind]
    rows = kind.rows(options)[1] if data is None else kind.read(options, data)
    return kind.measured(task, rows, options)


def texts(task):
    """Return the texts of a trained yes or no model, training and held out: two lists of str."""
    return [yes_no.texts(task, side) for side in yes_no.rows(runs.model_options(Options, task))[:2]]


def _model_card(task, options, metrics, held_out):
    kind, start = KINDS[options.kind], ""
    if options.start != "scratch":
        start = f" Its training continues from `{options.start}`."
    return model_card.card(
        options,
        metrics,
        kind.ABOUT + start,
        {key: name for key, name in kind.BASELINES.items() if key in metrics},
        f"{metrics['held_out'].get('questions', len(held_out)):,} {kind.HELD_OUT}",
        [
            *kind.notes(task, options, held_out),
            f"Reads at most {options.max_length} tokens at a time; vocabulary size "
            f"{task.tokenizer.vocabulary_size}.",
            "Limits: the model is reliable only on questions and texts like its training data.",
        ],
        kind.NEXT,
    )


if __name__ == "__main__":
    sys.exit(cli.run_script(Options, run))
