"""What is asked of the SavedModel of each kind of task, and how its answers must be.

A proof asks the signatures for what the task gives in Python: the same texts, labels and places,
and the same numbers to a tolerance. Where the weights are stored in fewer bits, what differs is
measured, and may not be more than a stated bound.
"""

from keras_llm import tasks
from keras_llm.export.saved_model.verify_generation import TextGenerationProof, TranslationProof
from keras_llm.export.saved_model.verify_heads import (
    MaskedLanguageModelProof,
    QuestionAnsweringProof,
    TextClassificationProof,
    TextEmbeddingProof,
    TextRegressionProof,
    TokenClassificationProof,
)
from keras_llm.tasks.generative import GenerativeTask

PROOFS = {
    tasks.TextGeneration: TextGenerationProof,
    tasks.Translation: TranslationProof,
    tasks.TextClassification: TextClassificationProof,
    tasks.TokenClassification: TokenClassificationProof,
    tasks.QuestionAnswering: QuestionAnsweringProof,
    tasks.TextEmbedding: TextEmbeddingProof,
    tasks.TextRegression: TextRegressionProof,
    tasks.MaskedLanguageModel: MaskedLanguageModelProof,
}


def proof_of(task, exact=True, beam_width=None):
    """The proof of a task's SavedModel."""
    proof = next(proof for kind, proof in PROOFS.items() if isinstance(task, kind))
    if isinstance(task, GenerativeTask):
        task = task.without_xla()  # a few texts, before which XLA would compile for longer
    return proof(task, exact, beam_width)
