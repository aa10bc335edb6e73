"""Tune a model on preferences with DPO or ORPO, on pairs of answers or its own continuations.

    keras-llm train preference_tuning --out runs/glad --start runs/reviews
    keras-llm train preference_tuning --out runs/liked --start runs/chat --corpus preferences-en
    keras-llm train preference_tuning --out runs/mine --start runs/chat --data pairs.jsonl

With labeled reviews, the pairs are sampled from the model: the most and the least positive of
several continuations of the beginning of a review, as in the first experiment of the DPO paper. The
tuned and the initial model are evaluated on held-out pairs, and by a judge fitted on other data.
"""

import dataclasses
import sys
from typing import Literal

from keras_llm import cli
from keras_llm.recipes.common import (
    dialogue,
    flags,
    model_card,
    preference_metrics,
    preference_pairs,
    runs,
)

BASELINE = "before"
NEXT = "generate {out} PROMPT"
CORPUS_KINDS = ("preferences", "labeled")


@dataclasses.dataclass
@flags.defaults(held_out=0.2, evaluations=2, learning_rate=3e-4, weight_decay=0.0)
class Options(dialogue.Options):
    """Tune a model on preferences with DPO or ORPO."""

    corpus: str = "movie-sentiment"
    """Name of a corpus of preferences, or of labeled texts to sample pairs for; see `recipes`."""
    data: str | None = None
    """Your own file instead of a corpus: preferences as .jsonl, .json, hf:NAME:SPLIT or
    tfds:NAME:SPLIT, or .csv or .tsv with the columns text and label (negative or positive)."""
    loss: Literal["dpo", "orpo"] = "dpo"
    """Loss function."""
    beta: flags.PositiveFloat = 0.1
    """DPO's beta; larger values keep the model closer to the initial model."""
    orpo_weight: flags.PositiveFloat = 0.1
    """Weight of ORPO's odds ratio term."""
    batch_size: flags.Positive = 16
    """Pairs per batch."""
    pairs: flags.Positive = 1000
    """Number of beginnings to sample training pairs for, with a labeled corpus."""
    held_out_pairs: flags.Positive = 200
    """Number of beginnings to sample held-out pairs for, with a labeled corpus."""
    prompts: flags.Positive = 200
    """Maximum number of held-out prompts to answer before and after training."""
    prompt_words: flags.Positive = 6
    """Words of the beginning of a review."""
    candidates: flags.at_least(2) = 4
    """Continuations to sample for each beginning."""
    least_difference: flags.Rate = 0.1
    """Minimum difference of the classifier's probabilities for a pair."""
    new_tokens: flags.Positive = 48
    """Maximum tokens of an answer."""

    suffixes = (*dialogue.Options.suffixes, ".csv", ".tsv")
    needs_start = True

    def __post_init__(self):
        super().__post_init__()
        sizes = {"held_out_pairs": 16, "prompts": 16, "batch_size": 8, "new_tokens": 12}
        self.shrink(pairs=48, candidates=3, **sizes)


def run(options):
    """Tune, evaluate and save a model; return its metrics."""
    from keras_llm import data, training

    runs.prepare(options, "sklearn", pictures=False)
    task = dialogue.started(options)
    dataset = preference_pairs.read(options, task)
    train, held_out = dataset.train, dataset.held_out
    runs.say(f"{len(train)} pairs for training, {len(held_out)} held out")
    reference, held_out_reference = (
        preference_metrics.log_p(task.model, pairs) for pairs in (train, held_out)
    )
    texts = preference_pairs.answers(options, task, dataset)[0]
    before = preference_metrics.before(dataset, held_out_reference, texts)
    size, pad_id = options.batch_size, task.tokenizer.pad_id
    train_data = data.preference_dataset(
        train, size, pad_id, reference, options.epochs, options.seed
    )
    validation_data = data.preference_dataset(held_out, size, pad_id, held_out_reference)
    dpo, orpo = training.DPO(options.beta), training.ORPO(options.orpo_weight)
    trainer = training.PreferenceTrainer(task.model, dpo if options.loss == "dpo" else orpo)
    with runs.start(options) as run:
        fitted = run.fit(trainer, train_data, validation_data.cache(), "pairs")
        tuned = dialogue.with_weights(options, task, options.metadata("preference_tuning"))
        metrics = {
            "held_out": preference_metrics.measured(
                options, tuned, dataset, held_out_reference, texts
            ),
            BASELINE: before,
            "training": {"pairs": len(train), **dataset.about, **fitted},
            "judge_accuracy": dataset.judge_accuracy,
        }
        run.save(tuned, metrics, _model_card(options, metrics, dataset))
    return metrics


def evaluate(folder, data=None):
    """Evaluate a tuned model on its held-out pairs and prompts, or on the pairs of a file.

    The model of its `--start` must still exist.
    """
    import keras_llm

    tuned, options = runs.load(folder, Options)
    before = keras_llm.load(options.start)
    if data:
        pairs = preference_pairs.read_file(options, tuned, data)
        reference = preference_metrics.log_p(before.model, pairs)
        return preference_metrics.rewards(options, tuned.model, pairs, reference)
    dataset = preference_pairs.read(options, before)
    texts = preference_pairs.answers(options, before, dataset)[0]
    reference = preference_metrics.log_p(before.model, dataset.held_out)
    return preference_metrics.measured(options, tuned, dataset, reference, texts)


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
    sys.exit(cli.run_script(Options, run))
