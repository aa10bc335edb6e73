"""Train and evaluate language models: losses, metrics, callbacks, optimizers and trainers."""

from typing import Any

from keras_llm.training.adapters.lora import add_lora, load_lora, merge_lora, save_lora
from keras_llm.training.callbacks.callbacks import BestWeights, ProgressBar
from keras_llm.training.callbacks.resume import Resume
from keras_llm.training.distribution.distribution import (
    TensorParallel,
    layout_map,
    set_distribution,
)
from keras_llm.training.losses.contrastive import ContrastiveLoss, siamese
from keras_llm.training.losses.cross_entropy import ChunkedCrossEntropy
from keras_llm.training.losses.glove import GloVeLoss
from keras_llm.training.memory import plan_memory
from keras_llm.training.metrics.answers import evaluate_answers
from keras_llm.training.metrics.classification import (
    CalibrationError,
    confusion_matrix,
    evaluate_classifier,
)
from keras_llm.training.metrics.code import pass_at_k
from keras_llm.training.metrics.example_likelihood import evaluate_examples, log_probabilities
from keras_llm.training.metrics.language_model import (
    Perplexity,
    TokenAccuracy,
    evaluate_language_model,
    evaluate_most_frequent,
    evaluate_targets,
    evaluate_unigram,
)
from keras_llm.training.metrics.ngrams import (
    Trigram,
    distinct_n,
    evaluate_trigram,
    memorization_rate,
)
from keras_llm.training.metrics.regression import evaluate_regression
from keras_llm.training.metrics.summaries import evaluate_summaries
from keras_llm.training.metrics.translation import evaluate_translations
from keras_llm.training.metrics.word_vectors import evaluate_analogies, evaluate_similarities
from keras_llm.training.optimizers.optimizers import AdamW, Lion, Muon
from keras_llm.training.optimizers.schedules import WarmupDecay
from keras_llm.training.remat import rematerialize
from keras_llm.training.trainers.base import Trainer
from keras_llm.training.trainers.distillation import DistillationTrainer
from keras_llm.training.trainers.language_model import LanguageModelTrainer, check_token_ids
from keras_llm.training.trainers.preference import DPO, ORPO, PreferenceTrainer
from keras_llm.training.trainers.sentence_pairs import SentencePairTrainer

__all__ = [
    "DPO",
    "ORPO",
    "AdamW",
    "BestWeights",
    "CalibrationError",
    "ChunkedCrossEntropy",
    "ContrastiveLoss",
    "DistillationTrainer",
    "GloVeLoss",
    "LanguageModelTrainer",
    "Lion",
    "Muon",
    "Perplexity",
    "PreferenceTrainer",
    "ProgressBar",
    "Resume",
    "SentencePairTrainer",
    "TensorBoard",
    "TensorParallel",
    "TokenAccuracy",
    "Trainer",
    "Trigram",
    "WarmupDecay",
    "add_lora",
    "check_token_ids",
    "confusion_matrix",
    "distinct_n",
    "evaluate_analogies",
    "evaluate_answers",
    "evaluate_classifier",
    "evaluate_examples",
    "evaluate_language_model",
    "evaluate_most_frequent",
    "evaluate_regression",
    "evaluate_similarities",
    "evaluate_summaries",
    "evaluate_targets",
    "evaluate_translations",
    "evaluate_trigram",
    "evaluate_unigram",
    "layout_map",
    "load_lora",
    "log_probabilities",
    "memorization_rate",
    "merge_lora",
    "pass_at_k",
    "plan_memory",
    "rematerialize",
    "save_lora",
    "set_distribution",
    "siamese",
]


def __getattr__(name: str) -> Any:
    if name == "TensorBoard":  # imported lazily: the only class that requires TensorFlow
        from keras_llm.training.callbacks.tensorboard import TensorBoard

        return TensorBoard
    raise AttributeError(f"module 'keras_llm.training' has no attribute {name!r}")
