"""Answer questions with a span of a text."""

import dataclasses

from keras_llm.errors import InputError
from keras_llm.tasks.answer_spans import best_spans
from keras_llm.tasks.base import checked_texts, padded_rows
from keras_llm.tasks.head import HeadTask
from keras_llm.tokenizers.mask_filling import WHITE_SPACE


@dataclasses.dataclass(frozen=True)
class Answer:
    """An answer.

    Attributes:
        text: str.
        start, end: ints, so that it is `context[start:end]`.
        probability: float, of its first token being the first times of its last being the last.
        truncated: bool, whether the question was cut.
    """

    text: str
    start: int
    end: int
    probability: float
    truncated: bool


class QuestionAnswering(HeadTask):
    """A model that finds the answer to a question in a text.

    Question and context go in as `begin question separators context end`, as far as the tokenizer
    has such tokens. A context that does not fit is read in windows that overlap by half, and the
    answer is the span of at most `longest_answer` tokens with the highest sum of logits in any of
    them; so no context is too long. A question may take half of the room; of a longer one the
    first tokens are kept. A model that was trained to say so answers "" where the context has no
    answer.

    Args:
        model: a model from `models.span_qa`.
        tokenizer: a `tokenizers.Tokenizer` with the model's vocabulary.
        metadata: dict of JSON values saved with the task. `num_separators` is how many end tokens
            stand between question and context (1; RoBERTa has 2), `longest_answer` an int (30),
            `unanswerable` a bool (False), whether the begin token stands for no answer.

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

    def __init__(self, model, tokenizer, metadata=None):
        super().__init__(model, tokenizer, metadata)
        for name, default in (("num_separators", 1), ("longest_answer", 30)):
            value = self.metadata.get(name, default)
            if not isinstance(value, int) or value < 1:
                raise InputError(f'`metadata["{name}"]` must be an int > 0, got {value!r}.')
        if self.unanswerable and not self.begin:
            raise InputError(
                '`metadata["unanswerable"]` needs a tokenizer with a begin token, which stands for '
                "no answer."
            )
        if self.pair_room < 2:
            raise InputError(f"`max_length` of {model.config.max_length} has no room for a pair.")

    @property
    def longest_answer(self):
        """The most tokens of an answer."""
        return self.metadata.get("longest_answer", 30)

    @property
    def unanswerable(self):
        """Whether the answer may be "", a bool."""
        return bool(self.metadata.get("unanswerable", False))

    @property
    def separators(self):
        """The ids between question and context, a list."""
        return self.end * self.metadata.get("num_separators", 1)

    @property
    def pair_room(self):
        """How many tokens of question and context there is room for."""
        return self.room - len(self.separators)

    @property
    def question_room(self):
        """How many tokens of a question there is room for."""
        return self.pair_room // 2

    def __call__(self, question, context, batch_size=8, truncate=False, return_details=False):
        """Answer one question or several.

        Args:
            question: str, or list of str. None may be empty.
            context: str, or list of as many str, where the answers are looked for.
            batch_size: int > 0. How many pairs go through the model at once.
            truncate: bool. Whether of a question that is too long the first tokens are taken,
                instead of refusing it.
            return_details: bool. Return `Answer`s instead of texts.

        Returns:
            The answer, a part of the context, or "" where there is none: a str for a str and a
            list for a list.

        Raises:
            InputError: naming the argument that is wrong.
        """
        one = isinstance(question, str)
        questions = checked_texts("question", [question] if one else question)
        contexts = checked_texts("context", [context] if isinstance(context, str) else context)
        if len(questions) != len(contexts):
            raise InputError(
                f"`context` must have as many texts as `question`, {len(questions)}; got "
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

        found = self.in_batches([ids for ids, _ in encoded], batch_size, call)
        results = [
            _answer(text, offsets, **span, truncated=cut)
            for text, (_, offsets), span, cut in zip(contexts, encoded, found, is_cut, strict=True)
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
