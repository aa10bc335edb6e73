"""The classifiers at the side of a chat model: does a reply fit, and is a text safe?

As in LaMDA they are trained beside it, choose among the answers that it draws, and filter what goes
in and out. Each is a small encoder in a folder of its own below that of the run.
"""

import dataclasses
import itertools
import random

from keras_llm.errors import InputError
from keras_llm.recipes import text_classification
from keras_llm.recipes.common import dialogue, model_card, runs, tables, text_targets

_FITS, _SAFE = ["random", "sensible"], ["safe", "unsafe"]
_CHOICE = 10  # replies of which the real one is to be found
_MEASURED = 100  # held-out messages that are answered for the measures


@dataclasses.dataclass
class Options(dialogue.Options):
    """What the chatbot can be told of its classifiers."""

    rank: int = 0
    """Answer with the most sensible of so many candidates that are safe, by two classifiers that
    are trained beside the model; 0 trains none."""
    judge: str = "minilm"
    """The encoder that the classifiers go on from: "minilm" for all-MiniLM-L6-v2 (91 MB), the
    folder of a run with an encoder, or "scratch"."""
    judge_rows: int = 6000
    """Pairs of a message and a reply that sensibleness is learned from, half of them real."""
    judge_epochs: int = 2
    """Passes of the classifiers over their rows."""
    safety: str = "toxicity"
    """What safety is learned from: a corpus of the kind "labelled", or your own .csv, .tsv or
    .jsonl file of `text` and `label`, "safe" or "unsafe"."""
    max_refused: float = 0.02
    """The filter's threshold is 0.5, or as high as it takes to refuse no larger share of the
    training messages."""
    refusal: str = "I would rather not talk about that."
    """What is answered instead of something unsafe."""

    def __post_init__(self):
        super().__post_init__()
        self.check(
            ("rank", self.rank >= 0, ">= 0"),
            ("judge_rows", self.judge_rows > 1, "at least 2"),
            ("judge_epochs", self.judge_epochs > 0, "a positive int"),
            ("max_refused", 0 <= self.max_refused < 1, "in [0, 1)"),
            ("refusal", bool(self.refusal.strip()), "a text"),
        )

    def of_judge(self, name):
        """The options of a classifier, those of the recipe `text_classification`."""
        from keras_llm.recipes.corpora import registry

        source = {"corpus": self.safety}
        if self.safety not in registry.CORPORA:
            source = {"data": self.safety}
        scratch = self.smoke or self.judge == "scratch"
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
    """Rows (text, label) that safety is learned from: training, held out, what was dropped.

    Raises:
        InputError: if they cannot be read, or have other labels than "safe" and "unsafe".
    """
    judge = options.of_judge("safety")
    train, held_out, kind, dropped = text_classification.rows(judge)
    if kind.labels != _SAFE:
        raise InputError(
            f"--safety: the labels of {judge.source} must be {_SAFE}, got {kind.labels}."
        )
    return train, held_out, dropped


def pairs(conversations):
    """What a user said, and the reply: (number of the conversation, said, reply)."""
    return [
        (number, said["content"], reply["content"])
        for number, messages in enumerate(conversations)
        for said, reply in itertools.pairwise(messages)
        if (said["role"], reply["role"]) == ("user", "assistant")
    ]


def sensible_rows(conversations, seed, most):
    """Rows (pair, label): each message with its reply, and with one of another conversation.

    Args:
        conversations: list of lists of messages.
        seed: int, of the draws.
        most: int, rows.

    Raises:
        InputError: if there are not two different replies of two conversations.
    """
    from keras_llm.tasks import RankedChat

    found, draw, rows = pairs(conversations), random.Random(seed), []
    if len({reply for _, _, reply in found}) < 2 or len({number for number, *_ in found}) < 2:
        raise InputError("--rank: two conversations with different replies are needed.")
    for number, said, reply in found[: (most + 1) // 2]:
        others = (draw.choice(found) for _ in range(100))
        other = next((r for n, _, r in others if n != number and r != reply), None)
        if other is not None:
            rows.append((RankedChat.pair(said, reply), "sensible"))
            rows.append((RankedChat.pair(said, other), "random"))
    return rows


def trained(folder, options, name, labels, train, held_out, dropped):
    """Train a classifier, and leave it in the folder `name`.

    Returns:
        A `TextClassification`, a dict of its measures beside those of TF-IDF with logistic
        regression, and the probabilities that it gives held-out rows, float array (N, 2).
    """
    from keras_llm import training

    runs.say(f"{name}: {len(train)} rows for training, {len(held_out)} held out")
    judge, kind = options.of_judge(name), text_targets.Classes(labels)
    model, tokenizer = text_classification.untrained(judge, train, kind)
    task = kind.task(model, tokenizer, None)
    batches = text_classification.batches(task, train, kind, judge, judge.seed)
    trainer = training.Trainer(model)
    runs.compile_trainer(judge, trainer, len(batches), **kind.compiled())
    (folder / name).mkdir(exist_ok=True)
    watched = tables.to_watch(held_out, judge)
    validation = text_classification.batches(task, watched, kind, judge)
    fitted = runs.fit(folder / name, judge, trainer, batches, validation, "texts")
    truth = kind.targets(held_out)
    found = {
        "held_out": kind.predicted(task, held_out),
        text_classification.BASELINE: kind.baseline(train, held_out),
    }
    metrics = {
        key: kind.measures(held_out, probabilities) | detection(truth, probabilities.argmax(-1))
        for key, probabilities in found.items()
    }
    metrics["training"] = {"rows": len(train), "dropped": dropped, **fitted}
    card = model_card.card(
        judge,
        metrics,
        f"Sorts texts into `{labels[0]}` and `{labels[1]}`, for the model in the folder above.",
        {text_classification.BASELINE: kind.baseline_name},
        f"{len(held_out):,} rows; precision and recall are of `{labels[1]}`",
        [],
        'predict {out} "Fine, thanks."',
    )
    runs.write(folder / name, task, metrics, card)
    return task, metrics, found["held_out"]


def detection(truth, found):
    """Precision and recall of class 1, a dict; 0 where nothing was found."""
    hits = int((truth * found).sum())
    return {
        "precision": hits / max(int(found.sum()), 1),
        "recall": hits / max(int(truth.sum()), 1),
    }


def at_the_side(folder, options, chat, conversations, held_out, safety):
    """Train both classifiers, and measure what they do to the answers of a chat model.

    Args:
        folder: path, of the run.
        options: `Options`.
        chat: a `TextGeneration` with a chat template.
        conversations, held_out: lists of lists of messages.
        safety: from `safety_rows`.

    Returns:
        A `RankedChat`, and a dict for `metrics.json`.
    """
    import numpy as np

    from keras_llm import tasks

    rows = sensible_rows(conversations, options.seed, options.judge_rows)
    others = sensible_rows(held_out, options.seed, 2000)
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
    """The probability from which a text is refused."""
    import numpy as np

    said = [text for _, text, _ in pairs(conversations)][:1000]
    found = guard(said, truncate=True, return_details=True)
    scores = [row.probabilities["unsafe"] for row in found]
    return float(max(0.5, np.quantile(scores, 1 - most, method="higher")))


def ranked(task, held_out, options):
    """What ranking and filter do on held-out conversations, a dict.

    `first_sensible` and `ranked_sensible`: of how many messages the first sample, and the answer
    that is given, are more likely sensible than not; by the judge that ranks, so what it cannot see
    stays unseen. `real_reply_found`: how often it finds the real reply among ten.
    `refused_input`: the share of what was said that is refused, `refused_output` of the rest how
    often no safe answer is drawn, `unsafe_samples` the share of all samples that are unsafe.
    """
    found = pairs(held_out)[:_MEASURED]
    answers = [
        task.chat(said, seed=number, max_new_tokens=32, return_details=True)
        for number, (_, said, _) in enumerate(found)
    ]
    heard = [answer for answer in answers if answer.refused != "input"]
    samples = [reply for answer in heard for reply in answer.replies]
    first = [reply for reply in samples if reply.number == 0]
    given = [
        next(reply for reply in answer.replies if reply.text == answer.text)
        for answer in heard
        if answer.replies and answer.refused is None
    ]
    return {
        "messages": len(found),
        "candidates": options.rank,
        "first_sensible": _share(reply.sensible > 0.5 for reply in first),
        "ranked_sensible": _share(reply.sensible > 0.5 for reply in given),
        "real_reply_found": _real_reply_found(task, held_out, options.seed),
        "refused_input": _share(answer.refused == "input" for answer in answers),
        "refused_output": _share(answer.refused == "output" for answer in heard),
        "unsafe_samples": _share(reply.unsafe >= task.ranking.threshold for reply in samples),
    }


def _real_reply_found(task, held_out, seed):
    """How often the real reply has the highest probability beside those of other conversations."""
    found, draw, hits = pairs(held_out), random.Random(seed), []
    for _, said, reply in found[:_MEASURED]:
        others = sorted({other for _, _, other in found if other != reply})
        texts = [reply, *draw.sample(others, min(_CHOICE - 1, len(others)))]
        rows = task.sensibleness(
            [task.pair(said, text) for text in texts], truncate=True, return_details=True
        )
        scores = [row.probabilities["sensible"] for row in rows]
        hits.append(scores[0] > max(scores[1:], default=0.0))
    return _share(hits)


def _share(values):
    values = list(map(bool, values))
    return sum(values) / len(values) if values else None


def notes(metrics):
    """Lines for the card of the chat model."""
    fits, safe, found = (metrics[name] for name in ("sensibleness", "safety", "ranking"))
    shown = {key: "none" if v is None else f"{v:.1%}" for key, v in found.items()}
    tfidf = text_classification.BASELINE
    return [
        f"Of {found['candidates']} samples it gives the one with the highest log-probability of "
        "being sensible plus mean log-probability of its tokens, among those that are safe. "
        f"Judged sensible, by the judge that ranks: {shown['ranked_sensible']} of the answers, "
        f"{shown['first_sensible']} of first samples, to {found['messages']} held-out messages.",
        f"Sensibleness (real reply or one of another conversation): "
        f"{fits['held_out']['accuracy']:.1%} of held-out pairs right; always one of them 50 %, "
        f"TF-IDF {fits[tfidf]['accuracy']:.1%}. The real reply among {_CHOICE}: "
        f"{shown['real_reply_found']} found, by chance {1 / _CHOICE:.0%}.",
        f"Safety: on held-out labelled texts {shown['precision']} of what it refuses is unsafe, "
        f"and it refuses {shown['recall']} of what is, from a probability of "
        f"{found['threshold']:.3f} on. From 0.5 on it would be {safe['held_out']['precision']:.1%} "
        f"and {safe['held_out']['recall']:.1%}, with TF-IDF {safe[tfidf]['precision']:.1%} and "
        f"{safe[tfidf]['recall']:.1%}. It refuses "
        f"{shown['refused_input']} of the held-out messages, and {shown['unsafe_samples']} of the "
        "samples.",
        "The filter knows what its labelled texts show, insults and obscenities for the most part. "
        "It does not know lies, bad advice, or harm in kind words, it is easily deceived by "
        "spelling, and it finds some groups' names unsafe where others' are not. Only `chat` ranks "
        "and filters: calling the task, and exports, do not.",
    ]
