"""Answer questions with a span of a context (extractive question answering)."""

import dataclasses
from collections.abc import Sequence

import keras

from keras_llm import training
from keras_llm.data.answer_spans import locate_answers
from keras_llm.errors import InputError
from keras_llm.models import HeadModel
from keras_llm.tasks.answer_spans import best_spans
from keras_llm.tasks.answer_windows import answer_windows, window_dataset
from keras_llm.tasks.base import checked_texts, padded_rows
from keras_llm.tasks.fitting import checked_rows
from keras_llm.tasks.head import HeadTask
from keras_llm.tokenizers import Tokenizer
from keras_llm.tokenizers.mask_filling import WHITE_SPACE
from keras_llm.types import JSON, Dataset, Tensor


@dataclasses.dataclass(frozen=True)
class Answer:
    """An answer.

    Attributes:
        text: str.
        start, end: ints, character offsets: the text is `context[start:end]`.
        probability: float, the product of the probabilities of its start and end tokens.
        truncated: bool, whether the question was truncated.
    """

    text: str
    start: int
    end: int
    probability: float
    truncated: bool


class QuestionAnswering(HeadTask):
    """A task that finds the answer to a question in a context.

    The model reads `begin question separators context end`, with the special tokens that the
    tokenizer has. A context that does not fit is split into windows that overlap by half, so there
    is no length limit; the answer is the span of at most `longest_answer` tokens with the highest
    sum of logits in any window. A question may take up to half of the model's `max_length`. Models
    trained on unanswerable questions return "" if the context has no answer.

    Args:
        model: a model from `models.span_qa`.
        tokenizer: a `tokenizers.Tokenizer` with the model's vocabulary.
        metadata: dict of JSON values saved with the task. `num_separators`: int, the number of end
            tokens between question and context (1; RoBERTa uses 2). `longest_answer`: int, tokens
            (30). `unanswerable`: bool (False), whether the begin token means that there is no
            answer.

    Raises:
        InputError: if a value of `metadata` is invalid, `unanswerable` is set and the tokenizer has
            no begin token, or the model's `max_length` is too small.

    Example:
    >>> from keras_llm import models, tokenizers
    >>> context = "Ada was born in London."
    >>> tok = tokenizers.WordPiece.train([context] * 9, 80)
    >>> config = models.preset("bert-tiny", vocabulary_size=tok.vocabulary_size)
    >>> task = QuestionAnswering(models.span_qa(config), tok)
    >>> answer = task(question="Where was Ada born?", context=context, return_details=True)
    >>> answer.text == context[answer.start : answer.end]
    True
    """

    head = "span_qa"

    def __init__(
        self, model: HeadModel, tokenizer: Tokenizer, metadata: JSON | None = None
    ) -> None:
        super().__init__(model, tokenizer, metadata)
        for name, default in (("num_separators", 1), ("longest_answer", 30)):
            value = self.metadata.get(name, default)
            if not isinstance(value, int) or value < 1:
                raise InputError(f'`metadata["{name}"]` must be an int > 0, got {value!r}.')
        if self.unanswerable and not self.begin:
            raise InputError(
                '`metadata["unanswerable"]` requires a tokenizer with a begin token, which '
                "represents the empty answer."
            )
        if self.pair_room < 2:
            raise InputError(
                f"`max_length` of {model.config.max_length} leaves no room for question and "
                "context."
            )

    def dataset(
        self,
        rows: Sequence[tuple[str, str, str]],
        batch_size: int = 32,
        epochs: int = 1,
        seed: int | None = None,
    ) -> Dataset:
        """Convert questions with answers to batches of windows.

        Args:
            rows: list of triples (question, context, answer); the answer occurs in the context, or
                is "" if the context does not have it. Other rows are left out.
            batch_size, epochs, seed: see `Fitting.dataset`.

        Returns:
            A `tf.data.Dataset` of the model's inputs, and `start` and `end`, int32 (B,).

        Raises:
            InputError: if a row is no triple, or no answer occurs in its context.
        """
        rows, _ = locate_answers(checked_rows(rows, ("question", "context", "answer")))
        if not rows:
            raise InputError("no answer occurs in its context.")
        if not self.unanswerable and any(not answer for _, _, answer in rows):
            raise InputError(
                "a row has no answer; to learn that, give the task "
                '`metadata={"unanswerable": True}`.'
            )
        columns, _ = answer_windows(self, rows, seed or 0)
        if not columns["ids"]:
            raise InputError("no answer fits into a window of the model.")
        return window_dataset(self, columns, batch_size, epochs, seed)

    def _objective(self):
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        measures = ["sparse_categorical_accuracy"]
        return training.Trainer(self.model), {
            "loss": {"start": loss, "end": loss},
            "metrics": {"start": measures, "end": measures},
        }

    def _measure(self, rows):
        """`training.evaluate_answers`."""
        rows = checked_rows(rows, ("question", "context", "answer"))
        questions, contexts, answers = map(list, zip(*rows, strict=True))
        return training.evaluate_answers(self(questions, contexts, truncate=True), answers)

    def inputs(
        self,
        token_ids: Tensor,
        lengths: Tensor,
        segment_ids: Tensor | None = None,
        **inputs: Tensor,
    ) -> dict[str, Tensor]:
        """See `HeadTask.inputs`. With two separators, as in RoBERTa, all segment ids are 0."""
        if self.metadata.get("num_separators", 1) > 1:
            segment_ids = None
        return super().inputs(token_ids, lengths, segment_ids, **inputs)

    @property
    def longest_answer(self) -> int:
        """The maximum number of tokens of an answer."""
        return self.metadata.get("longest_answer", 30)

    @property
    def unanswerable(self) -> bool:
        """Whether the answer may be empty, a bool."""
        return bool(self.metadata.get("unanswerable", False))

    @property
    def separators(self) -> list[int]:
        """The token ids between question and context, a list."""
        return self.end * self.metadata.get("num_separators", 1)

    @property
    def pair_room(self) -> int:
        """The maximum number of tokens of question and context together."""
        return self.room - len(self.separators)

    @property
    def question_room(self) -> int:
        """The maximum number of tokens of a question."""
        return self.pair_room // 2

    def __call__(
        self,
        question: str | list[str],
        context: str | list[str],
        batch_size: int = 8,
        truncate: bool = False,
        return_details: bool = False,
    ) -> str | Answer | list[str] | list[Answer]:
        """Answer one or several questions.

        Args:
            question: non-empty str, or list of them.
            context: str, or list of str of the same length, the text that contains the answer.
            batch_size: int > 0, the number of pairs per batch.
            truncate: bool. Whether to truncate questions that are too long instead of raising an
                error.
            return_details: bool. Whether to return `Answer` objects instead of texts.

        Returns:
            The answer, a span of the context, or "" if there is none: a str for a str, a list for a
            list.

        Raises:
            InputError: if an argument is invalid, naming it.
        """
        one = isinstance(question, str)
        questions = checked_texts("question", [question] if isinstance(question, str) else question)
        contexts = checked_texts("context", [context] if isinstance(context, str) else context)
        if len(questions) != len(contexts):
            raise InputError(
                f"`context` must have as many texts as `question`, {len(questions)}, got "
                f"{len(contexts)}."
            )
        rows = self.tokenizer.encode_batch(list(questions))
        is_cut = [len(row) > self.question_room for row in rows]
        if truncate:
            rows = [row[: self.question_room] for row in rows]
        longest = self.model.config.max_length
        question_ids, lengths = padded_rows(
            "question", rows, self.question_room, longest, self.tokenizer.pad_id
        )
        encoded = [self.tokenizer.encode_with_offsets(text) for text in contexts]

        def call(context_ids, context_lengths, batch):
            return best_spans(
                self, question_ids[batch], lengths[batch], context_ids, context_lengths
            )

        answers = self.in_batches([ids for ids, _ in encoded], batch_size, call)
        results = [
            _answer(text, offsets, **span, truncated=cut)
            for text, (_, offsets), span, cut in zip(
                contexts, encoded, answers, is_cut, strict=True
            )
        ]
        if not return_details:
            results = [result.text for result in results]
        return results[0] if one else results


def _answer(context, offsets, start, end, probability, found, truncated):
    if not found:
        return Answer("", 0, 0, float(probability), truncated)
    begin, finish = offsets[start][0], offsets[end][1]
    text = context[begin:finish]
    begin += len(text) - len(text.lstrip(WHITE_SPACE))
    text = text.strip(WHITE_SPACE)
    return Answer(text, begin, begin + len(text), float(probability), truncated)
