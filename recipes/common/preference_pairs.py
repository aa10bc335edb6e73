"""Pairs of answers for `preference_tuning`: from a file or corpus, or drawn from the model."""

import dataclasses
import pathlib
from collections.abc import Callable

from keras_llm.errors import InputError
from keras_llm.recipes.common import dialogue, tables


@dataclasses.dataclass
class Pairs:
    """What a preference tuning learns from and is measured on.

    Attributes:
        train: list of pairs of `data.ChatExample`, the chosen one first.
        held_out: list of the same.
        prompts: list of str, held out, that are answered before and after the training.
        parse_special: bool, whether the prompts spell out special tokens.
        judge: function from a list of texts to how good they are, floats in 0 .. 1.
        judge_accuracy: float, how often the judge is right on texts that it was not fitted on.
        judged_with_prompt: bool, whether it judges the prompt with the answer.
        about: dict of counts, for metrics.json.
    """

    train: list
    held_out: list
    prompts: list
    parse_special: bool
    judge: Callable
    judge_accuracy: float
    judged_with_prompt: bool
    about: dict


def source(options):
    """The function that makes the pairs of the options' data."""
    from keras_llm.recipes.corpora.registry import CORPORA

    if options.data is not None:
        is_table = pathlib.Path(options.data).name.removesuffix(".gz").endswith((".csv", ".tsv"))
        kind = "labelled" if is_table else "preferences"
    elif options.corpus in CORPORA:
        kind = CORPORA[options.corpus].kind
    else:
        raise InputError(f"unknown corpus {options.corpus!r}; see `keras-llm recipes`.")
    known = {
        "preferences": from_preferences,
        "labelled": from_sentiment,
    }
    if kind not in known:
        raise InputError(f"--corpus {options.corpus} is of the kind {kind!r}: {', '.join(known)}.")
    return known[kind]


def from_preferences(options, task):
    """Pairs that were read. The judge learns from half of the held-out pairs to tell chosen from
    rejected answers."""
    from keras_llm import data
    from keras_llm.recipes.corpora import registry

    if options.data is None:
        found = registry.load(options.corpus, "preferences")
    else:
        found = data.read_preferences(options.data)
    found, held_out, dropped = dialogue.split(
        options, found, lambda preference: dialogue.first_message(preference[0])
    )
    shown = max(1, len(held_out) // 2)
    judging, held_out = held_out[shown:], held_out[:shown]
    judge, accuracy = _judge(_sides(judging), _sides(held_out))
    encoded = []
    for part in (found, held_out):
        pairs, cut = encode(options, task, part)
        dropped = {key: dropped.get(key, 0) + cut.get(key, 0) for key in {**dropped, **cut}}
        encoded.append(pairs)
    prompts = [task.render(messages) for messages, *_ in held_out]
    prompts = [p for p in prompts if len(task.tokenizer.encode(p, True)) < options.max_length]
    about = {"dropped": dropped, "judge_texts": 2 * len(judging)}
    return Pairs(*encoded, prompts[: options.prompts], True, judge, accuracy, False, about)


def encode(options, task, preferences):
    """Preferences as pairs of `data.ChatExample`s of a task, and what was dropped."""
    from keras_llm import data

    return dialogue.encoded(data.preference_examples, task, preferences, options, "pairs")


def from_sentiment(options, task):
    """Pairs drawn from the model: of some continuations of a review's beginning the most and the
    least positive, by a classifier of reviews. The judge learned from other reviews."""
    rows, held_out, dropped = tables.rows(options, ["text", "label"], "labelled")
    labels = {label for _, label in rows}
    if labels != {"negative", "positive"}:
        raise InputError(f"{options.source}: labels must be negative and positive, got {labels}.")
    third = len(rows) // 3
    fitted = [
        [(text, label == "positive") for text, label in part]
        for part in (rows[:third], rows[third : 2 * third], held_out)
    ]
    labeller, _ = _judge(fitted[0], fitted[2])
    judge, accuracy = _judge(fitted[1], fitted[2])
    begins = [_beginning(text, options.prompt_words) for text, _ in rows[2 * third :] + held_out]
    begins = list(dict.fromkeys(begin for begin in begins if begin))
    needed = options.prompts + options.held_out_pairs + options.pairs
    if len(begins) < needed:
        raise InputError(f"{options.source}: {len(begins)} beginnings, {needed} are needed.")
    prompts = begins[-options.prompts :]
    drawn = _draw(options, task, begins[: options.pairs + options.held_out_pairs], labeller)
    pairs = [pair for pair in drawn if pair is not None]
    held_out_pairs = [pair for pair in drawn[options.pairs :] if pair is not None]
    train = pairs[: len(pairs) - len(held_out_pairs)]
    if not train or not held_out_pairs:
        raise InputError("the classifier finds no pair of continuations that differ.")
    about = {"dropped": dropped, "judge_texts": third, "beginnings_without_pair": drawn.count(None)}
    return Pairs(train, held_out_pairs, prompts, False, judge, accuracy, True, about)


def answers(options, task, prompts, parse_special, seed=0):
    """What a model answers: texts, and `data.ChatExample`s in which the answers are learned."""
    texts, examples = [], []
    for begin in range(0, len(prompts), options.batch_size):
        some = prompts[begin : begin + options.batch_size]
        found = task(
            some,
            max_new_tokens=options.new_tokens,
            seed=[seed + begin + i for i in range(len(some))],
            parse_special=parse_special,
            return_details=True,
        )
        texts += [generation.text for generation in found]
        examples += [
            _example(task, prompt, generation, parse_special)
            for prompt, generation in zip(some, found, strict=True)
        ]
    return texts, examples


def _draw(options, task, begins, labeller):
    """A pair of each beginning, or None where its continuations are equally positive."""
    rounds = [
        answers(options, task, begins, False, options.seed + 1_000_003 * i)
        for i in range(1, options.candidates + 1)
    ]
    scores = [labeller([a + b for a, b in zip(begins, texts, strict=True)]) for texts, _ in rounds]
    pairs = []
    for place in range(len(begins)):
        order = sorted(range(len(rounds)), key=lambda i, place=place: scores[i][place])
        worst, best = order[0], order[-1]
        differs = scores[best][place] - scores[worst][place] >= options.least_difference
        pair = tuple(rounds[i][1][place] for i in (best, worst))
        pairs.append(pair if differs and all(sum(one.learned) for one in pair) else None)
    return pairs


def _example(task, prompt, generation, parse_special):
    from keras_llm import data

    begin = task.tokenizer.encode_prompt(prompt, parse_special)
    new = list(generation.token_ids)
    if generation.finish_reason == "stop":
        ends = [i for i in task.end_token_ids if task.tokenizer.token(i) == generation.stopped_by]
        new += ends[:1]
    return data.ChatExample(begin + new, [0] * len(begin) + [1] * len(new))


def _judge(texts, others):
    """A function from texts to how likely they are good, and its accuracy on `others`; texts are
    pairs (str, whether it is good)."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    if len({is_good for _, is_good in texts}) < 2:
        raise InputError("too little is held out to fit a judge; raise --held-out.")
    model = make_pipeline(TfidfVectorizer(), LogisticRegression(max_iter=1000))
    model.fit(*zip(*texts, strict=True))

    def judge(texts):
        return model.predict_proba(texts)[:, 1]

    return judge, float(model.score(*zip(*others, strict=True)))


def _sides(preferences):
    return [
        pair for _, chosen, rejected in preferences for pair in ((chosen, True), (rejected, False))
    ]


def _beginning(text, words):
    return " ".join(text.split()[:words])
