"""Turn documents and tables into training batches, deterministic by seed."""

from keras_llm.data.answer_spans import locate_answers
from keras_llm.data.batches import batch_plan, padded_dataset
from keras_llm.data.chat import (
    ChatExample,
    chat_dataset,
    chat_examples,
    preference_dataset,
    preference_examples,
)
from keras_llm.data.cleaning.filters import clean_rows, without_contamination
from keras_llm.data.cleaning.near_duplicates import contamination, without_near_duplicates
from keras_llm.data.cleaning.pii import scrub, scrub_texts
from keras_llm.data.infilling import infilling_dataset
from keras_llm.data.masking import masked_dataset, text_tokens
from keras_llm.data.packing import encode_documents, packed_dataset, steps_per_epoch, windows
from keras_llm.data.readers.conversations import (
    Preference,
    conversation,
    preference,
    read_conversations,
    read_preferences,
)
from keras_llm.data.readers.records import read_records, unread_files
from keras_llm.data.readers.streaming import StreamedDocuments, split_stream
from keras_llm.data.readers.text import (
    read_texts,
    shuffle_documents,
    split_documents,
    split_rows,
    stream_texts,
)
from keras_llm.data.sentence_pairs import SentencePairs, sentence_pair_dataset, sentence_pairs
from keras_llm.data.span_corruption import span_corruption_dataset
from keras_llm.data.word_context import (
    cooccurrence_dataset,
    cooccurrences,
    neighbor_dataset,
    word_stream,
    word_vocabulary,
)

__all__ = [
    "ChatExample",
    "Preference",
    "SentencePairs",
    "StreamedDocuments",
    "batch_plan",
    "chat_dataset",
    "chat_examples",
    "clean_rows",
    "contamination",
    "conversation",
    "cooccurrence_dataset",
    "cooccurrences",
    "encode_documents",
    "infilling_dataset",
    "locate_answers",
    "masked_dataset",
    "neighbor_dataset",
    "packed_dataset",
    "padded_dataset",
    "preference",
    "preference_dataset",
    "preference_examples",
    "read_conversations",
    "read_preferences",
    "read_records",
    "read_texts",
    "scrub",
    "scrub_texts",
    "sentence_pair_dataset",
    "sentence_pairs",
    "shuffle_documents",
    "span_corruption_dataset",
    "split_documents",
    "split_rows",
    "split_stream",
    "steps_per_epoch",
    "stream_texts",
    "text_tokens",
    "unread_files",
    "windows",
    "without_contamination",
    "without_near_duplicates",
    "word_stream",
    "word_vocabulary",
]
