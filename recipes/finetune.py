"""Fine-tune a model on your own conversations, instructions or texts, and export it.

    keras-llm train finetune --start hf:OWNER/NAME --data talks.jsonl --out runs/mine
    keras-llm train finetune --start runs/smollm2 --data notes.txt --out runs/notes \\
        --export saved_model,litert_lm

The rows of `--data` are conversations (`messages`, or ShareGPT's `conversations`), instructions
(`instruction`, `output`) or texts (`text`, or a .txt file). The loss covers the answers, or all of
a text. LoRA adapters of all dense layers are trained, saved as `adapter.safetensors`, and merged
into the model. Held-out rows are answered before and after; with `--pattern`, the share of answers
in a format is measured.
"""

import dataclasses
import re
import sys

from keras_llm import cli
from keras_llm.recipes.common import dialogue, flags, model_card, runs

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
    answer_tokens: flags.Positive = 64
    """Most tokens of these answers."""

    suffixes = (".jsonl", ".json", ".txt")
    needs_start = True

    def __post_init__(self):
        super().__post_init__()
        self.check(("data", self.data is not None, "a file of rows"))
        try:
            re.compile(self.pattern or "")
        except re.error as error:
            self.check(("pattern", False, f"a regular expression ({error})"))
        self.shrink(epochs=1, max_conversations=200, answers=4, answer_tokens=8, evaluations=1)

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
    if options.kind == "conversations":
        task.metadata.setdefault("chat_template", dialogue.PLAIN_TEMPLATE)
        dialogue.choose_length(options, task, train)
    elif options.max_length is None:
        options.max_length = min(512, task.model.config.max_length)
    runs.say(f"{options.kind}: {len(train)} to train on, {len(held_out)} held out")
    before, old_answers = measured(task, held_out, options)
    length = {"sequence_length": options.max_length}
    train_data = task.dataset(train, options.batch_size, options.epochs, options.seed, **length)
    some = task.dataset(held_out[: 32 * options.batch_size], options.batch_size, **length).cache()
    with runs.start(options) as run:
        fitted = run.fit(task, train_data, some)
        if options.lora_rank:
            training.save_lora(task.model, run.folder / "adapter.safetensors")
        tuned = dialogue.with_weights(options, task, options.metadata("finetune"))
        after, new_answers = measured(tuned, held_out, options)
        samples = [
            {
                "asked": dialogue.question(row)[0],
                "before": old,
                "after": new,
                "reference": dialogue.question(row)[1],
            }
            for row, old, new in zip(held_out[:3], old_answers, new_answers, strict=False)
        ]
        for sample in samples:
            runs.say("\n".join(f"{name:>9}: {text}" for name, text in sample.items()))
        metrics = {BASELINE: before, "held_out": after, "samples": samples}
        metrics["training"] = {options.kind: len(train), "dropped": dropped, **fitted}
        run.save(tuned, metrics, _model_card(options, metrics, len(held_out)))
    return metrics


def rows(options):
    """Return training and held-out rows, and a dict of dropped ones by reason."""
    from keras_llm import data

    if options.kind == "texts":
        return dialogue.split(options, data.read_texts(options.data), str)
    return dialogue.split(options, data.read_conversations(options.data), dialogue.first_message)


def measured(task, held_out, options):
    """Return the loss on held-out rows with the shares of their greedy answers; and the answers."""
    metrics = task.evaluate(held_out, sequence_length=options.max_length)
    settings = {"max_new_tokens": options.answer_tokens, "temperature": 0.0}
    some, answers = held_out[: options.answers], []
    for row in some:
        is_text = isinstance(row, str)
        prompt = dialogue.question(row)[0] if is_text else row[: dialogue.last_answer(row)]
        answers.append((task if is_text else task.chat)(prompt, **settings))
    if options.kind == "conversations":
        equal = [
            a.strip() == dialogue.question(row)[1].strip()
            for a, row in zip(answers, some, strict=True)
        ]
        metrics["equal_answers"] = sum(equal) / len(equal)
    if options.pattern is not None:
        matches = [re.fullmatch(options.pattern, text.strip(), re.S) for text in answers]
        metrics["answers_in_format"] = sum(map(bool, matches)) / len(matches)
    return metrics, answers


def evaluate(folder, data=None):
    """Evaluate a fine-tuned model on its held-out rows or on those of a file."""
    task, options = runs.load(folder, Options)
    train, held_out, _ = rows(options.reading(data) if data else options)
    return measured(task, held_out + train if data else held_out, options)[0]


def texts(task):
    """Return the training and the held-out texts of a fine-tuned model, two lists of str."""
    sides = rows(runs.model_options(Options, task))[:2]
    return [
        [row if isinstance(row, str) else dialogue.question(row)[1] for row in side]
        for side in sides
    ]


def _model_card(options, metrics, held_out):
    lora = f" with LoRA of rank {options.lora_rank} on all dense layers, merged"
    about = f"`{options.start}`, fine-tuned{lora * bool(options.lora_rank)}."
    rows = f"{held_out:,} rows, of which {options.answers} are answered greedily"
    notes = [f"Held-out sample: `{sample}`" for sample in metrics["samples"]]
    return model_card.card(
        options, metrics, about, {BASELINE: "before"}, rows, notes, NEXT[options.kind]
    )


if __name__ == "__main__":
    sys.exit(cli.run_script(Options, run))
