"""Read pairs of answers for `preference_tuning`, or sample them from the model."""

import dataclasses
import pathlib
from collections.abc import Callable

from keras_llm.errors import InputError
from keras_llm.recipes.common import dialogue, tables, vocabularies


@dataclasses.dataclass
class Pairs:
    """Training and evaluation data of preference tuning.

    Attributes:
        train: list of pairs of `data.ChatExample`, (chosen, rejected).
        held_out: list of pairs like `train`.
        prompts: list of str, held-out prompts to answer before and after training.
        parse_special: bool, whether the prompts contain special tokens as text.
        judge: function from a list of texts to scores in [0, 1].
        judge_accuracy: float, the judge's accuracy on texts that it was not fitted on.
        judged_with_prompt: bool, whether the judge scores the prompt together with the answer.
        about: dict of counts for metrics.json.
    """

    train: list
    held_out: list
    prompts: list
    parse_special: bool
    judge: Callable
    judge_accuracy: float
    judged_with_prompt: bool
    about: dict


def read(options, task):
    """Read or sample the pairs of the options; returns `Pairs`."""
    from keras_llm.recipes.corpora import registry

    dialogue.check_length(options, task.model)
    corpora = registry.corpora()
    if options.data is not None:
        is_table = pathlib.Path(options.data).name.removesuffix(".gz").endswith((".csv", ".tsv"))
        kind = "labeled" if is_table else "preferences"
    elif options.corpus in corpora:
        kind = corpora[options.corpus].kind
    else:
        raise InputError(f"unknown corpus {options.corpus!r}; see `keras-llm recipes`.")
    functions = {"preferences": from_preferences, "labeled": from_sentiment}
    if kind not in functions:
        raise InputError(
            f"--corpus must be of the kind {' or '.join(functions)}, got {options.corpus!r} of the "
            f"kind {kind!r}."
        )
    return functions[kind](options, task)


def from_preferences(options, task):
    """Read pairs of answers.

    The judge is fitted on half of the held-out pairs to classify answers as chosen or rejected.
    """
    from keras_llm import data
    from keras_llm.recipes.corpora import registry

    if options.data is None:
        preferences = registry.load(options.corpus, "preferences")
    else:
        preferences = data.read_preferences(options.data)
    train, held_out, dropped = dialogue.split(
        options, preferences, lambda preference: dialogue.first_message(preference[0])
    )
    dialogue.choose_length(options, task, train)
    half = max(1, len(held_out) // 2)
    judging, held_out = held_out[half:], held_out[:half]
    judge, accuracy = _judge(_sides(judging), _sides(held_out))
    encoded = []
    for part in (train, held_out):
        pairs, cut = _encode(options, task, part)
        dropped = {key: dropped.get(key, 0) + cut.get(key, 0) for key in {**dropped, **cut}}
        encoded.append(pairs)
    prompts = [task.render(messages) for messages, *_ in held_out]
    prompts = [p for p in prompts if len(task.tokenizer.encode(p, True)) < options.max_length]
    about = {"dropped": dropped, "judge_texts": 2 * len(judging)}
    return Pairs(*encoded, prompts[: options.prompts], True, judge, accuracy, False, about)


def read_file(options, task, path):
    """Read the preferences of another file; returns a list of pairs of `data.ChatExample`."""
    from keras_llm import data

    return _encode(options.reading(path), task, data.read_preferences(path))[0]


def _encode(options, task, preferences):
    """Return preferences as pairs of `data.ChatExample`s, and a dict of dropped ones by reason."""
    from keras_llm import data

    return dialogue.encoded(data.preference_examples, task, preferences, options, "pairs")


def from_sentiment(options, task):
    """Sample pairs from the model: the most and the least positive continuation of a beginning.

    A classifier fitted on reviews scores the continuations. The judge is fitted on other reviews.
    """
    options.max_length = options.max_length or min(128, task.model.config.max_length)
    rows, held_out, dropped = tables.rows(options, ["text", "label"], "labeled")
    labels = {label for _, label in rows}
    if labels != {"negative", "positive"}:
        raise InputError(f"{options.source}: labels must be negative and positive, got {labels}.")
    third = len(rows) // 3
    fitted = [
        [(text, label == "positive") for text, label in part]
        for part in (rows[:third], rows[third : 2 * third], held_out)
    ]
    score_texts, _ = _judge(fitted[0], fitted[2])
    judge, accuracy = _judge(fitted[1], fitted[2])
    sources = rows[2 * third :] + held_out
    beginnings = [_beginning(text, options.prompt_words) for text, _ in sources]
    beginnings = list(dict.fromkeys(text for text in beginnings if text))
    num_pairs = options.pairs + options.held_out_pairs
    needed = options.prompts + num_pairs
    if len(beginnings) < needed:
        raise InputError(
            f"{options.source}: {needed} beginnings are needed, got {len(beginnings)}."
        )
    prompts = beginnings[-options.prompts :]
    sampled = _sampled_pairs(options, task, beginnings[:num_pairs], score_texts)
    pairs = [pair for pair in sampled if pair is not None]
    held_out_pairs = [pair for pair in sampled[options.pairs :] if pair is not None]
    train = pairs[: len(pairs) - len(held_out_pairs)]
    if not train or not held_out_pairs:
        raise InputError(
            "no pair of continuations differs by --least-difference according to the classifier."
        )
    about = {
        "dropped": dropped,
        "judge_texts": third,
        "beginnings_without_pair": sampled.count(None),
    }
    return Pairs(train, held_out_pairs, prompts, False, judge, accuracy, True, about)


def answers(options, task, pairs):
    """Answer the prompts of `Pairs`.

    Returns:
        The texts, and `data.ChatExample`s with the answers as targets.
    """
    return _answers(options, task, pairs.prompts, pairs.parse_special)


def _answers(options, task, prompts, parse_special, seed=0):
    texts, examples = [], []
    for begin in range(0, len(prompts), options.batch_size):
        batch = prompts[begin : begin + options.batch_size]
        generations = task(
            batch,
            max_new_tokens=options.new_tokens,
            seed=[seed + begin + i for i in range(len(batch))],
            parse_special=parse_special,
            return_details=True,
        )
        texts += [generation.text for generation in generations]
        examples += [
            _example(task, prompt, generation, parse_special)
            for prompt, generation in zip(batch, generations, strict=True)
        ]
    return texts, examples


def _sampled_pairs(options, task, beginnings, score_texts):
    """Return a pair for each beginning, or None if its continuations are equally positive."""
    rounds = [
        _answers(options, task, beginnings, False, options.seed + 1_000_003 * i)
        for i in range(1, options.candidates + 1)
    ]
    scores = [
        score_texts([begin + text for begin, text in zip(beginnings, texts, strict=True)])
        for texts, _ in rounds
    ]
    pairs = []
    for row in range(len(beginnings)):
        order = sorted(range(len(rounds)), key=lambda i, row=row: scores[i][row])
        worst, best = order[0], order[-1]
        differs = scores[best][row] - scores[worst][row] >= options.least_difference
        pair = tuple(rounds[i][1][row] for i in (best, worst))
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
    """Fit a judge on pairs (text, whether it is good).

    Returns a function from texts to probabilities of being good, and its accuracy on `others`.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    if len({is_good for _, is_good in texts}) < 2:
        raise InputError("too few held-out rows to fit a judge; increase --held-out.")
    units = vocabularies.tfidf([text for text, _ in texts])
    model = make_pipeline(units, LogisticRegression(max_iter=1000))
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
