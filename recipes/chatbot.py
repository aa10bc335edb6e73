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

from keras_llm.recipes.common import dialogue, judges, model_card, runs

BASELINE = "most_frequent"
NEXT = "chat {out}"


@dataclasses.dataclass
class Options(judges.Options):
    """Train a chat model."""

    corpus: str = "movie-dialogue"
    """Name of a corpus of the kind "conversations"; `keras-llm recipes` lists them."""
    data: str | None = None
    """Your own .jsonl or .json file of conversations instead of a corpus."""
    held_out: float = 0.05
    """Fraction of the conversations to hold out."""
    preset: str = "llama-3m"
    """Model preset, without --start."""
    vocabulary_size: int = 4096
    """Vocabulary size, without --start."""
    batch_size: int = 32
    """Conversations per batch."""
    evaluations: int = 4
    """Held-out evaluations (on at most 32 batches), samples and checkpoints per epoch."""
    learning_rate: float = 3e-3
    """Peak learning rate, after linear warmup."""
    weight_decay: float = 0.1
    """Decoupled weight decay of matrices."""
    dropout: float = 0.0
    """Dropout rate, without --start."""

    def __post_init__(self):
        super().__post_init__()
        self.check(("dropout", 0 <= self.dropout < 1, "in [0, 1)"))
        if self.smoke:
            self.preset, self.vocabulary_size = "llama-tiny", 512
            self.max_length, self.evaluations = min(self.max_length, 64), 2
            self.max_conversations, self.batch_size = self.max_conversations or 400, 8
            self.held_out = max(self.held_out, 0.1)


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

    from keras_llm import data, training

    runs.prepare(options, pictures=False)
    talks, other_talks, dropped = conversations(options)
    safety = judges.safety_rows(options) if options.rank else None
    task = dialogue.started(options) if options.start else dialogue.untrained(options, talks)
    dialogue.check_length(options, task.model)
    train, cut = dialogue.examples(task, talks, options)
    held_out, _ = dialogue.examples(task, other_talks, options)
    dropped |= cut
    size = sum(len(example.token_ids) for example in train)
    train_data = data.chat_dataset(
        train, options.batch_size, task.tokenizer.pad_id, options.epochs, options.seed
    )
    steps = len(train_data)
    validation = held_out[: 32 * options.batch_size]
    validation_data = data.chat_dataset(validation, options.batch_size, task.tokenizer.pad_id)
    trainer = runs.token_trainer(options, task.model, steps, None)
    runs.say(
        f"{len(train)} conversations, {size} tokens for training; {len(held_out)} held out; "
        f"dropped: {runs.reasons(dropped)}"
    )
    spoken, truth = (
        np.concatenate([np.array(ids)[np.array(flags) == 1] for ids, flags in part])
        for part in (train, held_out)
    )
    metrics = {
        BASELINE: training.evaluate_most_frequent(spoken, truth, task.model.config.vocabulary_size)
    }
    if options.start:
        metrics["before"] = training.evaluate_examples(task.model, held_out)
    with runs.model_folder(options) as folder:
        trained = runs.fit(
            folder,
            options,
            trainer,
            train_data,
            validation_data.cache(),
            "tokens",
            size * options.epochs // steps,
            sample=lambda: dialogue.sample(task, options),
        )
        metadata = {"recipe": "chatbot", "options": dataclasses.asdict(options)}
        tuned = dialogue.with_weights(options, task, {**task.metadata, **metadata})
        metrics |= {
            "held_out": training.evaluate_examples(tuned.model, held_out),
            "training": {
                "conversations": len(train),
                "tokens": size,
                "learned_tokens": len(spoken),
                "dropped": dropped,
                **trained,
            },
        }
        chat = tuned
        if options.rank:
            chat, ranking = judges.at_the_side(folder, options, tuned, talks, other_talks, safety)
            metrics |= ranking
        runs.write(folder, chat, metrics, _model_card(tuned, options, metrics, len(held_out)))
    model_card.ship(options, tuned, metrics)
    return metrics


def conversations(options):
    """Return training and held-out conversations, and a dict of dropped ones by reason."""
    from keras_llm import data
    from keras_llm.recipes.corpora import registry

    if options.data is None:
        talks = registry.load(options.corpus, "conversations")
    else:
        talks = data.read_conversations(options.data)
    return dialogue.split(options, talks, dialogue.first_message)


def evaluate(folder, data=None):
    """Evaluate a trained model on its held-out conversations or on others.

    Args:
        folder: str or path, the `out` of a run.
        data: path of a file of conversations, or None for those held out in training.

    Returns:
        A dict, see `training.evaluate_examples`.
    """
    import keras_llm
    from keras_llm import training
    from keras_llm.data import read_conversations

    task = keras_llm.load(folder)
    options = runs.model_options(Options, task)
    talks = read_conversations(data) if data else conversations(options)[1]
    examples, _ = dialogue.examples(task, talks, options)
    return training.evaluate_examples(task.model, examples)


def _model_card(task, options, metrics, held_out):
    config, training = task.model.config, metrics["training"]
    baselines = {BASELINE: "token frequencies"}
    if options.start:
        baselines["before"] = "before training"
    shape = f"{config.num_layers} layers, width {config.hidden_dim}, vocabulary "
    start = f" Its training continued from `{options.start}`" if options.start else ""
    if options.lora_rank:
        start += f" with LoRA of rank {options.lora_rank}, merged into the weights"
    return model_card.card(
        options,
        metrics,
        "A causal language model for chat." + start + "." * bool(start),
        baselines,
        f"the {metrics['held_out']['tokens']:,} answer tokens of {held_out:,} conversations of at "
        f"most {options.max_length} tokens",
        [
            f"{shape}{config.vocabulary_size}, maximum length {config.max_length} tokens; "
            f"{training['conversations']:,} training conversations of {training['tokens']:,} "
            f"tokens, of which {training['learned_tokens']:,} answer tokens count in the loss.",
            *(judges.notes(metrics) if options.rank else []),
            "Limits: the model imitates its training data. It was not tuned to be truthful or "
            "safe, and its statements about itself and the world are unreliable.",
        ],
        NEXT,
    )


if __name__ == "__main__":
    from keras_llm import cli

    sys.exit(cli.run_script(Options, run))
