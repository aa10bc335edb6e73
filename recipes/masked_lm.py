"""Train an encoder with masked language modeling, as in BERT's pretraining.

    keras-llm train masked_lm --out runs/words --corpus movie-reviews
    keras-llm train masked_lm --out runs/mine --data my_texts/
    keras-llm train masked_lm --out runs/pairs --next-sentence

Documents are split, a WordPiece vocabulary is trained, and the encoder is trained with `fit` on
windows with dynamic masking. The baseline predicts the most frequent token.
`text_classification --start runs/words` continues from the encoder. `--next-sentence` adds BERT's
next sentence prediction.
"""

import dataclasses
import sys

from keras_llm import cli
from keras_llm.recipes.common import corpus, flags, masked_tokens, model_card, runs

BASELINE = "most_frequent"
NEXT = 'predict {out} "{prompt}"'
CORPUS_KINDS = ("texts",)


@dataclasses.dataclass
@flags.defaults(preset="encoder-2m", learning_rate=2e-3)
class Options(corpus.StreamOptions):
    """Train an encoder that predicts masked words."""

    sequence_length: flags.at_least(3) = 128
    """Tokens per window."""
    mask_rate: flags.Share = 0.15
    """Fraction of the words to mask."""
    whole_words: bool = True
    """Mask all tokens of a word together; `--no-whole-words` masks single tokens."""
    next_sentence: bool = False
    """Train a second head that predicts whether the second of two passages follows the first, as in
    BERT; it is saved in the folder `next_sentence`."""
    prompt: str = "This [MASK] is very good."
    """Text with [MASK] for the logged samples."""

    formats = ("saved_model", "litert")
    least_vocabulary = 69  # of WordPiece: special tokens and characters

    def __post_init__(self):
        super().__post_init__()
        fits = self.sequence_length > 4 or not self.next_sentence
        self.check(
            ("sequence_length", fits, "at least 5 with --next-sentence"),
            ("stream", not (self.stream and self.next_sentence), "off with --next-sentence"),
            ("prompt", "[MASK]" in self.prompt, "a text with [MASK]"),
        )
        self.shrink(preset="encoder-tiny", vocabulary_size=512, sequence_length=64, batch_size=16)
        self.shrink(max_megabytes=0.3, held_out=0.1, epochs=6, evaluations=1, learning_rate=5e-3)


def run(options):
    """Train, evaluate and save a model; return its metrics."""
    from keras_llm import data, models, tasks, tokenizers, training

    runs.prepare(options)
    corpus.check_length(options, models.preset(options.preset))
    train, held_out, report = corpus.prepared(options)
    tokenizer = tokenizers.WordPiece.train(corpus.sample(options, train), options.vocabulary_size)
    config = models.preset(
        options.preset,
        vocabulary_size=tokenizer.vocabulary_size,
        dropout=0.0,  # no text is repeated often enough to overfit
        **({"num_segments": 2} if options.next_sentence else {}),
    )
    encoder = models.encoder(config)
    task = tasks.MaskedLanguageModel(
        models.masked_lm(encoder), tokenizer, options.metadata("masked_lm")
    )
    train_ids = corpus.token_ids(options, train, tokenizer)
    held_out_ids = data.encode_documents(held_out, tokenizer)
    train_data = masked_tokens.batches(options, task, train, train_ids, options.seed)
    validation_data = masked_tokens.batches(options, task, held_out, held_out_ids)
    baseline = masked_tokens.most_frequent(
        task, corpus.counted(options, train_ids), validation_data
    )
    task(options.prompt)  # raises an error for an invalid prompt before training
    trainer, judge = task, None
    counted = "tokens", options.batch_size * options.sequence_length
    if options.next_sentence:
        judge = tasks.NextSentence(models.next_sentence(encoder), tokenizer)
        trainer = training.SentencePairTrainer(task.model, judge.model, tokenizer.pad_id)
        counted = "pairs", options.batch_size
    with runs.start(options) as run:
        fitted = run.fit(
            trainer,
            train_data,
            validation_data.take(32).cache(),
            *counted,
            sample=lambda: f"> {task(options.prompt)}",
        )
        metrics = {
            "held_out": masked_tokens.measured(task, judge, validation_data),
            BASELINE: baseline,
            "training": {"documents": len(train), "tokens": len(train_ids), **report, **fitted},
        }
        if judge:
            metrics[BASELINE]["next_sentence_accuracy"] = 0.5
            (run.folder / "next_sentence").mkdir(exist_ok=True)
            judge.write(run.folder / "next_sentence")
        run.save(task, metrics, _model_card(options, metrics))
    corpus.remove_token_files(options)
    return metrics


def evaluate(folder, data=None):
    """Evaluate a trained model on its held-out documents or on the texts of a file or folder."""
    import keras_llm
    from keras_llm.data import encode_documents, read_texts

    task, options = runs.load(folder, Options)
    documents = read_texts(data, options.text_field) if data else corpus.documents(options)[1]
    judge = keras_llm.load(f"{folder}/next_sentence") if options.next_sentence else None
    token_ids = encode_documents(documents, task.tokenizer)
    batches = masked_tokens.batches(options, task, documents, token_ids)
    return masked_tokens.measured(task, judge, batches)


def _model_card(options, metrics):
    training = metrics["training"]
    kind = "whole words" if options.whole_words else "tokens"
    second_head = (
        "The folder `next_sentence` contains a second head on the same encoder, which predicts "
        "whether a passage follows another, as in half of the held-out pairs."
    )
    return model_card.card(
        options,
        metrics,
        "An encoder that predicts masked words.",
        {BASELINE: "most frequent token"},
        f"{metrics['held_out']['tokens']:,} masked tokens",
        [
            f"Text: {training['tokens']:,} tokens in {training['documents']:,} documents, in "
            f"windows of {options.sequence_length}; {options.mask_rate:.0%} of the {kind} masked.",
            *([second_head] if options.next_sentence else []),
            *corpus.notes(training),
            "Limits: the model is reliable only on texts like its training data.",
        ],
        NEXT,
    )


if __name__ == "__main__":
    sys.exit(cli.run_script(Options, run))
