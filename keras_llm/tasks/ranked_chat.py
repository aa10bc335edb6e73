"""Chat with sample-and-rank and a safety filter."""

import dataclasses
import math
import pathlib
from collections.abc import Iterator
from typing import Any

from keras_llm.errors import InputError
from keras_llm.models import CausalLM
from keras_llm.tasks.base import Task, load, read_config
from keras_llm.tasks.settings import count_of
from keras_llm.tasks.text_classification import TextClassification
from keras_llm.tasks.text_generation import TextGeneration
from keras_llm.tokenizers import Tokenizer
from keras_llm.types import JSON, PathLike

SENSIBLE, UNSAFE = "sensible", "unsafe"
_SENSIBLENESS, _SAFETY = "sensibleness", "safety"  # the folders of the classifiers
_FIXED = ("num_return_sequences", "num_alternatives", "scorer")


@dataclasses.dataclass(frozen=True)
class Ranking:
    """The options of a `RankedChat`.

    Args:
        num_candidates: int > 0, the number of answers to sample. LaMDA uses 16.
        threshold: float in (0, 1]. Texts with at least this probability of being unsafe are
            refused.
        likelihood_weight: float >= 0, see `Reply.score`.
        refusal: str, not empty, the answer to refused messages.

    Raises:
        InputError: if an argument is invalid, naming it.
    """

    num_candidates: int = 8
    threshold: float = 0.5
    likelihood_weight: float = 1.0
    refusal: str = "I would rather not talk about that."

    def __post_init__(self) -> None:
        count_of("num_candidates", self.num_candidates, 1)
        for name, ok, rule in (
            ("threshold", 0 < self.threshold <= 1, "in (0, 1]"),
            ("likelihood_weight", self.likelihood_weight >= 0, ">= 0"),
            ("refusal", isinstance(self.refusal, str) and self.refusal.strip(), "a non-empty str"),
        ):
            if not ok:
                raise InputError(f"`{name}` must be {rule}, got {getattr(self, name)!r}.")


@dataclasses.dataclass(frozen=True)
class Reply:
    """A sampled answer.

    Attributes:
        text: str.
        sensible: float, the probability that it is a sensible answer to the user's message.
        unsafe: float, the probability that it is unsafe.
        score: float, `log(sensible) + likelihood_weight * log_probability`, with the mean
            log-probability of its tokens; in nats.
        number: int, its index among the samples.
    """

    text: str
    sensible: float
    unsafe: float
    score: float
    number: int


@dataclasses.dataclass(frozen=True)
class RankedAnswer:
    """The answer of a `RankedChat` with all candidates.

    Attributes:
        text: str.
        refused: "input" if the user's message is unsafe, "output" if all sampled answers are
            unsafe, or None.
        replies: list of `Reply`, all samples, highest score first. Empty samples are dropped; the
            answer is empty only if all samples are.
    """

    text: str
    refused: str | None
    replies: list[Reply]


class RankedChat(TextGeneration):
    """A chat model with two classifiers: sample-and-rank with a safety filter.

    If the user's message is unsafe, it is refused. Otherwise several answers are sampled, unsafe
    ones are dropped, and the one with the highest `Reply.score` is returned. This applies to `chat`
    and everything that uses it: conversations and `keras-llm chat`. Calling the task continues a
    text like any `TextGeneration`, without ranking or filter. A conversation does not use a prefix
    cache: the model processes all messages at each turn.

    A classifier only detects texts similar to its training data: measure its precision and recall
    on texts of your users before you rely on it.

    Args:
        model: a model from `models.causal_lm`.
        tokenizer: a `tokenizers.Tokenizer` with the model's vocabulary.
        sensibleness: a `TextClassification` with the label "sensible", for texts from `pair`.
        safety: a `TextClassification` with the label "unsafe", for single messages.
        ranking: a `Ranking`. Defaults to `metadata["ranking"]`, where it is saved, or `Ranking()`.
        metadata: dict of JSON values saved with the task, including a chat template.

    Raises:
        InputError: if a classifier lacks its label, or there is no chat template.

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

    def __init__(
        self,
        model: CausalLM,
        tokenizer: Tokenizer,
        sensibleness: TextClassification,
        safety: TextClassification,
        ranking: Ranking | None = None,
        metadata: JSON | None = None,
    ) -> None:
        super().__init__(model, tokenizer, metadata)
        _ = self.chat_template
        self.sensibleness = _with_label("sensibleness", sensibleness, SENSIBLE)
        self.safety = _with_label("safety", safety, UNSAFE)
        self.ranking = ranking or Ranking(**self.metadata.get("ranking", {}))
        self.metadata["ranking"] = dataclasses.asdict(self.ranking)

    @classmethod
    def parts(cls, folder: PathLike) -> dict[str, Task]:
        folders = {name: pathlib.Path(folder) / name for name in (_SENSIBLENESS, _SAFETY)}
        for path in folders.values():
            if read_config(path)["task"] == cls.__name__:  # a link to the folder would never end
                raise InputError(f"{path} must be a TextClassification, got a {cls.__name__}.")
        return {name: load(path) for name, path in folders.items()}

    def write(self, folder: PathLike) -> None:
        super().write(folder)
        for name in (_SENSIBLENESS, _SAFETY):
            subfolder = pathlib.Path(folder) / name
            subfolder.mkdir(exist_ok=True)
            getattr(self, name).write(subfolder)

    @property
    def generator(self) -> TextGeneration:
        """The chat model without the classifiers, a `TextGeneration`, which can be exported."""
        return TextGeneration(self.model, self.tokenizer, self.metadata)

    @staticmethod
    def pair(said: str, reply: str) -> str:
        """Return the input of the sensibleness classifier for a message and its reply, a str."""
        return f"{reply}\n{said}"  # the reply comes first, so that truncation cuts the message

    def chat(
        self, messages: str | list[JSON], return_details: bool = False, **settings: Any
    ) -> str | RankedAnswer:
        """Generate the answer to a conversation.

        Refused turns are removed from the prompt.

        Args:
            messages: see `TextGeneration.chat`. The safety filter checks the last message.
            return_details: bool. Whether to return a `RankedAnswer` instead of a str.
            **settings: see `TextGeneration.chat`; `num_candidates` overrides that of the
                ranking. With `temperature=0` only one answer is sampled.

        Returns:
            The answer, or the ranking's `refusal`.

        Raises:
            InputError: if an argument is invalid, naming it.
        """
        for name in _FIXED:
            if name in settings:
                raise InputError(f"`{name}` is not supported in a RankedChat.")
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        prompt, settings = self._chat_prompt(self._without_refused(messages), settings)
        said = messages[-1].get("content")
        if not isinstance(said, str):
            raise InputError(
                f'`messages`: the last "content" must be a str for the safety filter, got {said!r}.'
            )
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

    def stream_chat(self, messages: str | list[JSON], **settings: Any) -> Iterator[str]:
        """Yield the answer of `chat` as one piece, because only whole answers can be ranked."""
        answer: Any = self.chat(messages, **settings)
        return iter([answer])

    def _replies(self, prompt, said, settings):
        """Return the candidate `Reply`s to a prompt, best first."""
        ranking, settings = self.ranking, dict(settings)
        settings.pop("prefix_cache", None)  # a prefix cache supports only one row
        count = settings.pop("num_candidates", ranking.num_candidates)
        count = 1 if settings.get("temperature") == 0 else count_of("num_candidates", count, 1)
        samples = self(
            prompt, parse_special=True, num_return_sequences=count, return_details=True, **settings
        )
        samples = [samples] if count == 1 else samples
        rows = [(number, row) for number, row in enumerate(samples) if row.text.strip()]
        if not rows:
            return []
        texts = [row.text for _, row in rows]
        pairs = [self.pair(said, text) for text in texts]
        sensible = self._probabilities(self.sensibleness, pairs, SENSIBLE)
        unsafe = self._probabilities(self.safety, texts, UNSAFE)
        replies = []
        for (number, row), p_sensible, p_unsafe in zip(rows, sensible, unsafe, strict=True):
            likelihood = ranking.likelihood_weight * row.log_probability / row.num_tokens
            score = math.log(max(p_sensible, 1e-30)) + likelihood
            replies.append(Reply(row.text, p_sensible, p_unsafe, score, number))
        return sorted(replies, key=lambda reply: -reply.score)

    def _without_refused(self, messages):
        """Return the messages without refused turns."""
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
        results = task(texts, truncate=True, return_details=True)
        return [result.probabilities[label] for result in results]


def _with_label(name, task, label):
    if not isinstance(task, TextClassification):
        raise InputError(f"`{name}` must be a TextClassification, got {type(task).__name__}.")
    if label not in task.labels:
        raise InputError(f"`{name}` must have the label {label!r}, got labels {task.labels}.")
    return task
