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

from keras_llm.recipes.common import corpus, masked_tokens, model_card, runs

BASELINE = "most_frequent"
NEXT = 'predict {out} "{prompt}"'


@dataclasses.dataclass
class Options(corpus.StreamOptions):
    """Train an encoder that predicts masked words."""

    held_out: float = 0.1
    """Fraction of the documents to hold out."""
    preset: str = "encoder-2m"
    """Model preset of the encoder."""
    sequence_length: int = 128
    """Tokens per window."""
    mask_rate: float = 0.15
    """Fraction of the words to mask."""
    whole_words: bool = True
    """Mask all tokens of a word together, instead of single tokens."""
    next_sentence: bool = False
    """Train a second head that predicts whether the second of two passages follows the first, as in
    BERT; it is saved in the folder `next_sentence`."""
    learning_rate: float = 2e-3
    """Peak learning rate, after linear warmup."""
    prompt: str = "This [MASK] is very good."
    """Text with [MASK] for the logged samples."""

    def __post_init__(self):
        super().__post_init__()
        self.check(
            ("sequence_length", self.sequence_length > 2, "at least 3"),
            (
                "sequence_length",
                self.sequence_length > 4 or not self.next_sentence,
                "at least 5 with --next-sentence",
            ),
            ("stream", not (self.stream and self.next_sentence), "off with --next-sentence"),
            ("mask_rate", 0 < self.mask_rate < 1, "in (0, 1)"),
            ("prompt", "[MASK]" in self.prompt, "a text with [MASK]"),
            ("export", "litert_lm" not in self.exports, "saved_model or litert"),
        )
        if self.smoke:
            self.preset, self.vocabulary_size, self.sequence_length = "encoder-tiny", 512, 64
            self.max_megabytes, self.batch_size = min(self.max_megabytes, 0.3), 16
            self.held_out, self.epochs = max(self.held_out, 0.1), 6
            self.evaluations, self.learning_rate = 1, 5e-3


def run(options):
    """Train, evaluate and save a model.

    Args:
        options: `Options`.

    Returns:
        The dict saved as `metrics.json`.

    Raises:
        InputError: if an option or the data is invalid; `out` is not created then.
    """
    import numpy as np

    from keras_llm import data, models, tasks, tokenizers, training

    runs.prepare(options)
    train, held_out, report = corpus.prepared(options)
    tokenizer = tokenizers.WordPiece.train(corpus.sample(options, train), options.vocabulary_size)
    config = models.preset(
        options.preset,
        vocabulary_size=tokenizer.vocabulary_size,
        dropout=0.0,  # no text is repeated often enough to overfit
        **({"num_segments": 2} if options.next_sentence else {}),
    )
    corpus.check_length(options, config)
    encoder = models.encoder(config)
    model = models.masked_lm(encoder)
    metadata = {"recipe": "masked_lm", "options": dataclasses.asdict(options)}
    task, judge = tasks.MaskedLanguageModel(model, tokenizer, metadata), None
    train_ids = corpus.token_ids(options, train, tokenizer)
    train_data = masked_tokens.batches(task, train, train_ids, options, shuffle=True)
    held_out_ids = data.encode_documents(held_out, tokenizer)
    validation_data = masked_tokens.batches(task, held_out, held_out_ids, options)
    runs.say(
        f"{len(train)} documents, {len(train_ids)} tokens for training; {len(held_out)} documents "
        f"held out; {model.count_params():,} parameters"
    )
    counted = "tokens", options.batch_size * options.sequence_length
    if options.next_sentence:
        judge = tasks.NextSentence(models.next_sentence(encoder), tokenizer)
        trainer = training.SentencePairTrainer(model, judge.model, tokenizer.pad_id)
        runs.compile_trainer(options, trainer, len(train_data))
        counted = "pairs", options.batch_size
    else:
        trainer = runs.token_trainer(options, model, len(train_data), tokenizer.pad_id)
    with runs.model_folder(options) as folder:
        trained = runs.fit(
            folder,
            options,
            trainer,
            train_data,
            validation_data.take(32).cache(),
            *counted,
            sample=lambda: f"> {task(options.prompt)}",
        )
        targets = np.concatenate(
            [y.numpy().reshape(-1) for _, y in masked_tokens.alone(validation_data)]
        )
        special = [tokenizer.bos_id, tokenizer.eos_id]
        counted_ids = corpus.counted(options, train_ids)
        metrics = {
            "held_out": masked_tokens.measured(task, judge, validation_data),
            BASELINE: training.evaluate_most_frequent(
                counted_ids[~np.isin(counted_ids, special)],
                targets[targets != tokenizer.pad_id],
                tokenizer.vocabulary_size,
            ),
            "training": {"documents": len(train), "tokens": len(train_ids), **report, **trained},
        }
        if judge:
            metrics[BASELINE]["next_sentence_accuracy"] = 0.5
            (folder / "next_sentence").mkdir(exist_ok=True)
            judge.write(folder / "next_sentence")
        runs.write(folder, task, metrics, _model_card(options, metrics))
    corpus.remove_token_files(options)
    model_card.ship(options, task, metrics)
    return metrics


def evaluate(folder, data=None):
    """Evaluate a trained model on its held-out documents or on other text.

    Args:
        folder: str or path, the `out` of a run.
        data: path of text files, or None for the documents held out in training.

    Returns:
        A dict, see `masked_tokens.measured`.
    """
    import keras_llm
    from keras_llm.data import encode_documents, read_texts

    task = keras_llm.load(folder)
    options = runs.model_options(Options, task)
    documents = read_texts(data, options.text_field) if data else corpus.documents(options)[1]
    judge = keras_llm.load(f"{folder}/next_sentence") if options.next_sentence else None
    token_ids = encode_documents(documents, task.tokenizer)
    batches = masked_tokens.batches(task, documents, token_ids, options)
    return masked_tokens.measured(task, judge, batches)


def _model_card(options, metrics):
    training = metrics["training"]
    kind = "whole words" if options.whole_words else "tokens"
    return model_card.card(
        options,
        metrics,
        "An encoder that predicts masked words.",
        {BASELINE: "most frequent token"},
        f"{metrics['held_out']['tokens']:,} masked tokens",
        [
            f"Text: {training['tokens']:,} tokens in {training['documents']:,} documents, in "
            f"windows of {options.sequence_length}; {options.mask_rate:.0%} of the {kind} masked.",
            *(
                [
                    "The folder `next_sentence` contains a second head on the same encoder, which "
                    "predicts whether a passage follows another, as in half of the held-out pairs."
                ]
                if options.next_sentence
                else []
            ),
            *corpus.notes(training),
            "Limits: the model is reliable only on texts like its training data.",
        ],
        NEXT,
    )


if __name__ == "__main__":
    from keras_llm import cli

    sys.exit(cli.run_script(Options, run))
