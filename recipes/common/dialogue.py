"""What the recipes on conversations share."""

import dataclasses
import json

from keras_llm.errors import InputError
from keras_llm.recipes.common import runs

TURN_TOKENS = ("<|im_start|>", "<|im_end|>")
TEMPLATE = """{% for message in messages -%}
<|im_start|>{{ message.role + '\n' + message.content }}<|im_end|>{{ '\n' }}
{%- endfor %}
{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""


@dataclasses.dataclass
class Options(runs.Options):
    """What a recipe can be told that trains on conversations."""

    start: str | None = None
    """Folder of a model with a chat template to go on from."""
    lora_rank: int = 0
    """With --start: rank of the adapters that are trained; 0 trains all weights."""
    max_length: int = 128
    """Tokens of a conversation; later turns are cut."""
    max_conversations: int = 0
    """Use no more than this many; 0 uses all."""
    question: str = "How are you?"
    """What the logged samples answer."""

    def __post_init__(self):
        super().__post_init__()
        self.check(
            ("lora_rank", self.lora_rank >= 0, ">= 0"),
            ("lora_rank", not self.lora_rank or self.start is not None, "0 without --start"),
            ("max_length", self.max_length > 1, "at least 2"),
            ("max_conversations", self.max_conversations >= 0, ">= 0"),
            ("question", bool(self.question.strip()), "a text"),
        )


def split(options, found, first_text):
    """Conversations or preferences, split; those that begin with the same text on one side.

    Args:
        options: `Options`.
        found: list of JSON values.
        first_text: function from one of them to the text that it begins with.

    Returns:
        Training and held-out ones, two lists, and the dict of what was dropped.
    """
    from keras_llm import data

    rows = [(first_text(item), json.dumps(item)) for item in found]
    rows, dropped = data.clean_rows(rows)
    if options.max_conversations:
        rows = [row for part in data.split_rows(rows, 0.5, options.seed) for row in part]
        rows = rows[: options.max_conversations]
    train, held_out = data.split_rows(rows, options.held_out, options.seed)
    train, known = data.without_contamination(train, held_out)
    parts = ([json.loads(item) for _, item in part] for part in (train, held_out))
    return *parts, dropped | known


def first_message(messages):
    """What the user says first."""
    return next(message["content"] for message in messages if message["role"] == "user")


def started(options):
    """The task of `--start`, with adapters if they are asked for.

    Raises:
        InputError: if it is no model to chat with, or `max_length` is beyond it.
    """
    import keras_llm
    from keras_llm import training

    task = keras_llm.load(options.start)
    if not isinstance(task, keras_llm.TextGeneration):
        raise InputError(f"--start: {options.start} is a {type(task).__name__}.")
    if isinstance(task, keras_llm.RankedChat):
        task = task.generator
    if options.lora_rank:
        training.add_lora(task.model, rank=options.lora_rank)
    return task


def untrained(options, train):
    """A task with a vocabulary learned from conversations and random weights."""
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


def examples(task, found, options):
    """Conversations as `data.ChatExample`s of a task, and what was dropped."""
    from keras_llm import data

    return encoded(data.chat_examples, task, found, options, "conversations")


def encoded(encode, task, found, options, kind):
    """What a function of `keras_llm.data` makes of what was read, and what was dropped.

    Args:
        encode: `data.chat_examples` or `data.preference_examples`.
        task: a `TextGeneration` with a chat template.
        found: list of what `encode` takes.
        options: `Options`.
        kind: str, what they are called.

    Raises:
        InputError: if none is short enough.
    """
    kept, dropped = encode(
        found, task.chat_template, task.tokenizer, options.max_length, task.end_token_ids
    )
    if not kept:
        raise InputError(
            f"{options.source}: none of {len(found)} {kind} fits into --max-length "
            f"{options.max_length}."
        )
    return kept, dropped


def check_length(options, model):
    """Raise InputError if `max_length` is more than a model takes."""
    longest = model.config.max_length
    options.check(
        ("max_length", options.max_length <= longest, f"at most {longest}, the model's"),
    )


def with_weights(options, task, metadata):
    """The task of a training that is done, its adapters merged into its weights."""
    from keras_llm import tasks, training

    model = training.merge_lora(task.model) if options.lora_rank else task.model
    return tasks.TextGeneration(model, task.tokenizer, metadata)


def sample(task, options):
    """What the model answers, as Markdown."""
    settings = {"max_new_tokens": 60, "temperature": 0.8, "top_p": 0.95, "seed": options.seed}
    try:
        answer = task.chat(options.question, **settings)
    except InputError as error:  # of a loss that is not finite; the training tells by itself
        return str(error)
    quoted = answer.replace("\n", "\n> ")
    return f"**{options.question}**\n\n> {quoted}"
