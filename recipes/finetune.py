"""Fine-tune a model on your own conversations, instructions or texts, and export it.

    keras-llm train finetune --start hf:OWNER/NAME --data talks.jsonl --out runs/mine
    keras-llm train finetune --start runs/smollm2 --data notes.txt --out runs/notes \\
        --export saved_model,litert_lm

The rows of `--data` are conversations (`messages`, or ShareGPT's `conversations`), instructions
(`instruction`, `output`) or texts (`text`, or a .txt file). The loss covers the answers, or all of
a text. LoRA adapters of all dense layers of the blocks are trained, saved as `adapter.safetensors`,
and merged. Held-out rows are answered before and after; `--pattern` measures their format.
"""

import dataclasses
import re
import sys

from keras_llm import cli
from keras_llm.recipes.common import dialogue, flags, held_out_answers, model_card, runs

BASELINE = "before"
NEXT = {"conversations": "chat {out}", "texts": 'generate {out} "Once upon a time" --stream'}
_LAYERS = r"(attention(_\d+)?/(query|key|value|(attention_)?output)|feed_forward/(gate|up|down))$"


@dataclasses.dataclass
@flags.defaults(batch_size=8, weight_decay=0.0, epochs=2, lora_rank=16)
class Options(dialogue.Options):
    """Fine-tune a model on your own conversations, instructions or texts."""

    pattern: str | None = None
    """Regular expression that answers should match as a whole; their share is measured."""
    answers: flags.Positive = 40
    """Held-out rows that are answered before and after; the first three are printed."""
    answer_tokens: flags.Positive | None = None
    """Most tokens of these answers; None for those of the longest reference, at most 256 or half of
    what the model can read."""

    suffixes = (".jsonl", ".json", ".txt")
    needs_start = True

    def __post_init__(self):
        super().__post_init__()
        self.check(
            ("data", self.data is not None, "a file of rows"),
            ("corpus", not self.corpus, "empty: --data has the rows"),
            ("preset", not self.preset, "empty: the model is that of --start"),
        )
        try:
            re.compile(self.pattern or "")
        except re.error as error:
            self.check(("pattern", False, f"a regular expression ({error})"))
        self.shrink(epochs=1, max_conversations=200, answers=4, evaluations=1)

    @property
    def kind(self):
        """The kind of the rows, "conversations" or "texts", by the file's name or first row."""
        return dialogue.kind_of(self.data)


def run(options):
    """Fine-tune, evaluate, save and export a model; return its metrics."""
    from keras_llm import training

    runs.prepare(options, pictures=False)
    train, held_out, dropped = rows(options)
    task = dialogue.started(options, _LAYERS)
    tools = {}
    if options.kind == "conversations":
        task.metadata.setdefault("chat_template", dialogue.PLAIN_TEMPLATE)
        dialogue.choose_length(options, task, train)
        tools["sample"] = lambda: dialogue.sample(task, options)
    else:
        dialogue.choose_window(options, task, train, held_out)
    runs.say(f"{options.kind}: {len(train)} to train on, {len(held_out)} held out")
    asked = held_out_answers.choose(task, held_out, options)
    old_answers, shares = held_out_answers.answer(task, asked, options)
    length = {"sequence_length": options.max_length}
    metrics = {BASELINE: task.evaluate(held_out, **length) | shares}
    train_data = task.dataset(train, options.batch_size, options.epochs, options.seed, **length)
    validation_rows = held_out[: 32 * options.batch_size]
    validation_data = task.dataset(validation_rows, options.batch_size, **length).cache()
    with runs.start(options) as run:
        fitted = run.fit(task, train_data, validation_data, **tools)
        if options.lora_rank:
            training.save_lora(task.model, run.folder / "adapter.safetensors")
        tuned = dialogue.with_weights(options, task, options.metadata("finetune"))
        new_answers, shares = held_out_answers.answer(tuned, asked, options)
        metrics["held_out"] = tuned.evaluate(held_out, **length) | shares
        triples = list(zip(asked, old_answers, new_answers, strict=True))[:3]
        metrics["samples"] = [
            {
                "asked": held_out_answers.shown(text),
                "before": old,
                "after": new,
                "reference": wanted,
            }
            for (text, wanted), old, new in triples
        ]
        for sample in metrics["samples"]:
            runs.say("\n".join(f"{name:>9}: {text}" for name, text in sample.items()))
        metrics["training"] = {options.kind: len(train), "dropped": dropped, **fitted}
        run.save(tuned, metrics, _model_card(options, metrics, len(held_out), len(asked)))
    return metrics


def rows(options):
    """Return training and held-out rows, and a dict of dropped ones by reason."""
    from keras_llm import data

    if options.kind == "texts":
        return dialogue.split(options, data.read_texts(options.data), str)
    return dialogue.split(options, data.read_conversations(options.data), dialogue.first_message)


def evaluate(folder, data=None):
    """Evaluate a fine-tuned model on its held-out rows or on those of a file."""
    task, options = runs.load(folder, Options)
    train, held_out, _ = rows(options.reading(data) if data else options)
    measured = held_out + train if data else held_out
    metrics = task.evaluate(measured, sequence_length=options.max_length)
    asked = held_out_answers.choose(task, measured, options)
    return metrics | held_out_answers.answer(task, asked, options)[1]


def texts(task):
    """Return the training and the held-out texts of a fine-tuned model, two lists of str."""
    sides = rows(runs.model_options(Options, task))[:2]
    return [
        [row if isinstance(row, str) else held_out_answers.question(row)[1] for row in side]
        for side in sides
    ]


def _model_card(options, metrics, held_out, answered):
    about = f"`{options.start}`, fine-tuned."
    if options.lora_rank:
        lora = f"with LoRA of rank {options.lora_rank} on all dense layers of the blocks, merged"
        about = f"`{options.start}`, fine-tuned {lora}."
    measured_on = f"{held_out:,} rows, of which {answered} are answered greedily"
    notes = [f"Held-out sample: `{sample}`" for sample in metrics["samples"]]
    return model_card.card(
        options, metrics, about, {BASELINE: "before"}, measured_on, notes, NEXT[options.kind]
    )


if __name__ == "__main__":
    sys.exit(cli.run_script(Options, run))
