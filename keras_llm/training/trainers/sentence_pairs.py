"""Pretrain BERT: masked language modeling and next sentence prediction."""

from typing import TYPE_CHECKING, Any, Self

import keras
from keras import ops

from keras_llm import models
from keras_llm.errors import InputError
from keras_llm.training.trainers.language_model import LanguageModelTrainer
from keras_llm.types import JSON, Tensor

if TYPE_CHECKING:
    from keras_llm.models import HeadModel


@keras.saving.register_keras_serializable("keras_llm")
class SentencePairTrainer(LanguageModelTrainer):
    """A trainer for a `masked_lm` and a `next_sentence` model that share one encoder.

    Use `compile(optimizer)` and `fit`. The loss is the sum of both cross-entropies. `fit` also logs
    `next_sentence_accuracy`.

    Args:
        model: a model from `models.masked_lm`.
        next_sentence: a model from `models.next_sentence` on the same encoder.
        ignore_id, label_smoothing, z_loss, chunk_size, name: see `LanguageModelTrainer`.

    Data: as returned by `data.sentence_pair_dataset`.

    Raises:
        InputError: if an argument is invalid, naming it.

    Reference:
        Devlin et al., 2018, "BERT", section 3.1.

    Example:
    >>> from keras_llm import models
    >>> encoder = models.encoder(models.preset("bert-tiny"))
    >>> trainer = SentencePairTrainer(models.masked_lm(encoder), models.next_sentence(encoder))
    >>> trainer.compile("adamw")
    """

    def __init__(
        self,
        model: "HeadModel",
        next_sentence: "HeadModel",
        ignore_id: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(model, ignore_id, **options)
        if getattr(next_sentence, "head", None) != "next_sentence":
            raise InputError("`next_sentence` must come from models.next_sentence.")
        layers = [one.get_layer("backbone").layers for one in (model, next_sentence)]
        if {id(layer) for layer in layers[0] if layer.weights} != {
            id(layer) for layer in layers[1] if layer.weights
        }:
            raise InputError("`model` and `next_sentence` must use the same encoder.")
        self.next_sentence = next_sentence
        self.judge = keras.Model(next_sentence.hidden, next_sentence.output, name="judge")
        *inputs, _ = model.inputs
        self.both = keras.Model(model.inputs, [model.output, next_sentence(inputs)], name="both")
        self.next_sentence_accuracy = keras.metrics.Mean(name="next_sentence_accuracy")

    @property
    def trained(self) -> keras.Model:
        return self.both

    def get_config(self) -> JSON:
        next_sentence = keras.saving.serialize_keras_object(self.next_sentence)
        return {**super().get_config(), "next_sentence": next_sentence}

    @classmethod
    def from_config(cls, config: JSON, custom_objects: JSON | None = None) -> Self:
        rows = {name: config[name]["config"] for name in ("model", "next_sentence")}
        row = rows["model"]
        encoder = models.encoder(models.config_from_dict(row["config"]), dtype=row["dtype"])
        shared = {
            name: models.HeadModel.from_config({**row, "backbone": encoder})
            for name, row in rows.items()
        }
        return super().from_config({**config, **shared}, custom_objects)

    def call(self, inputs: dict[str, Tensor], training: bool | None = None) -> dict[str, Tensor]:
        """Return the states of masked tokens (B, M, D) and next-sentence logits (B, 2)."""
        *tensors, positions = (inputs[tensor.name] for tensor in self.model.inputs)
        hidden = self.model.get_layer("backbone")(tensors)
        states = self.model.get_layer("masked_lm_head").states(hidden, positions)
        return {"tokens": states, "next_sentence": self.judge(hidden)}

    def compute_loss(
        self,
        x: Any = None,
        y: Any = None,
        y_pred: Any = None,
        sample_weight: Tensor | None = None,
        training: bool = True,
    ) -> Tensor:
        loss = super().compute_loss(x, y["tokens"], y_pred["tokens"], sample_weight, training)
        label, logits = y["next_sentence"], y_pred["next_sentence"]
        right = ops.equal(ops.cast(ops.argmax(logits, axis=-1), label.dtype), label)
        self.next_sentence_accuracy.update_state(ops.cast(right, "float32"))
        losses = keras.losses.sparse_categorical_crossentropy(label, logits, from_logits=True)
        return loss + self._mean_of_rows(losses)

    def _check_ids(self, *arrays):
        """Skip the check: ids from `data.sentence_pair_dataset` are in the vocabulary."""
