"""Tune a model by preferences: DPO or ORPO, on pairs of answers or on its own continuations.

    keras-llm train preference_tuning --out runs/glad --start runs/reviews
    keras-llm train preference_tuning --out runs/liked --start runs/chat --corpus preferences-en
    keras-llm train preference_tuning --out runs/mine --start runs/chat --data pairs.jsonl

With a corpus of labelled reviews, the pairs are drawn from the model: of some continuations of a
review's beginning the most and the least positive, as in the first experiment of the paper on
DPO. The tuned model is measured on held-out pairs, and by a judge that learned from other data,
beside the model before.
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
    """Tune a model by preferences."""

    corpus: str = "movie-sentiment"
    """A corpus of the kind "preferences", or one of the kind "labelled" whose labels are negative
    and positive, to draw pairs from the model; `keras-llm recipes` lists them."""
    data: str | None = None
    """Your own file instead of a corpus: .jsonl or .json of preferences, or hf:NAME:SPLIT or
    tfds:NAME:SPLIT of them, .csv or .tsv of reviews
    with the columns text and label, which is negative or positive."""
    loss: Literal["dpo", "orpo"] = "dpo"
    """What is minimised."""
    beta: float = 0.1
    """Of DPO: the larger, the nearer to the model before."""
    orpo_weight: float = 0.1
    """Of ORPO: the weight of the odds ratio."""
    held_out: float = 0.2
    """Share of the rows that is held out."""
    batch_size: int = 16
    """Pairs in a batch."""
    evaluations: int = 2
    """Held-out evaluations and checkpoints in each pass."""
    learning_rate: float = 3e-4
    """Peak learning rate; it warms up linearly."""
    weight_decay: float = 0.0
    """Decoupled weight decay, on matrices."""
    pairs: int = 1000
    """Beginnings that training pairs are drawn for, with a labelled corpus."""
    held_out_pairs: int = 200
    """Beginnings that held-out pairs are drawn for, with a labelled corpus."""
    prompts: int = 200
    """At most so many held-out prompts are answered before and after."""
    prompt_words: int = 6
    """Words in the beginning of a review."""
    candidates: int = 4
    """Continuations that are drawn of each beginning."""
    least_difference: float = 0.1
    """A pair must differ by so much of the classifier's probability."""
    new_tokens: int = 48
    """Tokens of an answer at most."""

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
    """Tune, measure and save.

    Args:
        options: `Options`.

    Returns:
        The dict that is saved as `metrics.json`.

    Raises:
        InputError: if an option or the data cannot be used; nothing is at `out` then.
    """
    from keras_llm import data, training

    runs.prepare(options, "sklearn", pictures=False)
    task = dialogue.started(options)
    dialogue.check_length(options, task.model)
    found = preference_pairs.source(options)(options, task)
    runs.say(f"{len(found.train)} pairs for training, {len(found.held_out)} held out")
    reference = [
        preference_metrics.log_p(task.model, pairs) for pairs in (found.train, found.held_out)
    ]
    texts, _ = preference_pairs.answers(options, task, found.prompts, found.parse_special)
    objective = training.DPO(options.beta)
    if options.loss == "orpo":
        objective = training.ORPO(options.orpo_weight)
    pad_id = task.tokenizer.pad_id
    train_data = data.preference_dataset(
        found.train, options.batch_size, pad_id, reference[0], options.epochs, options.seed
    )
    validation = data.preference_dataset(found.held_out, options.batch_size, pad_id, reference[1])
    trainer = training.PreferenceTrainer(task.model, objective)
    runs.compile_trainer(options, trainer, len(train_data))
    with runs.model_folder(options) as folder:
        trained = runs.fit(folder, options, trainer, train_data, validation.cache(), "pairs")
        row = dataclasses.asdict(options)
        tuned = dialogue.with_weights(
            options, task, {**task.metadata, "recipe": "preference_tuning", "options": row}
        )
        metrics = {
            "held_out": preference_metrics.measured(options, tuned, found, reference[1], texts),
            BASELINE: preference_metrics.before(found, reference[1], texts),
            "training": {"pairs": len(found.train), **found.about, **trained},
            "judge_accuracy": found.judge_accuracy,
        }
        runs.write(folder, tuned, metrics, _model_card(options, metrics, found))
    model_card.ship(options, tuned, metrics)
    return metrics


def evaluate(folder, data=None):
    """Measure a tuned model on its held-out pairs and prompts, or on the pairs of a file.

    Args:
        folder: str or path, the `out` of a run; the model at its `--start` must still be there.
        data: path of a file of preferences, or None.

    Returns:
        A dict like that of `wins.measured`, of a file only what pairs tell.
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
    found = preference_pairs.source(options)(options, before)
    texts, _ = preference_pairs.answers(options, before, found.prompts, found.parse_special)
    return preference_metrics.measured(
        options, tuned, found, preference_metrics.log_p(before.model, found.held_out), texts
    )


def _model_card(options, metrics, found):
    return model_card.card(
        options,
        metrics,
        f"`{options.start}`, tuned by preferences with {options.loss.upper()}.",
        {BASELINE: "before"},
        f"{len(found.held_out):,} held-out pairs and the answers to {len(found.prompts):,} "
        "held-out prompts, drawn at temperature 1",
        [
            "The reward is `beta (log p - log p before)`, beta "
            f"{options.beta}; `kl` is in nats of an answer of at most {options.new_tokens} tokens.",
            "Win rate and score are a judge's, logistic regression on the TF-IDF of "
            f"{metrics['training']['judge_texts']:,} texts that were not trained on, which is "
            f"right on {found.judge_accuracy:.1%} of others: a weak proxy for what people prefer.",
            "Limits: it prefers what its pairs prefer, and nothing else was looked at.",
        ],
        NEXT,
    )


if __name__ == "__main__":
    from keras_llm import cli

    sys.exit(cli.run_script(Options, run))
