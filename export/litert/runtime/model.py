"""Run an exported file with LiteRT and its tokenizer, without TensorFlow or Keras."""

import numbers
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from keras_llm.errors import InputError
from keras_llm.export.litert import file_format
from keras_llm.export.litert.runtime import heads
from keras_llm.export.litert.runtime.backends import open_runtime
from keras_llm.export.litert.runtime.decoder import DecoderSteps
from keras_llm.export.litert.runtime.manifest import check_signatures
from keras_llm.export.sampling import Sampling, choose
from keras_llm.tokenizers import ChatTemplate
from keras_llm.types import JSON, PathLike

_NEVER = np.float32(-1e30)


class LiteRTModel:
    """A model exported with `export.litert` or `export.litert_lm`, run with LiteRT on the CPU.

    The available methods depend on the exported task: `generate`, `stream` and `chat` for
    `TextGeneration`, `translate` for `Translation`, `classify` for `TextClassification`, `tag` for
    `TokenClassification`, `answer` for `QuestionAnswering`, `embed` for `TextEmbedding`, `regress`
    for `TextRegression`, `fill_mask` for `MaskedLanguageModel`.

    Args:
        path: str or path of the `.tflite` or `.litertlm` file; no other file is needed.
        num_threads: int > 0, or None for one thread for each core, at most 4.
        runtime: "compiled" for LiteRT's CompiledModel, which keeps the key-value cache in its own
            buffers; "interpreter" for its interpreter; None for the first one that is installed.
        xnnpack: bool. Whether to use XNNPACK for the ops that it supports.

    Attributes:
        task: str. Class name of the exported task.
        tokenizer: its `tokenizers.Tokenizer`.
        max_length: int. Maximum number of tokens of a text, or of a prompt and its continuation
            together.
        manifest: dict. Metadata stored in the file.
        runtime: the `CompiledRuntime` or `InterpreterRuntime` that runs the file.

    Raises:
        InputError: if an argument is invalid, the file is missing or damaged, or it was not
            exported by this package.
    """

    def __init__(
        self,
        path: PathLike,
        num_threads: int | None = None,
        runtime: str | None = None,
        xnnpack: bool = True,
    ) -> None:
        if num_threads is not None and (
            not isinstance(num_threads, numbers.Integral) or num_threads < 1
        ):
            raise InputError(f"`num_threads` must be a positive int, got {num_threads!r}.")
        self.manifest, self.tokenizer = file_format.read(path)
        self.task = self.manifest["task"]
        self.max_length = self.manifest["max_length"]
        self._file_path = path
        self._cached: dict[Any, Any] = {}
        self.runtime = open_runtime(path, *self.manifest["model"], runtime, num_threads, xnnpack)
        check_signatures(path, self.manifest, self.runtime)

    def signatures(self) -> dict[str, dict[str, dict[str, str]]]:
        """Return a dict from signature name to its inputs and outputs, as "dtype[shape]"."""

        def rows(tensors):
            return {name: f"{dtype.name}{list(shape)}" for name, (dtype, shape) in tensors.items()}

        runtime = self.runtime
        return {
            name: {"inputs": rows(runtime.inputs[name]), "outputs": rows(runtime.outputs[name])}
            for name in runtime.inputs
        }

    def generate(self, prompt: str, max_new_tokens: int = 64, **settings: Any) -> str:
        """Generate a continuation of a prompt.

        Args:
            prompt: str, not empty.
            max_new_tokens: int > 0.
            temperature, top_k, top_p, min_p: as in calls of `TextGeneration`.
            seed: int32, or None for a random one. The task generates the same text for the same
                settings and seed.
            parse_special: bool. Whether to encode special tokens in the prompt as such.

        Returns:
            The new text, a str.

        Raises:
            InputError: if an argument is invalid, the prompt is too long, or the file has another
                task.
        """
        self._require("TextGeneration", "generate")
        tokens = [token for token, _ in self.steps(prompt, max_new_tokens, **settings)]
        last_id = self.last_id(prompt, settings.get("parse_special", False))
        new_ids = [token for token in tokens if token is not None]
        return self.tokenizer.decode_continuation(new_ids, last_id)

    def stream(self, prompt: str, max_new_tokens: int = 64, **settings: Any) -> Iterator[str]:
        """Iterate over the text of `generate` in pieces that end at character boundaries."""
        self._require("TextGeneration", "stream")
        steps = self.steps(prompt, max_new_tokens, **settings)
        tokens = (token for token, _ in steps if token is not None)
        last_id = self.last_id(prompt, settings.get("parse_special", False))
        return self.tokenizer.decode_stream(tokens, last_id)

    def chat(self, messages: str | list[JSON], max_new_tokens: int = 64, **settings: Any) -> str:
        """Generate the next message of a conversation.

        Args:
            messages: str, a user message; or list of dicts with "role" and "content".
            max_new_tokens, **settings: as in `generate`; and variables of the chat template, as in
                `TextGeneration.chat`.

        Returns:
            The answer, a str.

        Raises:
            InputError: if the model has no chat template, or as in `generate`.
        """
        self._require("TextGeneration", "chat")
        template = self.manifest.get("chat_template")
        if not template:
            raise InputError("this model has no chat template; call `generate` with a prompt.")
        if isinstance(messages, str):
            messages = [{"role": "user", "content": messages}]
        tokenizer = self.tokenizer
        bos, eos = (tokenizer.token(index) for index in (tokenizer.bos_id, tokenizer.eos_id))
        chat_template = ChatTemplate(template, bos, eos)
        names = set(settings) & set(chat_template.variables) - set(Sampling._fields)
        prompt = chat_template.render(messages, **{name: settings.pop(name) for name in names})
        return self.generate(prompt, max_new_tokens, parse_special=True, **settings)

    def translate(self, text: str, max_new_tokens: int = 128, **settings: Any) -> str:
        """Translate a text.

        Args:
            text: str, not empty.
            max_new_tokens, temperature, top_k, top_p, min_p, seed: as in `generate`, but
                `temperature` defaults to 0.

        Returns:
            The new text, a str.

        Raises:
            InputError: as in `generate`.
        """
        self._require("Translation", "translate")
        settings = {"temperature": 0.0, **settings}  # the task's default
        tokens = [token for token, _ in self.steps(text, max_new_tokens, **settings)]
        return self.tokenizer.decode([token for token in tokens if token is not None])

    def classify(self, text: str, truncate: bool = False) -> JSON:
        """Classify a text.

        Args:
            text: str, not empty.
            truncate: bool. Whether to truncate a text that is too long, instead of raising
                InputError.

        Returns:
            A dict of `label`, `probability`, `probabilities` (a dict of all labels) and
            `truncated`, like the fields of `Classification`.
        """
        self._require("TextClassification", "classify")
        return heads.classify(self, text, truncate)

    def tag(self, text: str, truncate: bool = False) -> JSON:
        """Label the words of a text; the arguments are those of `classify`.

        Returns:
            A dict of `words`, each a dict with the fields of `TaggedWord`, and `truncated`.
        """
        self._require("TokenClassification", "tag")
        return heads.tag(self, text, truncate)

    def regress(self, text: str, truncate: bool = False) -> JSON:
        """Predict a number for a text; the arguments are those of `classify`.

        Returns:
            A dict of `value` and `truncated`.
        """
        self._require("TextRegression", "regress")
        return heads.regress(self, text, truncate)

    def embed(self, text: str, truncate: bool = False) -> np.ndarray:
        """Return the embedding of a text, float32 (D,); the arguments are those of `classify`."""
        self._require("TextEmbedding", "embed")
        return heads.embed(self, text, truncate)

    def answer(self, question: str, context: str, truncate: bool = False) -> JSON:
        """Find the answer to a question in a context.

        Args:
            question, context: str, not empty. The context can have any length.
            truncate: bool. Whether to truncate a question that is too long.

        Returns:
            A dict with the fields of `Answer`.
        """
        self._require("QuestionAnswering", "answer")
        return heads.answer(self, question, context, truncate)

    def fill_mask(self, text: str, top_k: int = 5, truncate: bool = False) -> JSON:
        """Fill the mask tokens of a text.

        Args:
            text: str with at least one mask token.
            top_k: int > 0. Number of predictions for each mask token.
            truncate: as in `classify`.

        Returns:
            A dict with the fields of `Filling`.
        """
        self._require("MaskedLanguageModel", "fill_mask")
        if not isinstance(top_k, numbers.Integral) or top_k < 1:
            raise InputError(f"`top_k` must be a positive int, got {top_k!r}.")
        return heads.fill_mask(self, text, top_k, truncate)

    def cached(self, name: str, make: Callable[[], Any]) -> Any:
        """Return the result of `make`, which is called only the first time."""
        if name not in self._cached:
            self._cached[name] = make()
        return self._cached[name]

    def steps(
        self, text: str, max_new_tokens: int, parse_special: bool = False, **settings: Any
    ) -> Iterator[tuple[int | None, np.ndarray]]:
        """Iterate over `(token, logits)` of each decoding step.

        A token is an int, or None at the end of the text; the logits are float32 (V,). The
        arguments are those of `generate` or `translate`; they are checked before the first step.
        """
        name = "text" if self.task == "Translation" else "prompt"
        if not isinstance(text, str) or not text:
            raise InputError(f"`{name}` must be a non-empty str, got {text!r}.")
        budget, sampling = _budget(max_new_tokens), _sampling(settings)
        if self.task == "Translation":
            source = [*self.tokenizer.encode(text), self.tokenizer.eos_id]
            self._check_room(name, source, self.manifest["encoder_length"])
            return self._decode([self.manifest["start_id"]], budget, sampling, source)
        token_ids = self.tokenizer.encode_prompt(text, parse_special)
        if not token_ids:
            raise InputError(f"`{name}` has no tokens.")
        self._check_room(name, token_ids, self.max_length - 1)
        size = self.manifest.get("vocabulary_size", self.tokenizer.vocabulary_size)
        if max(token_ids) >= size:
            token = self.tokenizer.token(max(token_ids))
            raise InputError(
                f"`{name}` has the token {token!r}, for which the model has no embedding."
            )
        return self._decode(token_ids, budget, sampling)

    def last_id(self, text: str, parse_special: bool = False) -> int:
        """Return the token that the new tokens of `steps` follow."""
        if self.task == "Translation":
            return int(self.manifest["start_id"])
        return self.tokenizer.encode_prompt(text, parse_special)[-1]

    def _decode(self, token_ids, budget, sampling, source=None):
        decoder = DecoderSteps(self.runtime, self.manifest)
        if source is not None:
            decoder.encode(source)
        decoder.read(token_ids[:-1])
        token, first = token_ids[-1], len(token_ids)
        for step in range(min(budget, self.max_length - first)):
            logits = decoder.step(token, first - 1 + step)
            token = choose(self._without_spare(logits), sampling, step)
            if token in self.manifest["end_token_ids"]:
                yield None, logits
                return
            yield token, logits

    def _check_room(self, name, token_ids, longest):
        if len(token_ids) > longest:
            raise InputError(
                f"`{name}` has {len(token_ids)} tokens, including special tokens; the file takes "
                f"at most {longest}."
            )

    def _without_spare(self, logits):
        """Mask the logits of ids outside the tokenizer's vocabulary."""
        if len(logits) == self.tokenizer.vocabulary_size:
            return logits
        logits = logits.copy()
        logits[self.tokenizer.vocabulary_size :] = _NEVER
        return logits

    def _require(self, task, method):
        if self.task != task:
            raise InputError(f"`{method}` needs a {task}; {self._file_path} has a {self.task}.")


def _budget(max_new_tokens):
    if not isinstance(max_new_tokens, numbers.Integral) or max_new_tokens < 1:
        raise InputError(f"`max_new_tokens` must be a positive int, got {max_new_tokens!r}.")
    return max_new_tokens


def _sampling(settings):
    unknown = sorted(set(settings) - set(Sampling._fields))
    if unknown:
        raise InputError(
            f"unknown setting `{unknown[0]}`; must be one of {', '.join(Sampling._fields)}, "
            "parse_special."
        )
    if settings.get("seed") is None:
        settings = {**settings, "seed": random.getrandbits(31)}
    return Sampling(**settings).validate()
