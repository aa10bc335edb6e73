"""Define and validate model configs: frozen dataclasses of sizes and options."""

import dataclasses
import numbers
from typing import Self

from keras_llm.errors import InputError
from keras_llm.json_files import check_arguments, short_repr
from keras_llm.layers.activations import get_activation
from keras_llm.layers.alibi import Alibi
from keras_llm.layers.relative import RelativeBias
from keras_llm.layers.rotary import Rotary
from keras_llm.types import JSON

_POSITIONS = {"rotary": Rotary, "alibi": Alibi, "relative": RelativeBias}
_ADDED_POSITIONS = ("learned", "sinusoidal")
_SIZES = (
    "vocabulary_size",
    "num_layers",
    "hidden_dim",
    "num_heads",
    "intermediate_dim",
    "max_length",
)
_OBJECTIVES = ("skip_gram", "cbow", "glove")
_POSITIVE_OR_NONE = (
    "logit_soft_cap",
    "final_soft_cap",
    "embedding_scale",
    "logit_scale",
    "attention_scale",
)


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """The fields that `CausalLMConfig`, `EncoderConfig` and `Seq2SeqConfig` share.

    Args:
        vocabulary_size: int > 0. V.
        num_layers: int > 0. L blocks.
        hidden_dim: int > 0. D.
        num_heads: int > 0. N query heads.
        intermediate_dim: int > 0. F, the feed-forward width.
        max_length: int > 1. Maximum sequence length, including new tokens.
        num_key_value_heads: int or None. K; must divide N. None means N.
        head_dim: int or None. H. None means D / N.
        position: `Rotary(...)`, `Alibi(...)`, `RelativeBias(...)`, `"learned"`, `"sinusoidal"`,
            or None for no positions.
        norm: "layer" or "rms".
        norm_epsilon: float > 0. Epsilon of the norms.
        activation: name of a Keras activation, or "gelu_tanh".
        gated: bool. Whether the feed-forward network is gated.
        sliding_window: int or None. Attention covers fewer than this many positions back.
        logit_soft_cap: float or None. Soft cap of the attention scores.
        final_soft_cap: float or None. Soft cap of the logits.
        qk_norm: bool. RMS-normalize query and key heads.
        use_bias: bool. Whether dense layers have biases.
        feed_forward_bias: bool or None. Whether those of feed-forward networks do. None means
            `use_bias`.
        output_bias: bool or None. Whether the output projections of attention do. None means
            `use_bias`.
        tie_embeddings: bool. Whether the head reuses the token embedding.
        dropout: float in [0, 1). Dropout rate.
        initializer_range: float > 0. Standard deviation of the initial weights.
        norm_position: "pre", "post" (after each residual sum) or "sandwich" (before and after
            attention and feed-forward, within the sum).
        parallel_residual: bool. Attention and feed-forward read the same input.
        window_pattern: str of "S" (windowed) and "L" (full) layers, repeated over the layers,
            e.g. "SSSL"; "LS" alternates full and banded attention as in GPT-3. None means
            that all layers use the `sliding_window`.
        local_position: position option of the windowed layers. None means `position`.
        num_sink_tokens: int. First positions that stay visible with a sliding window.
        learned_sinks: bool. Whether a head may attend to nothing (see `layers.MultiHeadAttention`).
        attention_scale: float or None. Factor of the scores; None means `1 / sqrt(H)`.
        embedding_scale: float or None. Factor of the token embeddings.
        logit_scale: float or None. Factor of the hidden states before the head.
        num_experts: int. 0 for dense feed-forward networks, otherwise the size of a
            `layers.MixtureOfExperts` with `experts_per_token`, `num_shared_experts`,
            `load_balance_loss` and `router_z_loss`.

    Raises:
        InputError: if an argument is invalid; the message names it.
    """

    vocabulary_size: int
    num_layers: int
    hidden_dim: int
    num_heads: int
    intermediate_dim: int
    max_length: int
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    position: Rotary | Alibi | RelativeBias | str | None = Rotary()  # noqa: RUF009, it is frozen
    norm: str = "rms"
    norm_epsilon: float = 1e-5
    activation: str = "silu"
    gated: bool = True
    sliding_window: int | None = None
    logit_soft_cap: float | None = None
    final_soft_cap: float | None = None
    qk_norm: bool = False
    use_bias: bool = False
    tie_embeddings: bool = True
    dropout: float = 0.0
    initializer_range: float = 0.02
    norm_position: str = "pre"
    parallel_residual: bool = False
    window_pattern: str | None = None
    local_position: Rotary | Alibi | None = None
    num_sink_tokens: int = 0
    learned_sinks: bool = False
    attention_scale: float | None = None
    embedding_scale: float | None = None
    logit_scale: float | None = None
    num_experts: int = 0
    experts_per_token: int = 2
    num_shared_experts: int = 0
    load_balance_loss: float = 0.01
    router_z_loss: float = 0.001
    feed_forward_bias: bool | None = None
    output_bias: bool | None = None

    def __post_init__(self) -> None:
        check = self._check
        for name in _SIZES:
            value = getattr(self, name)
            check(isinstance(value, int) and value > 0, name, "a positive int")
        check(self.max_length > 1, "max_length", "at least 2")
        self._fill("num_key_value_heads", self.num_heads)
        heads = self.num_key_value_heads
        check(
            heads is not None and heads > 0 and self.num_heads % heads == 0,
            "num_key_value_heads",
            f"a divisor of num_heads={self.num_heads}",
        )
        if self.head_dim is None:
            check(
                self.hidden_dim % self.num_heads == 0,
                "num_heads",
                f"a divisor of hidden_dim={self.hidden_dim} when `head_dim` is not given",
            )
            self._fill("head_dim", self.hidden_dim // self.num_heads)
        check(self.head_dim is not None and self.head_dim > 0, "head_dim", "a positive int")
        self._check_positions()
        self._check_window()
        check(self.norm in ("layer", "rms"), "norm", '"layer" or "rms"')
        check(self.norm_epsilon > 0, "norm_epsilon", "> 0")
        check(
            self.norm_position in ("pre", "post", "sandwich"),
            "norm_position",
            '"pre", "post" or "sandwich"',
        )
        check(
            not self.parallel_residual or self.norm_position != "post",
            "parallel_residual",
            'False when norm_position="post"',
        )
        try:
            get_activation(self.activation)
            is_valid = isinstance(self.activation, str)
        except ValueError:
            is_valid = False
        check(is_valid, "activation", 'the name of a Keras activation or "gelu_tanh"')
        check(0 <= self.dropout < 1, "dropout", "in [0, 1)")
        check(self.initializer_range > 0, "initializer_range", "> 0")
        for name in _POSITIVE_OR_NONE:
            value = getattr(self, name)
            is_number = isinstance(value, numbers.Real)
            check(value is None or (is_number and value > 0), name, "positive or None")
        check(self.num_experts == 0 or self.num_experts > 1, "num_experts", "0 or at least 2")
        check(
            not self.num_experts or 1 <= self.experts_per_token <= self.num_experts,
            "experts_per_token",
            f"in 1 .. num_experts={self.num_experts}",
        )

    def _check(self, ok: object, name: str, rule: str) -> None:
        if not ok:
            raise InputError(
                f"{type(self).__name__}: `{name}` must be {rule}, "
                f"got {short_repr(getattr(self, name))}."
            )

    def _fill(self, name, value):
        if getattr(self, name) is None:
            object.__setattr__(self, name, value)

    def _check_positions(self) -> None:
        self._check(
            self.position in (None, *_ADDED_POSITIONS)
            or isinstance(self.position, tuple(_POSITIONS.values())),
            "position",
            'Rotary(...), Alibi(...), RelativeBias(...), "learned", "sinusoidal" or None',
        )
        self._check(
            self.local_position is None
            or (self.sliding_window and isinstance(self.local_position, (Rotary, Alibi))),
            "local_position",
            "Rotary(...) or Alibi(...) with a `sliding_window`, or None",
        )
        assert self.head_dim is not None  # filled before
        for option in (self.position, self.local_position):
            if isinstance(option, Rotary):
                rotated = int(self.head_dim * option.fraction)
                self._check(
                    rotated % 2 == 0, "head_dim", "such that an even number of features is rotated"
                )

    def _check_window(self) -> None:
        window = self.sliding_window
        self._check(
            window is None or (isinstance(window, int) and window > 0),
            "sliding_window",
            "a positive int or None",
        )
        pattern = self.window_pattern
        self._check(
            pattern is None
            or (isinstance(pattern, str) and pattern and not set(pattern) - {"S", "L"}),
            "window_pattern",
            'a string of "S" and "L", or None',
        )
        self._check(
            pattern is None or "S" not in pattern or self.sliding_window is not None,
            "window_pattern",
            'without "S" when no `sliding_window` is given',
        )
        self._check(
            self.num_sink_tokens == 0 or (self.num_sink_tokens > 0 and self.sliding_window),
            "num_sink_tokens",
            "0, or positive with a `sliding_window`",
        )

    def window(self, layer: int) -> int | None:
        """Return the sliding window of a layer, an int or None."""
        pattern = self.window_pattern or "S"
        return self.sliding_window if pattern[layer % len(pattern)] == "S" else None

    def attention_position(self, layer: int) -> Rotary | Alibi | None:
        """Return the position option of a layer's attention, or None.

        A `RelativeBias` belongs to the model, not to a layer.
        """
        position = self.position
        if self.window(layer) and self.local_position is not None:
            position = self.local_position
        return position if isinstance(position, (Rotary, Alibi)) else None

    def to_dict(self) -> JSON:
        """Return plain JSON types that `from_dict` reads back."""
        row = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        for field in ("position", "local_position"):
            for name, option in _POSITIONS.items():
                if isinstance(row[field], option):
                    row[field] = {name: row[field].get_config()}
        return row

    @classmethod
    def from_dict(cls, row: JSON) -> Self:
        """Rebuild a config from the output of `to_dict`.

        Raises:
            InputError: if a field is unknown or missing, or its value has another type.
        """
        row = dict(row)
        for field in ("position", "local_position"):
            if isinstance(row.get(field), dict):
                row[field] = _position_from_dict(row[field], f"{cls.__name__}: `{field}`")
        return cls(**_known_fields(cls, row))


@dataclasses.dataclass(frozen=True)
class CausalLMConfig(TransformerConfig):
    """The config of a decoder-only language model, with the fields of `TransformerConfig`."""


@dataclasses.dataclass(frozen=True)
class EncoderConfig(TransformerConfig):
    """The config of an encoder: `TransformerConfig` with BERT's defaults and two more fields.

    Args:
        num_segments: int. Number of segment types (token types) with an embedding; 0 for none.
        embedding_norm: bool. Whether the summed embeddings are normalized.
    """

    position: Rotary | Alibi | RelativeBias | str | None = "learned"
    norm: str = "layer"
    norm_epsilon: float = 1e-12
    activation: str = "gelu"
    gated: bool = False
    use_bias: bool = True
    norm_position: str = "post"
    num_segments: int = 0
    embedding_norm: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check(
            isinstance(self.num_segments, int) and self.num_segments >= 0,
            "num_segments",
            "an int >= 0",
        )


@dataclasses.dataclass(frozen=True)
class Seq2SeqConfig(TransformerConfig):
    """The config of an encoder-decoder with a shared vocabulary and token embedding.

    It has the fields of `TransformerConfig`, where `num_layers` counts encoder layers, and:

    Args:
        num_decoder_layers: int or None. Number of decoder layers; None means `num_layers`.
        pad_id: int. The token id that pads encoder rows; it is never attended to.
        start_id: int. The first token id of each decoder row.
    """

    num_decoder_layers: int | None = None
    pad_id: int = 0
    start_id: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._fill("num_decoder_layers", self.num_layers)
        layers = self.num_decoder_layers
        self._check(isinstance(layers, int) and layers > 0, "num_decoder_layers", "a positive int")
        for name in ("pad_id", "start_id"):
            self._check(
                0 <= getattr(self, name) < self.vocabulary_size, name, "an id of the vocabulary"
            )


@dataclasses.dataclass(frozen=True)
class WordVectorsConfig:
    """The config of a word vector table and its training objective.

    Args:
        vocabulary_size: int > 0. V.
        embedding_dim: int > 0. D.
        objective: "skip_gram" (a word predicts its neighbors), "cbow" (neighbors predict the
            word between them) or "glove" (two words predict their co-occurrence count).
        pad_id: int. For "cbow": the id that pads short contexts.

    Raises:
        InputError: if an argument is invalid; the message names it.
    """

    vocabulary_size: int
    embedding_dim: int
    objective: str = "skip_gram"
    pad_id: int = 0

    def __post_init__(self) -> None:
        for name in ("vocabulary_size", "embedding_dim"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise InputError(
                    f"WordVectorsConfig: `{name}` must be a positive int, got {short_repr(value)}."
                )
        if self.objective not in _OBJECTIVES:
            raise InputError(
                f"WordVectorsConfig: `objective` must be one of {_OBJECTIVES}, "
                f"got {short_repr(self.objective)}."
            )

    to_dict = dataclasses.asdict

    @classmethod
    def from_dict(cls, row: JSON) -> Self:
        """Rebuild a config from `to_dict`; InputError if a field is unknown or missing."""
        return cls(**_known_fields(cls, row))


def _known_fields(cls, row):
    fields = dataclasses.fields(cls)
    required = {field.name for field in fields if field.default is dataclasses.MISSING}
    wrong = sorted(set(row) - {field.name for field in fields}) or sorted(required - set(row))
    if wrong:
        raise InputError(f"{cls.__name__}: unknown or missing fields {wrong}.")
    check_arguments(cls, row, cls.__name__)
    return dict(row)


def _position_from_dict(row, where):
    name, options = next(iter(row.items())) if len(row) == 1 else (None, None)
    if name not in _POSITIONS or not isinstance(options, dict):
        raise InputError(f"{where} must be an object with one of {', '.join(_POSITIONS)}.")
    scaling = options.get("scaling")
    try:
        option = _POSITIONS[name].from_config(options)
        check_arguments(type(option), vars(option), where)
        if isinstance(scaling, dict):
            check_arguments(type(option.scaling), vars(option.scaling), where)
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        raise InputError(f"{where} is not valid: {error}") from None
    return option


@dataclasses.dataclass(frozen=True)
class ComposedConfig:
    """What tasks know about a language model that a user composed.

    Args:
        vocabulary_size: int > 1. V.
        max_length: int > 1. Maximum sequence length, including new tokens.
        incremental: bool. Whether new tokens run with a cache. If not, each step runs the whole
            text again.

    Raises:
        InputError: if a size is invalid.
    """

    vocabulary_size: int
    max_length: int
    incremental: bool = True

    def __post_init__(self) -> None:
        for name in ("vocabulary_size", "max_length"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 2:
                raise InputError(f"{type(self).__name__}: `{name}` must be > 1, got {value!r}.")

    def to_dict(self) -> JSON:
        """Return plain JSON types that `from_dict` reads back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, row: JSON) -> Self:
        """Rebuild a config from `to_dict`; InputError if a field is unknown or missing."""
        return cls(**_known_fields(cls, row))


@dataclasses.dataclass(frozen=True)
class ComposedSeq2SeqConfig(ComposedConfig):
    """What tasks know about an encoder-decoder that a user composed.

    Args:
        pad_id: int. Padding of the encoder's token ids, which the model itself must mask.
        start_id: int. The decoder's first token.
    """

    pad_id: int = 0
    start_id: int = 0


CONFIGS = {
    config.__name__: config
    for config in (
        CausalLMConfig,
        EncoderConfig,
        Seq2SeqConfig,
        WordVectorsConfig,
        ComposedConfig,
        ComposedSeq2SeqConfig,
    )
}
