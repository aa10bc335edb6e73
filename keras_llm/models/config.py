"""What defines a model: a frozen row of sizes and options, checked in one place."""

import dataclasses

from keras_llm.errors import InputError
from keras_llm.layers.alibi import Alibi
from keras_llm.layers.rotary import Rotary

_POSITIONS = {"rotary": Rotary, "alibi": Alibi}
_SIZES = (
    "vocabulary_size",
    "num_layers",
    "hidden_dim",
    "num_heads",
    "intermediate_dim",
    "max_length",
)


@dataclasses.dataclass(frozen=True)
class CausalLMConfig:
    """A decoder-only language model.

    Args:
        vocabulary_size: int > 0. V.
        num_layers: int > 0. L blocks.
        hidden_dim: int > 0. D.
        num_heads: int > 0. N query heads.
        intermediate_dim: int > 0. F, the feed-forward width.
        max_length: int > 1. The longest sequence, prompt and new tokens together.
        num_key_value_heads: int or None. K; must divide N. None means N.
        head_dim: int or None. H. None means D / N.
        position: `Rotary(...)`, `Alibi(...)`, `"learned"`, or None for no positions at all.
        norm: "layer" or "rms".
        norm_epsilon: float > 0.
        activation: name of a Keras activation.
        gated: bool. Whether the feed-forward part is gated.
        sliding_window: int or None. Attention reaches less than this many positions back.
        logit_soft_cap: float or None, on attention scores.
        final_soft_cap: float or None, on the logits.
        qk_norm: bool. RMS-normalise query and key heads.
        use_bias: bool. Whether dense layers have biases.
        tie_embeddings: bool. Whether the head reuses the token embedding.
        dropout: float in [0, 1).
        initializer_range: float > 0. Standard deviation of the initial weights.

    Raises:
        InputError: naming the argument that does not fit.
    """

    vocabulary_size: int
    num_layers: int
    hidden_dim: int
    num_heads: int
    intermediate_dim: int
    max_length: int
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    position: Rotary | Alibi | str | None = Rotary()  # noqa: RUF009, it is frozen
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

    def __post_init__(self):
        def check(ok, name, rule):
            if not ok:
                raise InputError(
                    f"CausalLMConfig: `{name}` must be {rule}, got {getattr(self, name)!r}."
                )

        def fill(name, value):
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)

        for name in _SIZES:
            value = getattr(self, name)
            check(isinstance(value, int) and value > 0, name, "a positive int")
        check(self.max_length > 1, "max_length", "at least 2")
        fill("num_key_value_heads", self.num_heads)
        check(
            self.num_key_value_heads > 0 and self.num_heads % self.num_key_value_heads == 0,
            "num_key_value_heads",
            f"a divisor of num_heads={self.num_heads}",
        )
        if self.head_dim is None:
            check(
                self.hidden_dim % self.num_heads == 0,
                "num_heads",
                f"a divisor of hidden_dim={self.hidden_dim} when `head_dim` is not given",
            )
            fill("head_dim", self.hidden_dim // self.num_heads)
        check(self.head_dim > 0, "head_dim", "a positive int")
        check(
            self.position in (None, "learned")
            or isinstance(self.position, tuple(_POSITIONS.values())),
            "position",
            'Rotary(...), Alibi(...), "learned" or None',
        )
        if isinstance(self.position, Rotary):
            rotated = int(self.head_dim * self.position.fraction)
            check(rotated % 2 == 0, "head_dim", "such that an even number of features is rotated")
        check(self.norm in ("layer", "rms"), "norm", '"layer" or "rms"')
        check(self.norm_epsilon > 0, "norm_epsilon", "> 0")
        check(0 <= self.dropout < 1, "dropout", "in [0, 1)")
        check(self.initializer_range > 0, "initializer_range", "> 0")
        for name in ("sliding_window", "logit_soft_cap", "final_soft_cap"):
            check(getattr(self, name) is None or getattr(self, name) > 0, name, "positive or None")

    def to_dict(self):
        """Plain JSON types; `from_dict` reads them back."""
        row = dataclasses.asdict(self)
        for name, option in _POSITIONS.items():
            if isinstance(self.position, option):
                row["position"] = {name: self.position.get_config()}
        return row

    @classmethod
    def from_dict(cls, row):
        """The config that `to_dict` described.

        Raises:
            InputError: if a field is unknown or missing.
        """
        names = {field.name for field in dataclasses.fields(cls)}
        required = {
            field.name for field in dataclasses.fields(cls) if field.default is dataclasses.MISSING
        }
        wrong = sorted(set(row) - names) or sorted(required - set(row))
        if wrong:
            raise InputError(f"CausalLMConfig: unknown or missing fields {wrong}.")
        row = dict(row)
        if isinstance(row.get("position"), dict):
            ((name, options),) = row["position"].items()
            row["position"] = _POSITIONS[name].from_config(options)
        return cls(**row)
