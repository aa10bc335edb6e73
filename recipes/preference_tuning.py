"""Tune a model on preferences with DPO or ORPO, on pairs of answers or its own continuations.

    keras-llm train preference_tuning --out runs/glad --start runs/reviews
    keras-llm train preference_tuning --out runs/liked --start runs/chat --corpus preferences-en
    keras-llm train preference_tuning --out runs/mine --start runs/chat --data pairs.jsonl

With a corpus of labeled reviews, the pairs are sampled from the model: the most and the least
positive of several continuations of the beginning of a review, as in the first experiment of the
DPO paper. The tuned model and the initial model are evaluated on held-out pairs, and by a judge
fitted on other data.
"""

import dataclasses
import sys
from typing import Literal

from keras_llm.recipes.common import (
    dialogue,
    model_card,
    preference_metrics,
    preference_pairs,
    runs,
)

BASELINE = "before"
NEXT = "generate {out} PROMPT"


@dataclasses.dataclass
class Options(dialogue.Options):
    """Tune a model on preferences."""

    corpus: str = "movie-sentiment"
    """Name of a corpus of the kind "preferences", or of the kind "labelled" with the labels
    negative and positive, to sample pairs from the model; `keras-llm recipes` lists them."""
    data: str | None = None
    """Your own file instead of a corpus: preferences as .jsonl, .json, hf:NAME:SPLIT or
    tfds:NAME:SPLIT, or reviews as .csv or .tsv with the columns text and label, which is negative
    or positive."""
    loss: Literal["dpo", "orpo"] = "dpo"
    """Loss function."""
    beta: float = 0.1
    """DPO's beta; larger values keep the model closer to the initial model."""
    orpo_weight: float = 0.1
    """Weight of ORPO's odds ratio term."""
    held_out: float = 0.2
    """Fraction of the rows to hold out."""
    batch_size: int = 16
    """Pairs per batch."""
    evaluations: int = 2
    """Held-out evaluations and checkpoints per epoch."""
    learning_rate: float = 3e-4
    """Peak learning rate, after linear warmup."""
    weight_decay: float = 0.0
    """Decoupled weight decay of matrices."""
    pairs: int = 1000
    """Number of beginnings to sample training pairs for, with a labeled corpus."""
    held_out_pairs: int = 200
    """Number of beginnings to sample held-out pairs for, with a labeled corpus."""
    prompts: int = 200
    """Maximum number of held-out prompts to answer before and after training."""
    prompt_words: int = 6
    """Words of the beginning of a review."""
    candidates: int = 4
    """Continuations to sample for each beginning."""
    least_difference: float = 0.1
    """Minimum difference of the classifier's probabilities for a pair."""
    new_tokens: int = 48
    """Maximum tokens of an answer."""

    def __post_init__(self):
        super().__post_init__()
        self.check(
            ("start", self.start is not None, "the folder of a model"),
            ("beta", self.beta > 0, "> 0"),
            ("orpo_weight", self.orpo_weight > 0, "> 0"),
            ("candidates", self.candidates > 1, "at least 2"),
            ("least_difference", 0 <= self.least_difference < 1, "in [0, 1)"),
            *(
                (name, getattr(self, name) > 0, "a positive int")
                for name in ("pairs", "held_out_pairs", "prompts", "prompt_words", "new_tokens")
            ),
        )
        if self.smoke:
            self.pairs, self.held_out_pairs, self.prompts = 48, 16, 16
            self.batch_size, self.new_tokens, self.candidates = 8, 12, 3


def run(options):
    """Tune, evaluate and save a model.

    Args:
        options: `Options`.

    Returns:
        The dict saved as `metrics.json`.

    Raises:
        InputError: if an option or the data is invalid; `out` is not created then.
    """
    from keras_llm import data, training

    runs.prepare(options, "sklearn", pictures=False)
    task = dialogue.started(options)
    dialogue.check_length(options, task.model)
    dataset = preference_pairs.source(options)(options, task)
    runs.say(f"{len(dataset.train)} pairs for training, {len(dataset.held_out)} held out")
    reference = [
        preference_metrics.log_p(task.model, pairs) for pairs in (dataset.train, dataset.held_out)
    ]
    texts, _ = preference_pairs.answers(options, task, dataset.prompts, dataset.parse_special)
    objective = training.DPO(options.beta)
    if options.loss == "orpo":
        objective = training.ORPO(options.orpo_weight)
    pad_id = task.tokenizer.pad_id
    train_data = data.preference_dataset(
        dataset.train, options.batch_size, pad_id, reference[0], options.epochs, options.seed
    )
    validation = data.preference_dataset(dataset.held_out, options.batch_size, pad_id, reference[1])
    trainer = training.PreferenceTrainer(task.model, objective)
    runs.compile_trainer(options, trainer, len(train_data))
    with runs.model_folder(options) as folder:
        trained = runs.fit(folder, options, trainer, train_data, validation.cache(), "pairs")
        row = dataclasses.asdict(options)
        tuned = dialogue.with_weights(
            options, task, {**task.metadata, "recipe": "preference_tuning", "options": row}
        )
        metrics = {
            "held_out": preference_metrics.measured(options, tuned, dataset, reference[1], texts),
            BASELINE: preference_metrics.before(dataset, reference[1], texts),
            "training": {"pairs": len(dataset.train), **dataset.about, **trained},
            "judge_accuracy": dataset.judge_accuracy,
        }
        runs.write(folder, tuned, metrics, _model_card(options, metrics, dataset))
    model_card.ship(options, tuned, metrics)
    return metrics


def evaluate(folder, data=None):
    """Evaluate a tuned model on its held-out pairs and prompts, or on the pairs of a file.

    Args:
        folder: str or path, the `out` of a run. The model of its `--start` must still exist.
        data: path of a file of preferences, or None.

    Returns:
        A dict as returned by `preference_metrics.measured`; for a file as returned by
        `preference_metrics.rewards`.
    """
    import keras_llm
    from keras_llm.data import read_preferences

    tuned = keras_llm.load(folder)
    options = runs.model_options(Options, tuned)
    before = keras_llm.load(options.start)
    if data:
        options = dataclasses.replace(options, data=str(data))
        pairs, _ = preference_pairs.encode(options, tuned, read_preferences(data))
        return preference_metrics.rewards(
            options, tuned.model, pairs, preference_metrics.log_p(before.model, pairs)
        )
    dataset = preference_pairs.source(options)(options, before)
    texts, _ = preference_pairs.answers(options, before, dataset.prompts, dataset.parse_special)
    return preference_metrics.measured(
        options, tuned, dataset, preference_metrics.log_p(before.model, dataset.held_out), texts
    )


def _model_card(options, metrics, dataset):
    return model_card.card(
        options,
        metrics,
        f"`{options.start}`, tuned on preferences with {options.loss.upper()}.",
        {BASELINE: "before"},
        f"{len(dataset.held_out):,} pairs, and answers to {len(dataset.prompts):,} prompts sampled "
        "at temperature 1",
        [
            "The reward is `beta (log p - log p before)` with beta "
            f"{options.beta}; `kl` is in nats per answer of at most {options.new_tokens} tokens.",
            "Win rate and score are computed by a judge, logistic regression on the TF-IDF of "
            f"{metrics['training']['judge_texts']:,} texts that were not trained on. Its accuracy "
            f"on other texts is {dataset.judge_accuracy:.1%}: a weak proxy for human preferences.",
            "Limits: only agreement with preferences like those of the pairs was measured.",
        ],
        NEXT,
    )


if __name__ == "__main__":
    from keras_llm import cli

    sys.exit(cli.run_script(Options, run))
