"""Share code between recipes that train on conversations."""

import dataclasses
import json
import math

from keras_llm.errors import InputError
from keras_llm.files import CONVERSATION_SUFFIXES, utf8_lines
from keras_llm.json_files import parse_json
from keras_llm.recipes.common import flags, runs

_MEASURED = 1000  # conversations whose length is measured
_FITTING, _SHORTEST, _LONGEST = 0.98, 128, 1024  # of the default of `max_length`
_CONVERSATION_FIELDS = {"messages", "conversations", "instruction"}
TURN_TOKENS = ("<|im_start|>", "<|im_end|>")
TEMPLATE = """{% for message in messages -%}
<|im_start|>{{ message.role + '\n' + message.content }}<|im_end|>{{ '\n' }}
{%- endfor %}
{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""

PLAIN_TEMPLATE = """{% for message in messages -%}
{{ message.role | capitalize }}: {{ message.content }}
{%- if message.role == 'assistant' %}{{ eos_token }}{% endif %}{{ '\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"""  # for models without one


@dataclasses.dataclass
class Options(flags.Options):
    """Options of recipes that train on conversations."""

    start: str | None = None
    """Model with a chat template to continue from: a folder, a checkpoint or hf:OWNER/NAME."""
    lora_rank: flags.Count = 0
    """LoRA rank, with --start; 0 trains all weights."""
    max_length: flags.at_least(2) | None = None
    """Maximum tokens of a conversation; later turns are dropped. By default 98 % of the
    conversations fit, with at least 128 tokens and at most 1024 or the model's."""
    max_conversations: flags.Count = 0
    """Maximum number of conversations; 0 uses all."""
    question: flags.Text = "How are you?"
    """Message that the logged samples answer."""
    learning_rate: flags.PositiveFloat | None = None
    """Peak learning rate, after linear warmup; None for 3e-3 from scratch, and with --start for
    5e-4 with LoRA and 5e-5 without."""

    suffixes = CONVERSATION_SUFFIXES
    needs_start = False
    least_vocabulary = 261  # bytes, special tokens and `TURN_TOKENS`

    def __post_init__(self):
        if self.learning_rate is None:
            tuning = 5e-4 if self.lora_rank else 5e-5
            self.learning_rate = 3e-3 if self.start is None else tuning
        super().__post_init__()
        has_start = self.start is not None or not self.needs_start
        self.check(("start", has_start, "a folder, a checkpoint or a name such as hf:OWNER/NAME"))
        can_adapt = not self.lora_rank or self.start is not None
        self.check(("lora_rank", can_adapt, "0 without --start"))


def split(options, items, first_text):
    """Split conversations or preferences; those with the same first text are on the same side.

    Args:
        options: `Options`.
        items: list of conversations or preferences as JSON values.
        first_text: function that returns the first text of an item.

    Returns:
        Training items, held-out items, and a dict of dropped items by reason.
    """
    from keras_llm import data

    rows = [(first_text(item), json.dumps(item)) for item in items]
    rows, dropped = data.clean_rows(rows)
    if options.max_conversations:
        rows = [row for part in data.split_rows(rows, 0.5, options.seed) for row in part]
        rows = rows[: options.max_conversations]
    train, held_out = data.split_rows(rows, options.held_out, options.seed)
    train, contaminated = data.without_contamination(train, held_out)
    parts = ([json.loads(item) for _, item in part] for part in (train, held_out))
    return *parts, dropped | contaminated


def first_message(messages):
    """Return the first message of the user."""
    return next(message["content"] for message in messages if message["role"] == "user")


def kind_of(path):
    """Return the kind of the rows of a file, by its name or first row: conversations or texts."""
    name = path.removesuffix(".gz")
    if not name.endswith(".jsonl"):
        return "texts" if name.endswith(".txt") else "conversations"
    first = next((line for line in utf8_lines(path) if line.strip()), "{}")
    row = parse_json(first, path)
    is_text = isinstance(row, dict) and "text" in row and not row.keys() & _CONVERSATION_FIELDS
    return "texts" if is_text else "conversations"


def started(options, layers=None):
    """Load the task of `--start` and add LoRA adapters if `lora_rank` is positive.

    Args:
        options: `Options`.
        layers: regular expression of the paths of adapted layers, or None for the default.

    Raises:
        InputError: if it is not a text generation model.
    """
    import keras_llm
    from keras_llm import training

    task = keras_llm.load(options.start)
    if not isinstance(task, keras_llm.TextGeneration):
        raise InputError(f"--start: {options.start} is a {type(task).__name__}.")
    if isinstance(task, keras_llm.RankedChat):
        task = task.generator
    if options.lora_rank:
        chosen = {} if layers is None else {"layers": layers}
        training.add_lora(task.model, rank=options.lora_rank, **chosen)
    return task


def untrained(options, train):
    """Return a task with random weights and a vocabulary trained on conversations."""
    from keras_llm import models, tasks, tokenizers

    texts = [message["content"] for messages in train for message in messages]
    tokenizer = tokenizers.BytePair.train(
        texts, options.vocabulary_size, special_tokens=TURN_TOKENS
    )
    sizes = {"vocabulary_size": tokenizer.vocabulary_size, "dropout": options.dropout}
    end = tokenizer.special_tokens[TURN_TOKENS[1]]
    return tasks.TextGeneration(
        models.causal_lm(models.preset(options.preset, **sizes)),
        tokenizer,
        {"chat_template": TEMPLATE, "end_token_ids": [end]},
    )


def examples(task, conversations, options):
    """Encode conversations as `data.ChatExample`s; also return a dict of dropped ones by reason."""
    from keras_llm import data

    return encoded(data.chat_examples, task, conversations, options, "conversations")


def learned_tokens(examples):
    """Return the tokens of `data.ChatExample`s that count in the loss, int array (N,)."""
    import numpy as np

    return np.concatenate([np.array(ids)[np.array(learned) == 1] for ids, learned in examples])


def encoded(encode, task, items, options, kind):
    """Encode conversations or preferences; also return a dict of dropped ones by reason.

    Args:
        encode: `data.chat_examples` or `data.preference_examples`.
        task: a `TextGeneration` with a chat template.
        items: list of conversations or preferences.
        options: `Options`.
        kind: str, the name of the items in the error message.

    Raises:
        InputError: if no item is short enough.
    """
    rows, dropped = encode(
        items, task.chat_template, task.tokenizer, options.max_length, task.end_token_ids
    )
    if not rows:
        raise InputError(
            f"{options.source}: none of {len(items)} {kind} fits into --max-length "
            f"{options.max_length}."
        )
    return rows, dropped


def check_length(options, model):
    """Raise InputError if `max_length` is given and exceeds the model's."""
    longest = model.config.max_length
    fits = options.max_length is None or options.max_length <= longest
    options.check(("max_length", fits, f"at most the model's {longest}"))


def choose_length(options, task, items):
    """Report the lengths of conversations or preferences, and set `max_length` if it is None.

    Args:
        options: `Options`.
        task: a `TextGeneration` with a chat template.
        items: list of conversations or preferences, in random order: the first 1,000 are measured.

    Raises:
        InputError: if `max_length` is given and exceeds the model's.
    """
    from keras_llm import data

    check_length(options, task.model)
    pairs = items and not isinstance(items[0][0], dict)
    encode = data.preference_examples if pairs else data.chat_examples
    rows, _ = encode(
        items[:_MEASURED], task.chat_template, task.tokenizer, 10**9, task.end_token_ids
    )
    lengths = [max(len(one.token_ids) for one in (row if pairs else [row])) for row in rows] or [0]
    if options.max_length is None:
        most = sorted(lengths)[math.ceil(_FITTING * len(lengths)) - 1]
        rounded = max(_SHORTEST, math.ceil(most / 32) * 32)
        options.max_length = min(rounded, _LONGEST, task.model.config.max_length)
    runs.say(f"{runs.percentiles(lengths)} tokens; --max-length {options.max_length}")
    runs.warn_of_long(options, lengths)


def choose_window(options, task, train, held_out):
    """Set `max_length`, the tokens of a window of texts, so that both sides have enough of them."""
    check_length(options, task.model)
    if options.max_length is None:
        needed = ((train, 2 * options.batch_size), (held_out, 2))
        tokens = [
            sum(len(task.tokenizer.encode(text)) for text in side) // count
            for side, count in needed
        ]
        options.max_length = max(2, min(512, task.model.config.max_length, *tokens))


def with_weights(options, task, metadata):
    """Return the trained task with more metadata and LoRA adapters merged into the weights."""
    from keras_llm import tasks, training

    model = training.merge_lora(task.model) if options.lora_rank else task.model
    return tasks.TextGeneration(model, task.tokenizer, {**task.metadata, **metadata})


def sample(task, options):
    """Answer the question of the options and return Markdown for TensorBoard."""
    settings = {"max_new_tokens": 60, "temperature": 0.8, "top_p": 0.95, "seed": options.seed}
    try:
        answer = task.chat(options.question, **settings)
    except InputError as error:  # NaN logits; training reports the error itself
        return str(error)
    quoted = answer.replace("\n", "\n> ")
    return f"**{options.question}**\n\n> {quoted}"
