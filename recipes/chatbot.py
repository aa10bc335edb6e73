"""Train a chat model: from scratch on dialogue, or from a checkpoint with LoRA.

    keras-llm train chatbot --out runs/dialogue --corpus movie-dialogue
    keras-llm train chatbot --out runs/mine --data talks.jsonl
    keras-llm train chatbot --out runs/tuned --corpus instructions-en --start runs/smollm2
    keras-llm train chatbot --out runs/ranked --rank 8

Conversations are split into training and held-out data and rendered with the model's chat template;
only the assistant's tokens count in the loss. The folder `--out` contains the model with its
template, the loss on held-out answers with baselines, a model card and TensorBoard logs with
samples. `--rank` adds two classifiers that choose among answers and filter messages and answers.
"""

import dataclasses
import sys

from keras_llm import cli
from keras_llm.recipes.common import dialogue, flags, judges, model_card, runs

BASELINE = "most_frequent"
NEXT = "chat {out}"
CORPUS_KINDS = ("conversations",)


@dataclasses.dataclass
@flags.defaults(held_out=0.05, weight_decay=0.1)
class Options(judges.Options):
    """Train a chat model, from scratch or from a checkpoint with LoRA."""

    corpus: str = "movie-dialogue"
    """Name of a corpus of the kind "conversations"; `keras-llm recipes` lists them."""
    data: str | None = None
    """Your own .jsonl or .json file of conversations instead of a corpus."""
    preset: str = "llama-3m"
    """Model preset, without --start."""
    vocabulary_size: flags.Positive = 4096
    """Vocabulary size, without --start."""
    dropout: flags.Rate = 0.0
    """Dropout rate, without --start."""

    def __post_init__(self):
        super().__post_init__()
        self.shrink(preset="llama-tiny", vocabulary_size=512, max_length=64, evaluations=2)
        self.shrink(max_conversations=400, batch_size=8, held_out=0.1, judge="scratch")


def run(options):
    """Train, evaluate and save a model; return its metrics."""
    from keras_llm import data, training

    runs.prepare(options, *["sklearn"] * bool(options.rank), pictures=False)
    train_rows, test_rows, dropped = conversations(options)
    ranking_data = judges.training_data(options, train_rows, test_rows) if options.rank else None
    task = dialogue.started(options) if options.start else dialogue.untrained(options, train_rows)
    dialogue.choose_length(options, task, train_rows)
    train, cut = dialogue.examples(task, train_rows, options)
    held_out, held_out_cut = dialogue.examples(task, test_rows, options)
    size, pad_id = sum(len(example.token_ids) for example in train), task.tokenizer.pad_id
    train_data = data.chat_dataset(train, options.batch_size, pad_id, options.epochs, options.seed)
    validation_data = data.chat_dataset(
        held_out[: 32 * options.batch_size], options.batch_size, pad_id
    )
    runs.say(
        f"{len(train)} conversations, {size} tokens for training; {len(held_out)} held out; "
        f"dropped: {runs.reasons(dropped | cut)}"
    )
    tokens, test_tokens = map(dialogue.learned_tokens, (train, held_out))
    vocabulary_size = task.model.config.vocabulary_size
    metrics = {BASELINE: training.evaluate_most_frequent(tokens, test_tokens, vocabulary_size)}
    if options.start:
        metrics["before"] = training.evaluate_examples(task.model, held_out)
    with runs.start(options) as run:
        fitted = run.fit(
            task,
            train_data,
            validation_data.cache(),
            "tokens",
            size * options.epochs // len(train_data),
            sample=lambda: dialogue.sample(task, options),
        )
        tuned = dialogue.with_weights(options, task, options.metadata("chatbot"))
        metrics |= {
            "held_out": training.evaluate_examples(tuned.model, held_out),
            "training": {
                "conversations": len(train),
                "tokens": size,
                "learned_tokens": len(tokens),
                "dropped": dropped | cut,
                "held_out_dropped": held_out_cut,
                **fitted,
            },
        }
        chat = tuned
        if options.rank:
            chat, ranking = judges.train_classifiers(
                run.folder, options, tuned, train_rows, test_rows, ranking_data
            )
            metrics |= ranking
        run.save(chat, metrics, _model_card(tuned, options, metrics, len(held_out)))
    return metrics


def conversations(options):
    """Return training and held-out conversations, and a dict of dropped ones by reason."""
    from keras_llm import data
    from keras_llm.recipes.corpora import registry

    if options.data is None:
        rows = registry.load(options.corpus, "conversations")
    else:
        rows = data.read_conversations(options.data)
    return dialogue.split(options, rows, dialogue.first_message)


def evaluate(folder, data=None):
    """Evaluate a trained model on its held-out conversations or on those of a file."""
    from keras_llm.data import read_conversations

    task, options = runs.load(folder, Options)
    rows = read_conversations(data) if data else conversations(options)[1]
    return task.evaluate(rows, sequence_length=options.max_length)


def _model_card(task, options, metrics, held_out):
    training, start = metrics["training"], ""
    if options.start:
        lora = f" with LoRA of rank {options.lora_rank}, merged into the weights"
        start = f" Its training continued from `{options.start}`{lora * bool(options.lora_rank)}."
    return model_card.card(
        options,
        metrics,
        "A causal language model for chat." + start,
        {BASELINE: "token frequencies"} | ({"before": "before training"} if options.start else {}),
        f"the {metrics['held_out']['tokens']:,} answer tokens of {held_out:,} conversations of at "
        f"most {options.max_length} tokens",
        [
            f"{model_card.shape(task.model.config, options.max_length)}; "
            f"{training['conversations']:,} training "
            f"conversations of {training['tokens']:,} tokens, of which "
            f"{training['learned_tokens']:,} answer tokens count in the loss.",
            *(judges.notes(metrics) if options.rank else []),
            "Limits: the model imitates its training data. It was not tuned to be truthful or "
            "safe, and its statements about itself and the world are unreliable.",
        ],
        NEXT,
    )


if __name__ == "__main__":
    sys.exit(cli.run_script(Options, run))
