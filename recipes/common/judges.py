"""Train classifiers for a chat model: sensibleness of a reply, and safety of a text.

As in LaMDA, they rank sampled answers and filter messages and answers. Each is a small encoder in
its own folder inside the folder of the run.
"""

import dataclasses
import itertools
import random

from keras_llm.errors import InputError
from keras_llm.recipes import text_classification
from keras_llm.recipes.common import (
    dialogue,
    flags,
    model_card,
    pretrained,
    runs,
    tables,
    text_targets,
)

_FITS, _SAFE = ["random", "sensible"], ["safe", "unsafe"]
_CHOICE = 10  # replies among which the real one is ranked
_MEASURED = 100  # held-out messages to answer for the metrics


@dataclasses.dataclass
class Options(dialogue.Options):
    """Options of the chatbot's classifiers."""

    rank: flags.Count = 0
    """Sample this many candidates and answer with the best safe one, using two classifiers trained
    in the same run; 0 trains no classifiers."""
    judge: str = "minilm"
    """Encoder that the classifiers continue from: "minilm" for all-MiniLM-L6-v2 (91 MB), the folder
    of a run with an encoder, or "scratch"."""
    judge_rows: flags.at_least(2) = 6000
    """Training pairs of message and reply for sensibleness; half of the replies are real."""
    judge_epochs: flags.Positive = 2
    """Training epochs of the classifiers."""
    safety: str = "toxicity"
    """Training data for safety: a corpus of the kind "labeled", or your own .csv, .tsv or .jsonl
    file with `text` and `label`, "safe" or "unsafe"."""
    max_refused: flags.Rate = 0.02
    """Maximum share of the training messages that the filter refuses; its threshold is 0.5, or
    higher if needed."""
    refusal: flags.Text = "I would rather not talk about that."
    """Answer to an unsafe message, or if no answer is safe."""

    def judge_options(self, name):
        """Return the options of a classifier for the recipe `text_classification`."""
        from keras_llm.recipes.corpora import registry

        source = {"corpus": self.safety}
        if self.safety not in registry.corpora():
            source = {"data": self.safety}
        scratch = self.judge == "scratch"
        return text_classification.Options(
            out=f"{self.out}/{name}",
            **source,
            start=None if scratch else self.judge,
            preset="encoder-tiny" if self.smoke else "encoder-2m",
            vocabulary_size=self.vocabulary_size,
            max_length=64,
            epochs=self.judge_epochs,
            evaluations=1,
            batch_size=16 if self.smoke else 32,
            learning_rate=3e-3 if self.smoke else 1e-3 if scratch else 2e-4,
            dropout=0.1,
            seed=self.seed,
        )


def safety_rows(options):
    """Return training rows and held-out rows (text, label) for safety, and dropped counts.

    Raises:
        InputError: if the data cannot be read or the labels are not "safe" and "unsafe".
    """
    judge = options.judge_options("safety")
    train, held_out, kind, dropped = text_classification.rows(judge)
    if kind.labels != _SAFE:
        raise InputError(
            f"--safety: the labels of {judge.source} must be {_SAFE}, got {kind.labels}."
        )
    return train, held_out, dropped


def training_data(options, conversations, held_out):
    """Return the training data of both classifiers, so that errors in it precede all training.

    Args:
        options: `Options`.
        conversations, held_out: lists of lists of messages.

    Returns:
        A tuple: `safety_rows`; and the training rows and held-out rows of `sensible_rows`.
    """
    if options.judge != "scratch":
        pretrained.load(options.judge)
    rows = sensible_rows(conversations, options.seed, options.judge_rows)
    return safety_rows(options), rows, sensible_rows(held_out, options.seed, 2000)


def pairs(conversations):
    """Return triples (conversation index, user message, reply) without replies of weight 0."""
    from keras_llm.data.readers.conversations import is_learned

    return [
        (number, message["content"], reply["content"])
        for number, messages in enumerate(conversations)
        for message, reply in itertools.pairwise(messages)
        if message["role"] == "user" and is_learned(reply)
    ]


def sensible_rows(conversations, seed, most):
    """Return rows (pair, label): messages with their reply and with one of another conversation.

    Args:
        conversations: list of lists of messages.
        seed: int, the seed of the sampled replies.
        most: int, the maximum number of rows.

    Raises:
        InputError: if there are no two conversations with different replies.
    """
    from keras_llm.tasks import RankedChat

    triples, draw, rows = pairs(conversations), random.Random(seed), []
    if len({reply for _, _, reply in triples}) < 2 or len({number for number, *_ in triples}) < 2:
        raise InputError("--rank requires at least two conversations with different replies.")
    for number, message, reply in triples[: (most + 1) // 2]:
        others = (draw.choice(triples) for _ in range(100))
        other = next((r for n, _, r in others if n != number and r != reply), None)
        if other is not None:
            rows.append((RankedChat.pair(message, reply), "sensible"))
            rows.append((RankedChat.pair(message, other), "random"))
    return rows


def trained(folder, options, name, labels, train, held_out, dropped):
    """Train a classifier and save it in the folder `name`.

    Returns:
        A `TextClassification`; a dict of its metrics and those of logistic regression on TF-IDF;
        and its probabilities for held-out rows, float array (N, 2).
    """
    runs.say(f"{name}: {len(train)} rows for training, {len(held_out)} held out")
    judge, kind = options.judge_options(name), text_targets.Classes(labels)
    task = text_classification.untrained(judge, train, kind)
    batches = task.dataset(train, judge.batch_size, judge.epochs, judge.seed)
    validation = task.dataset(tables.validation_sample(held_out, judge), judge.batch_size)
    run = runs.Run(folder / name, judge)
    run.folder.mkdir(exist_ok=True)
    fitted = run.fit(task, batches, validation, "texts", metrics=kind.metrics())
    truth = kind.targets(held_out)
    predictions = {
        "held_out": kind.predicted(task, held_out),
        text_classification.BASELINE: kind.baseline(train, held_out),
    }
    metrics = {
        key: kind.measures(held_out, probabilities) | detection(truth, probabilities.argmax(-1))
        for key, probabilities in predictions.items()
    }
    metrics["training"] = {"rows": len(train), "dropped": dropped, **fitted}
    card = model_card.card(
        judge,
        metrics,
        f"Classifies texts as `{labels[0]}` or `{labels[1]}` for the model in the parent folder.",
        {text_classification.BASELINE: kind.baseline_name},
        f"{len(held_out):,} rows; precision and recall of `{labels[1]}`",
        [],
        'predict {out} "Fine, thanks."',
    )
    run.save(task, metrics, card)
    return task, metrics, predictions["held_out"]


def detection(truth, predicted):
    """Compute precision and recall of class 1; 0 if undefined."""
    hits = int((truth * predicted).sum())
    return {
        "precision": hits / max(int(predicted.sum()), 1),
        "recall": hits / max(int(truth.sum()), 1),
    }


def train_classifiers(folder, options, chat, conversations, held_out, data):
    """Train both classifiers and evaluate ranking and filtering of a chat model's answers.

    Args:
        folder: path of the run.
        options: `Options`.
        chat: a `TextGeneration` with a chat template.
        conversations, held_out: lists of lists of messages.
        data: from `training_data`.

    Returns:
        A `RankedChat`, and a dict for `metrics.json`.
    """
    import numpy as np

    from keras_llm import tasks

    safety, rows, others = data
    sensibleness, fits, _ = trained(folder, options, "sensibleness", _FITS, rows, others, {})
    guard, is_safe, unsafe = trained(folder, options, "safety", _SAFE, *safety)
    threshold = _threshold(guard, conversations, options.max_refused)
    ranking = tasks.Ranking(options.rank, threshold, refusal=options.refusal)
    task = tasks.RankedChat(chat.model, chat.tokenizer, sensibleness, guard, ranking, chat.metadata)
    measures = ranked(task, held_out, options)
    truth = np.array([_SAFE.index(label) for _, label in safety[1]])
    measures |= detection(truth, unsafe[:, 1] >= threshold) | {"threshold": threshold}
    return task, {"sensibleness": fits, "safety": is_safe, "ranking": measures}


def _threshold(guard, conversations, most):
    """Return the threshold: texts with at least this probability of being unsafe are refused."""
    import numpy as np

    messages = [text for _, text, _ in pairs(conversations)][:1000]
    results = guard(messages, truncate=True, return_details=True)
    scores = [result.probabilities["unsafe"] for result in results]
    return float(max(0.5, np.quantile(scores, 1 - most, method="higher")))


def ranked(task, held_out, options):
    """Evaluate ranking and filtering on held-out conversations.

    Returns:
        A dict. `messages`: the number of messages, without `messages_too_long` for the model.
        `first_sensible` and `ranked_sensible`: the share of first samples, and of returned
        answers, that are judged sensible, by the same classifier that ranks.
        `real_reply_found`: how often it ranks the real reply first among ten. `refused_input`: the
        share of messages that are refused; `refused_output`: of the rest, the share without a safe
        sample; `unsafe_samples`: the share of all samples that are unsafe.
    """
    longest, triples, too_long = task.model.config.max_length, [], 0
    for triple in pairs(held_out)[:_MEASURED]:
        prompt = task.render([{"role": "user", "content": triple[1]}])
        if len(task.tokenizer.encode_prompt(prompt, True)) < longest:
            triples.append(triple)
        else:
            too_long += 1
    answers = [
        task.chat(message, seed=number, max_new_tokens=32, return_details=True)
        for number, (_, message, _) in enumerate(triples)
    ]
    accepted = [answer for answer in answers if answer.refused != "input"]
    samples = [reply for answer in accepted for reply in answer.replies]
    first = [reply for reply in samples if reply.number == 0]
    returned = [
        next(reply for reply in answer.replies if reply.text == answer.text)
        for answer in accepted
        if answer.replies and answer.refused is None
    ]
    return {
        "messages": len(triples),
        "messages_too_long": too_long,
        "candidates": options.rank,
        "first_sensible": _share(reply.sensible > 0.5 for reply in first),
        "ranked_sensible": _share(reply.sensible > 0.5 for reply in returned),
        "real_reply_found": _real_reply_found(task, held_out, options.seed),
        "refused_input": _share(answer.refused == "input" for answer in answers),
        "refused_output": _share(answer.refused == "output" for answer in accepted),
        "unsafe_samples": _share(reply.unsafe >= task.ranking.threshold for reply in samples),
    }


def _real_reply_found(task, held_out, seed):
    """Return how often the real reply ranks first among replies of other conversations."""
    triples, draw, hits = pairs(held_out), random.Random(seed), []
    for _, message, reply in triples[:_MEASURED]:
        others = sorted({other for _, _, other in triples if other != reply})
        texts = [reply, *draw.sample(others, min(_CHOICE - 1, len(others)))]
        rows = task.sensibleness(
            [task.pair(message, text) for text in texts], truncate=True, return_details=True
        )
        scores = [row.probabilities["sensible"] for row in rows]
        hits.append(scores[0] > max(scores[1:], default=0.0))
    return _share(hits)


def _share(values):
    values = list(map(bool, values))
    return sum(values) / len(values) if values else None


def notes(metrics):
    """Return lines for the card of the chat model."""
    fits, safe, ranking = (metrics[name] for name in ("sensibleness", "safety", "ranking"))
    shown = {key: "none" if v is None else f"{v:.1%}" for key, v in ranking.items()}
    tfidf = text_classification.BASELINE
    return [
        f"Of {ranking['candidates']} samples, it drops unsafe ones and returns the one with the "
        "highest sum of the log-probability of being sensible and the mean token log-probability. "
        f"Judged sensible by the same classifier: {shown['ranked_sensible']} of the answers and "
        f"{shown['first_sensible']} of first samples, for {ranking['messages']} held-out messages.",
        f"Sensibleness (real reply or one of another conversation): accuracy "
        f"{fits['held_out']['accuracy']:.1%} on held-out pairs; constant answer 50%, "
        f"TF-IDF {fits[tfidf]['accuracy']:.1%}. The real reply ranks first among {_CHOICE} for "
        f"{shown['real_reply_found']} of the messages, by chance {1 / _CHOICE:.0%}.",
        f"Safety on held-out labeled texts: precision {shown['precision']} and recall "
        f"{shown['recall']} of unsafe texts at the threshold {ranking['threshold']:.3f}. At 0.5: "
        f"{safe['held_out']['precision']:.1%} and {safe['held_out']['recall']:.1%}, with TF-IDF "
        f"{safe[tfidf]['precision']:.1%} and {safe[tfidf]['recall']:.1%}. It refuses "
        f"{shown['refused_input']} of the held-out messages and {shown['unsafe_samples']} of the "
        "samples.",
        "The filter recognizes what its labeled texts contain, mostly insults and obscenities. It "
        "does not recognize lies, bad advice or politely worded harm, is easily evaded by "
        "misspellings, and is biased against the names of some groups. Only `chat` ranks and "
        "filters: calling the task and exports do not.",
    ]
