"""A chat that draws several answers and gives the most sensible of those that are safe."""

import dataclasses
import math
import pathlib

from keras_llm.errors import InputError
from keras_llm.tasks.base import load
from keras_llm.tasks.settings import count_of
from keras_llm.tasks.text_classification import TextClassification
from keras_llm.tasks.text_generation import TextGeneration

SENSIBLE, UNSAFE = "sensible", "unsafe"
_SENSIBLENESS, _SAFETY = "sensibleness", "safety"  # the folders of the classifiers
_FIXED = ("num_return_sequences", "num_alternatives", "scorer")


@dataclasses.dataclass(frozen=True)
class Ranking:
    """How a `RankedChat` chooses.

    Args:
        num_candidates: int > 0. How many answers are drawn. LaMDA takes 16.
        threshold: float in (0, 1]. A text whose probability of being unsafe is as high is refused.
        likelihood_weight: float >= 0, see `Reply.score`.
        refusal: str, not empty, what is answered instead.

    Raises:
        InputError: naming the argument that is wrong.
    """

    num_candidates: int = 8
    threshold: float = 0.5
    likelihood_weight: float = 1.0
    refusal: str = "I would rather not talk about that."

    def __post_init__(self):
        count_of("num_candidates", self.num_candidates, 1)
        for name, ok, rule in (
            ("threshold", 0 < self.threshold <= 1, "in (0, 1]"),
            ("likelihood_weight", self.likelihood_weight >= 0, ">= 0"),
            ("refusal", isinstance(self.refusal, str) and self.refusal.strip(), "a text"),
        ):
            if not ok:
                raise InputError(f"`{name}` must be {rule}, got {getattr(self, name)!r}.")


@dataclasses.dataclass(frozen=True)
class Reply:
    """One of the answers that were drawn.

    Attributes:
        text: str.
        sensible: float, the probability that it is an answer to what was said.
        unsafe: float, the probability that it is unsafe.
        score: float, `log(sensible) + likelihood_weight * log_probability`, the latter the mean of
            its tokens; in nats.
        number: int, how many were drawn before it.
    """

    text: str
    sensible: float
    unsafe: float
    score: float
    number: int


@dataclasses.dataclass(frozen=True)
class RankedAnswer:
    """What is answered, and why.

    Attributes:
        text: str.
        refused: "input" if what was said is unsafe, "output" if all answers drawn are, or None.
        replies: list of `Reply`, all that were drawn, the highest score first. Empty texts are
            left out; an empty one is answered only if nothing else was drawn.
    """

    text: str
    refused: str | None
    replies: list


class RankedChat(TextGeneration):
    """A chat model with two classifiers at its side: sample-and-rank with a safety filter.

    What the user says is refused if it is unsafe. Otherwise several answers are drawn, those that
    are unsafe are dropped, and of the others the one with the highest `Reply.score` is given. So
    answers `chat`, and what rests on it: conversations and `keras-llm chat`. Calling the task
    continues a text as any `TextGeneration` does, without ranking or filter. A conversation is read
    anew at every turn.

    A classifier finds what is like the texts it learned from, and no more: measure its precision
    and recall on texts of your users before you rely on it.

    Args:
        model: a model from `models.causal_lm`.
        tokenizer: a `tokenizers.Tokenizer` with the model's vocabulary.
        sensibleness: a `TextClassification` with the label "sensible", of texts from `pair`.
        safety: a `TextClassification` with the label "unsafe", of single messages.
        ranking: a `Ranking`. Defaults to `metadata["ranking"]`, where it is kept, or `Ranking()`.
        metadata: dict of JSON values saved with the task, with a chat template.

    Raises:
        InputError: if a classifier has no such label, or there is no chat template.

    References:
        Thoppilan et al., 2022, "LaMDA: Language Models for Dialog Applications".
        Adiwardana et al., 2020, "Towards a Human-like Open-Domain Chatbot" (sample-and-rank).

    Example:
    >>> from keras_llm import models, tokenizers
    >>> tok = tokenizers.WordPiece.train(["how are you", "fine thank you"] * 9, 80)
    >>> size = {"vocabulary_size": tok.vocabulary_size}
    >>> encoder, decoder = (models.preset(name, **size) for name in ("bert-tiny", "llama-tiny"))
    >>> def classifier(*labels):
    ...     return TextClassification(models.text_classifier(encoder, 2), tok, labels)
    >>> template = "{% for m in messages %}{{ m.content }} {% endfor %}"
    >>> task = RankedChat(
    ...     models.causal_lm(decoder),
    ...     tok,
    ...     classifier("random", "sensible"),
    ...     classifier("safe", "unsafe"),
    ...     Ranking(num_candidates=3, threshold=1.0),
    ...     {"chat_template": template},
    ... )
    >>> answer = task.chat("how are you", max_new_tokens=5, seed=1, return_details=True)
    >>> answer.text == answer.replies[0].text
    True
    """

    def __init__(self, model, tokenizer, sensibleness, safety, ranking=None, metadata=None):
        super().__init__(model, tokenizer, metadata)
        _ = self.chat_template
        self.sensibleness = _with_label("sensibleness", sensibleness, SENSIBLE)
        self.safety = _with_label("safety", safety, UNSAFE)
        self.ranking = ranking or Ranking(**self.metadata.get("ranking", {}))
        self.metadata["ranking"] = dataclasses.asdict(self.ranking)

    @classmethod
    def parts(cls, folder):
        return {name: load(pathlib.Path(folder) / name) for name in (_SENSIBLENESS, _SAFETY)}

    def write(self, folder):
        super().write(folder)
        for name in (_SENSIBLENESS, _SAFETY):
            place = pathlib.Path(folder) / name
            place.mkdir(exist_ok=True)
            getattr(self, name).write(place)

    @property
    def generator(self):
        """The chat model without the classifiers, a `TextGeneration`: what exports take."""
        return TextGeneration(self.model, self.tokenizer, self.metadata)

    @staticmethod
    def pair(said, reply):
        """What a sensibleness classifier reads of a message and the reply to it, a str."""
        return f"{reply}\n{said}"  # of what is too long the message is cut, not the reply

    def chat(self, messages, return_details=False, **settings):
        """Answer a conversation.

        Turns that were refused are not read again.

        Args:
            messages: as of `TextGeneration.chat`. What the user says last is filtered.
            return_details: bool. Return a `RankedAnswer` instead of a str.
            **settings: as in calling the task; `num_candidates` takes the place of the ranking's.
                With `temperature=0` one answer is drawn.

        Returns:
            The answer, or the ranking's `refusal`.

        Raises:
            InputError: naming the argument that is wrong.
        """
        for name in _FIXED:
            if name in settings:
                raise InputError(f"`{name}` cannot be had of answers that are ranked.")
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        prompt = self.render(self._without_refused(messages))
        said = messages[-1]["content"]
        refusal = self.ranking.refusal
        if self._probabilities(self.safety, [said], UNSAFE)[0] >= self.ranking.threshold:
            answer = RankedAnswer(refusal, "input", [])
        else:
            replies = self._replies(prompt, said, settings)
            safe = [reply.text for reply in replies if reply.unsafe < self.ranking.threshold]
            if replies and not safe:
                answer = RankedAnswer(refusal, "output", replies)
            else:
                answer = RankedAnswer(safe[0] if safe else "", None, replies)
        return answer if return_details else answer.text

    def stream_chat(self, messages, **settings):
        """The answer of `chat`, in one piece: none of it can be shown before it is judged."""
        return iter([self.chat(messages, **settings)])

    def _replies(self, prompt, said, settings):
        """The `Reply`s to a prompt, the best first."""
        ranking, settings = self.ranking, dict(settings)
        settings.pop("prefix_cache", None)  # a cache of one row; this draws several
        count = settings.pop("num_candidates", ranking.num_candidates)
        count = 1 if settings.get("temperature") == 0 else count_of("num_candidates", count, 1)
        drawn = self(
            prompt, parse_special=True, num_return_sequences=count, return_details=True, **settings
        )
        drawn = [drawn] if count == 1 else drawn
        rows = [(number, row) for number, row in enumerate(drawn) if row.text.strip()]
        if not rows:
            return []
        texts = [row.text for _, row in rows]
        pairs = [self.pair(said, text) for text in texts]
        sensible = self._probabilities(self.sensibleness, pairs, SENSIBLE)
        unsafe = self._probabilities(self.safety, texts, UNSAFE)
        replies = []
        for (number, row), fits, harms in zip(rows, sensible, unsafe, strict=True):
            likely = ranking.likelihood_weight * row.log_probability / row.num_tokens
            score = math.log(max(fits, 1e-30)) + likely
            replies.append(Reply(row.text, fits, harms, score, number))
        return sorted(replies, key=lambda reply: -reply.score)

    def _without_refused(self, messages):
        """The messages without the turns that were answered by the refusal."""
        kept = []
        for message in messages:
            is_refusal = message == {"role": "assistant", "content": self.ranking.refusal}
            if is_refusal and kept and kept[-1].get("role") == "user":
                kept.pop()
            else:
                kept.append(message)
        return kept

    @staticmethod
    def _probabilities(task, texts, label):
        found = task(texts, truncate=True, return_details=True)
        return [row.probabilities[label] for row in found]


def _with_label(name, task, label):
    if not isinstance(task, TextClassification):
        raise InputError(f"`{name}` must be a TextClassification, got {type(task).__name__}.")
    if label not in task.labels:
        raise InputError(f"`{name}` must have the label {label!r}, its labels are {task.labels}.")
    return task
