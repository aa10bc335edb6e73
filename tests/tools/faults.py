"""The faults that seeded_faults.py puts into a copy of the library, one at a time.

Each is one changed line of one file that changes what the code does: a bound that is off by one, a
wrong axis or sign, a missing mask or check, swapped arguments. Its name begins with its package. If
an older checkout has the line in another file, `older` names the place.
"""

from typing import NamedTuple


class Place(NamedTuple):
    """A line to change: its file, text that occurs exactly once, and the new text."""

    file: str
    find: str
    replace: str


class Fault(NamedTuple):
    """A seeded fault and the tests, named as for pytest, that are expected to notice it."""

    name: str
    what: str
    place: Place
    tests: tuple[str, ...]
    older: tuple[Place, ...] = ()


LAYERS = (
    Fault(
        "layers-causal-strict",
        "a token does not attend to itself",
        Place(
            "keras_llm/layers/masks.py",
            "return _pairwise(ops.less_equal, query_positions",
            "return _pairwise(ops.less, query_positions",
        ),
        ("tests/layers/test_attention.py",),
    ),
    Fault(
        "layers-window-inclusive",
        "a sliding window reaches one token too far",
        Place(
            "keras_llm/layers/masks.py",
            "inside = ops.less(ops.abs(key - query), sliding_window)",
            "inside = ops.less_equal(ops.abs(key - query), sliding_window)",
        ),
        ("tests/layers/test_attention.py",),
    ),
    Fault(
        "layers-alibi-slopes",
        "heads beyond a power of two get wrong slopes",
        Place(
            "keras_llm/layers/alibi.py",
            "_slopes(2 * power, max_bias)[::2]",
            "_slopes(2 * power, max_bias)[1::2]",
        ),
        ("tests/layers/test_position.py",),
    ),
    Fault(
        "layers-yarn-ramp",
        "YaRN scales the frequencies that it should keep",
        Place(
            "keras_llm/layers/rotary.py",
            "return plain * (1 - ramp) + plain / self.factor * ramp, attention_factor",
            "return plain * ramp + plain / self.factor * (1 - ramp), attention_factor",
        ),
        ("tests/layers/test_position.py",),
    ),
    Fault(
        "layers-moe-balance",
        "the load balance loss has the wrong scale",
        Place(
            "keras_llm/layers/moe.py",
            "balance = self.num_experts * ops.sum(",
            "balance = self.top_k * ops.sum(",
        ),
        ("tests/layers/test_parts.py",),
    ),
    Fault(
        "layers-ring-first",
        "the first new entry is not written into a ring cache",
        Place(
            "keras_llm/layers/cache.py",
            "return ops.where(index >= 0, ops.cast(chosen",
            "return ops.where(index > 0, ops.cast(chosen",
        ),
        ("tests/layers/test_parts.py",),
    ),
    Fault(
        "layers-relative-bound",
        "a distance at a bucket's edge falls into the previous bucket",
        Place(
            "keras_llm/layers/relative.py",
            'ops.cast(distance >= bound, "int32")',
            'ops.cast(distance > bound, "int32")',
        ),
        ("tests/layers/test_parts.py",),
    ),
    Fault(
        "layers-attached-mask",
        "the mask that Keras attached to the source of cross-attention is ignored",
        Place(
            "keras_llm/layers/attention.py",
            "padding_mask = implicit_mask(source)",
            "padding_mask = implicit_mask(query)",
        ),
        ("tests/layers/test_masking.py",),
    ),
    Fault(
        "layers-quantized-adapters",
        "adapters are saved within quantized weights",
        Place(
            "keras_llm/layers/adapters.py",
            "self.lora_enabled = False  # Keras",
            "self.lora_enabled = True  # Keras",
        ),
        ("tests/models/test_quantized.py",),
    ),
)

MODELS = (
    Fault(
        "models-prefill-place",
        "the first token of a chunk is skipped",
        Place(
            "keras_llm/models/forward_cached.py",
            "(place >= 0) & (place < chunk)",
            "(place > 0) & (place < chunk)",
        ),
        ("tests/models/test_causal_lm.py",),
    ),
    Fault(
        "models-ring-sinks",
        "a ring cache has no room for the sink tokens",
        Place(
            "keras_llm/layers/incremental.py",
            "ring = layer.sliding_window + layer.num_sink_tokens",
            "ring = layer.sliding_window",
        ),
        ("tests/models/test_causal_lm.py",),
    ),
    Fault(
        "models-composed-state",
        "padding changes the state of a recurrent layer",
        Place(
            "keras_llm/layers/_handlers_of_keras.py",
            "                if mask is not None:\n                    pairs",
            "                if mask is None:\n                    pairs",
        ),
        ("tests/composed/test_composed.py",),
    ),
    Fault(
        "models-composed-convolution",
        "a convolution keeps inputs of padding",
        Place(
            "keras_llm/layers/_handlers_of_keras.py",
            "places = count + ops.expand_dims(",
            "places = 1 + count + ops.expand_dims(",
        ),
        ("tests/composed/test_composed.py",),
    ),
    Fault(
        "models-composed-check",
        "outputs with a cache are not compared with those without",
        Place(
            "keras_llm/models/incremental_check.py",
            "    if config.incremental:\n        _check_steps",
            "    if not config.incremental:\n        _check_steps",
        ),
        ("tests/composed/test_composed.py",),
    ),
    Fault(
        "models-composed-window",
        "the sliding window of a Keras attention layer is ignored with a cache",
        Place(
            "keras_llm/layers/_handlers_of_keras.py",
            "if heads.sliding_window is not None:",
            "if heads.sliding_window is None and False:",
        ),
        ("tests/composed/test_composed.py",),
    ),
    Fault(
        "models-mean-mask",
        "the mean over tokens includes padding",
        Place(
            "keras_llm/models/head_layers.py",
            "total = ops.sum(hidden * ops.expand_dims(mask, -1), axis=1)",
            "total = ops.sum(hidden, axis=1)",
        ),
        ("tests/models/test_heads.py",),
    ),
    Fault(
        "models-source-mask",
        "source padding is attended to",
        Place(
            "keras_llm/models/seq2seq.py",
            "mask = ops.not_equal(token_ids, config.pad_id)",
            "mask = ops.greater_equal(token_ids, config.pad_id)",
        ),
        ("tests/models/test_causal_lm.py::test_cross_attention_maps",),
    ),
    Fault(
        "models-window-pattern",
        "the window pattern is shifted by one layer",
        Place(
            "keras_llm/models/config.py",
            "pattern[layer % len(pattern)]",
            "pattern[(layer + 1) % len(pattern)]",
        ),
        ("tests/models/test_causal_lm.py::test_forward_returns_attention_scores",),
    ),
)

GENERATION = (
    Fault(
        "generation-top-p",
        "the token that crosses top_p is cut off",
        Place(
            "keras_llm/generation/logits_processors.py",
            "before = ops.cumsum(probabilities, axis=-1) - probabilities",
            "before = ops.cumsum(probabilities, axis=-1)",
        ),
        ("tests/generation/test_generation.py::test_keep_top_matches_reference",),
    ),
    Fault(
        "generation-typical-sign",
        "typical sampling uses the negative entropy",
        Place(
            "keras_llm/generation/logits_processors.py",
            "distance = ops.abs(-log_p - entropy)",
            "distance = ops.abs(log_p - entropy)",
        ),
        ("tests/generation/test_logits.py",),
    ),
    Fault(
        "generation-ngram-begin",
        "the first n-gram of a text may be repeated",
        Place(
            "keras_llm/generation/logits_processors.py",
            "completes = (places >= size - 1)",
            "completes = (places >= size)",
        ),
        ("tests/generation/test_logits.py",),
    ),
    Fault(
        "generation-score-length",
        "scores include one position after the text",
        Place(
            "keras_llm/generation/scoring.py",
            'ops.expand_dims(ops.cast(lengths, "int32") - 1, 1)',
            'ops.expand_dims(ops.cast(lengths, "int32"), 1)',
        ),
        ("tests/generation/test_generation.py::test_scores_are_sums_of_log_probabilities",),
    ),
    Fault(
        "generation-greedy-rows",
        "rows of temperature 0 are sampled in a batch with other rows",
        Place(
            "keras_llm/generation/sampling.py",
            "is_sampled = sampling.temperature > 0",
            "is_sampled = sampling.temperature >= 0",
        ),
        ("tests/generation/test_generation.py::test_settings_apply_per_row",),
    ),
    Fault(
        "generation-constraint-wins",
        "settings that ban all tokens of a constraint leave none",
        Place(
            "keras_llm/generation/sampling.py",
            "return ops.where(is_left, remaining, logits)",
            "return remaining",
        ),
        ("tests/generation/test_constraints.py::test_a_constraint_wins_over_other_settings",),
    ),
    Fault(
        "generation-constraint-copy",
        "texts that share a beginning share the matcher that reads on",
        Place(
            "keras_llm/generation/constraints.py",
            "matcher = matcher.deep_copy()  # several rows may continue the same text",
            "pass",
        ),
        ("tests/generation/test_constraints.py::test_rows_are_independent_and_may_be_reordered",),
    ),
    Fault(
        "generation-rank-mean",
        "the score of a continuation is the sum, not the mean",
        Place(
            "keras_llm/tasks/generative.py",
            "scores = [r.log_probability / r.num_tokens if r.num_tokens",
            "scores = [r.log_probability if r.num_tokens",
        ),
        ("tests/tasks/test_searches.py",),
    ),
    Fault(
        "generation-beam-parent",
        "beams of later groups continue those of the first group",
        Place(
            "keras_llm/generation/search/beam.py",
            "parents.append(parent + i * width)",
            "parents.append(parent)",
        ),
        ("tests/generation/test_search.py::test_beam_search_matches_reference",),
    ),
    Fault(
        "generation-contrastive-slot",
        "the penalty reads a slot that is not written yet",
        Place(
            "keras_llm/generation/search/contrastive.py",
            "(slots < length + step)",
            "(slots <= length + step)",
        ),
        ("tests/generation/test_contrastive.py::test_alpha_of_one_takes_the_least_similar_token",),
    ),
    Fault(
        "generation-speculative-accept",
        "drafted tokens after a rejected one are accepted",
        Place(
            "keras_llm/generation/search/speculative.py",
            "accepted = _sum(_none_before(ops.logical_not(agrees)))",
            "accepted = _sum(agrees)",
        ),
        ("tests/generation/test_speculative.py::test_caches_with_rejected_drafts",),
    ),
    Fault(
        "generation-cached-prefix",
        "the last token of a prompt counts as cached",
        Place(
            "keras_llm/generation/prefix_cache.py",
            "row = token_ids[0, :-1]",
            "row = token_ids[0]",
        ),
        ("tests/tasks/test_conversation.py::test_prefix_cache_does_not_change_text",),
    ),
    Fault(
        "generation-engine-positions",
        "all rows read at the position of the longest text",
        Place(
            "keras_llm/generation/loop.py",
            "positions = request.lengths + state.num_tokens - 1",
            "positions = request.lengths + ops.max(state.num_tokens) - 1",
        ),
        ("tests/generation/test_engine.py::test_requests_are_independent_with_sliding_windows",),
    ),
    Fault(
        "generation-engine-slot-reset",
        "a slot keeps what the previous request left after the prompt",
        Place(
            "keras_llm/generation/scheduler/tensorflow.py",
            "ops.slice_update(variable.value(), begin, padded)",
            "ops.slice_update(variable.value(), begin, row)",
        ),
        ("tests/generation/test_engine.py::test_nan_of_previous_request_does_not_remain_in_slot",),
    ),
    Fault(
        "generation-engine-waiting",
        "one request too many may wait",
        Place(
            "keras_llm/generation/scheduler/engine.py",
            "if len(self._waiting) >= self._max_waiting:",
            "if len(self._waiting) > self._max_waiting:",
        ),
        ("tests/generation/test_engine.py::test_full_queue_cancel_and_exception",),
    ),
)

TOKENIZERS = (
    Fault(
        "tokenizers-unescape-order",
        "escapes are reverted in the order in which they were applied",
        Place(
            "keras_llm/tokenizers/escapes.py",
            "reversed(ESCAPES):\n        text =",
            "ESCAPES:\n        text =",
        ),
        ("tests/tokenizers/test_sentencepiece.py",),
    ),
    Fault(
        "tokenizers-first-space",
        "the space that decoding removes is part of the first token",
        Place(
            "keras_llm/tokenizers/spelling.py",
            'begins = spelled.removeprefix(b" ") if strips else spelled',
            "begins = spelled",
        ),
        ("tests/generation/test_constraints.py::test_the_beginning_is_as_decoding_has_it",),
    ),
    Fault(
        "tokenizers-word-length",
        "words one character too long are split into pieces",
        Place(
            "keras_llm/tokenizers/word_piece.py",
            "max_input_chars_per_word=self.max_word_length,",
            "max_input_chars_per_word=self.max_word_length + 1,",
        ),
        ("tests/tokenizers/test_word_piece.py::test_ids_and_texts_match_tokenizers_library",),
    ),
    Fault(
        "tokenizers-offsets",
        "a token that begins within a character begins after it",
        Place(
            "keras_llm/tokenizers/offsets.py",
            "return self.before(starts + 1) - 1, self.before(ends)",
            "return self.before(starts), self.before(ends)",
        ),
        ("tests/tokenizers/test_offsets.py::test_graph_offsets_match_python",),
    ),
    Fault(
        "tokenizers-gguf-types",
        "control tokens of a GGUF file count as text",
        Place(
            "keras_llm/tokenizers/gguf.py",
            "_SPECIAL_TYPES = (2, 3, 4)",
            "_SPECIAL_TYPES = (2, 4)",
        ),
        ("tests/tokenizers/test_gguf.py",),
    ),
)

DATA = (
    Fault(
        "data-packing-targets",
        "packed texts are trained to predict the next text's begin token",
        Place(
            "keras_llm/data/packing.py",
            "return inputs, tf.where(targets == bos_id, pad_id, targets)",
            "return inputs, targets",
        ),
        ("tests/data/test_data.py",),
    ),
    Fault(
        "data-masking-kept",
        "tokens are kept for the wrong range of draws",
        Place(
            "keras_llm/data/masking.py",
            "new = tf.where(fate > 1 - _KEPT, ids, new)",
            "new = tf.where(fate < _KEPT, ids, new)",
        ),
        ("tests/data/test_masking.py",),
    ),
    Fault(
        "data-infilling-shift",
        "the middle of an example moves one position too few",
        Place(
            "keras_llm/data/infilling.py",
            "shift = tf.where(places < second, 3 + end - second, shift)",
            "shift = tf.where(places < second, 2 + end - second, shift)",
        ),
        ("tests/data/test_span_corruption.py",),
    ),
    Fault(
        "data-duplicates-union",
        "the size of a union counts shared elements twice",
        Place(
            "keras_llm/data/cleaning/near_duplicates.py",
            "either = len(first) + len(second) - both",
            "either = len(first) + len(second)",
        ),
        ("tests/data/test_cleaning.py",),
    ),
    Fault(
        "data-card-digits",
        "the checksum of a card number doubles the wrong digits",
        Place(
            "keras_llm/data/cleaning/pii.py",
            "for digit in digits[1::2]]",
            "for digit in digits[::2]]",
        ),
        ("tests/data/test_cleaning.py",),
    ),
    Fault(
        "data-batch-order",
        "batches are sorted by the last key first",
        Place(
            "keras_llm/data/batches.py",
            "order = np.lexsort(keys[::-1])",
            "order = np.lexsort(keys)",
        ),
        ("tests/data/test_batches.py",),
    ),
    Fault(
        "data-window-reach",
        "the widest window of a word is never drawn",
        Place(
            "keras_llm/data/word_context.py",
            "seeds[0], 1, window + 1, tf.int64)",
            "seeds[0], 1, window, tf.int64)",
        ),
        ("tests/data/test_word_context.py",),
    ),
    Fault(
        "data-pairs-own-text",
        "a random sentence may come from the same text",
        Place(
            "keras_llm/data/sentence_pairs.py",
            "tf.where(other < begin, other, other + size)",
            "tf.where(other <= begin, other, other + size)",
        ),
        ("tests/data/test_sentence_pairs.py",),
    ),
    Fault(
        "data-chat-targets",
        "the target flags are shifted by one token",
        Place(
            "keras_llm/data/chat.py",
            "[example.learned[1:] for example in examples]",
            "[example.learned[:-1] for example in examples]",
        ),
        ("tests/data/test_chat.py::test_loss_of_batches_counts_only_answers",),
    ),
)

TRAINING = (
    Fault(
        "training-soft-cap",
        "the gradient of a soft cap is taken at the raw logits",
        Place(
            "keras_llm/training/losses/cross_entropy.py",
            "d *= 1.0 - ops.square(logits / self.soft_cap)",
            "d *= 1.0 - ops.square(raw / self.soft_cap)",
        ),
        ("tests/training/test_chunked.py::test_losses_and_gradients_match_formula",),
    ),
    Fault(
        "training-warmup",
        "the first step has a learning rate of zero",
        Place(
            "keras_llm/training/optimizers/schedules.py",
            "warmup = (step + 1.0) / (self.warmup_steps + 1.0)",
            "warmup = step / (self.warmup_steps + 1.0)",
        ),
        ("tests/training/test_optimizers.py::test_schedules_match_formulas",),
    ),
    Fault(
        "training-preference-sign",
        "the gradient of the preference loss swaps its margins",
        Place(
            "keras_llm/training/trainers/preference.py",
            "(e * ops.sigmoid(margin) - (1 - e) * ops.sigmoid(-margin))",
            "(e * ops.sigmoid(-margin) - (1 - e) * ops.sigmoid(margin))",
        ),
        ("tests/training/test_preference.py",),
    ),
    Fault(
        "training-lora-scale",
        "a merged adapter is not scaled",
        Place(
            "keras_llm/training/adapters/lora.py",
            'tensors[f"{name}.b"] * scale,',
            'tensors[f"{name}.b"],',
        ),
        ("tests/training/test_lora.py::test_merged_saved_and_loaded_models_match",),
    ),
    Fault(
        "training-ngram-discount",
        "the discount of n-grams counts n-grams seen twice once",
        Place(
            "keras_llm/training/metrics/ngrams.py",
            "ones / (ones + 2 * twos) if ones",
            "ones / (ones + twos) if ones",
        ),
        ("tests/training/test_ngrams.py",),
    ),
    Fault(
        "training-contrastive-own",
        "the positive pair is masked in the loss, not its duplicates",
        Place(
            "keras_llm/training/losses/contrastive.py",
            "excluded = ops.logical_and(same_group, ops.logical_not(same_row))",
            "excluded = ops.logical_and(same_group, same_row)",
        ),
        ("tests/training/test_contrastive.py::test_contrastive_loss_matches_formula",),
    ),
    Fault(
        "training-distillation-scale",
        "the distillation loss is scaled by t, not by t squared",
        Place(
            "keras_llm/training/trainers/distillation.py",
            "share * t * t * divergence",
            "share * t * divergence",
        ),
        ("tests/training/test_distillation.py",),
    ),
    Fault(
        "training-eight-bit-round",
        "8-bit moments are off by another half code",
        Place(
            "keras_llm/training/optimizers/quantized_moments.py",
            "codes = ops.round(254.5 * ops.sqrt(roots) + 0.5)",
            "codes = ops.round(254.5 * ops.sqrt(roots))",
        ),
        ("tests/training/test_optimizers.py::test_8_bit_moments_are_off_by_at_most_half_a_code",),
    ),
    Fault(
        "training-f1-axis",
        "F1 counts the predictions twice and the labels never",
        Place(
            "keras_llm/training/metrics/classification.py",
            "counts.sum(axis=0) + counts.sum(axis=1)",
            "counts.sum(axis=0) + counts.sum(axis=0)",
        ),
        ("tests/training/test_classification.py",),
    ),
    Fault(
        "training-resume-skip",
        "a resumed run skips one batch",
        Place(
            "keras_llm/training/callbacks/resume.py",
            "whole.skip(self.step)",
            "whole.skip(self.step + 1)",
        ),
        ("tests/training/test_optimizers.py::test_resume_with_8_bit_moments_is_bit_exact",),
    ),
)

TASKS = (
    Fault(
        "tasks-answer-window",
        "an answer in a later window gets the offset of the first window",
        Place(
            "keras_llm/tasks/answer_spans.py",
            "begin = begin + span.start - ops.reshape(",
            "begin = span.start - ops.reshape(",
        ),
        ("tests/tasks/test_head_tasks.py::test_long_context_is_read_to_its_end",),
    ),
    Fault(
        "tasks-stop-held",
        "the first character of a stop string is returned",
        Place(
            "keras_llm/tasks/settings.py",
            "max(map(len, stops), default=1) - 1)",
            "max(map(len, stops), default=1) - 2)",
        ),
        ("tests/tasks/test_settings.py::test_pieces_hold_back_partial_stop_strings",),
    ),
    Fault(
        "tasks-sample-seeds",
        "all texts of a prompt have the same seed",
        Place(
            "keras_llm/tasks/settings.py",
            "seeds = [seed + i for seed in",
            "seeds = [seed for seed in",
        ),
        ("tests/tasks/test_settings.py::test_num_return_sequences",),
    ),
    Fault(
        "tasks-audit-end",
        "an audit compares the beginning of a text instead of its end",
        Place(
            "keras_llm/tasks/audit.py",
            "[:, -new_tokens:]",
            "[:, :new_tokens]",
        ),
        ("tests/tasks/test_audit.py::test_memorization_matches_greedy_decoding",),
    ),
    Fault(
        "tasks-attention-before",
        "attention to the previous token is that to the next token",
        Place(
            "keras_llm/tasks/explanation.py",
            "before = np.diagonal(p, -1)",
            "before = np.diagonal(p, 1)",
        ),
        ("tests/tasks/test_explanation.py::test_attention_sums_to_one",),
    ),
    Fault(
        "tasks-gradient-points",
        "the integration points range from -1 to 1",
        Place(
            "keras_llm/tasks/gradients.py",
            "(points[batch, None, None] + 1) / 2",
            "points[batch, None, None]",
        ),
        ("tests/tasks/test_explanation.py::test_attributions_sum_to_output_minus_baseline",),
    ),
    Fault(
        "tasks-ranked-length",
        "replies are ranked by the sum of log-probabilities, not the mean",
        Place(
            "keras_llm/tasks/ranked_chat.py",
            "row.log_probability / row.num_tokens",
            "row.log_probability",
        ),
        (
            "tests/tasks/test_ranked_chat.py"
            "::test_replies_are_samples_of_chat_model_ranked_by_both_scores",
        ),
    ),
)

CHECKPOINTS = (
    Fault(
        "checkpoints-rope-ratio",
        "the ratio of the lengths of rotary positions is inverted",
        Place(
            "keras_llm/checkpoints/hugging_face/rope.py",
            'ratio = fields.positive("max_position_embeddings") / original',
            'ratio = original / fields.positive("max_position_embeddings")',
        ),
        ("tests/checkpoints/test_hugging_face.py::test_rotary_positions_of_all_format_versions",),
    ),
    Fault(
        "checkpoints-rotary-order",
        "rotary dimensions are deinterleaved where they should be interleaved",
        Place(
            "keras_llm/checkpoints/hugging_face/weight_mapping.py",
            "[reorder(tensors[0], together).T]",
            "[reorder(tensors[0], apart).T]",
        ),
        ("tests/checkpoints/test_gguf.py::test_float32_file_is_bit_exact",),
    ),
    Fault(
        "checkpoints-gguf-heads",
        "keys are reordered with the number of query heads",
        Place(
            "keras_llm/checkpoints/gguf/model.py",
            'config.num_key_value_heads if part.key.endswith("key")',
            'config.num_key_value_heads if part.key.endswith("query")',
        ),
        ("tests/checkpoints/test_gguf.py::test_float32_file_is_bit_exact",),
    ),
    Fault(
        "checkpoints-outside-folder",
        "an index may name files outside its folder",
        Place(
            "keras_llm/checkpoints/hugging_face/tensors.py",
            "if pathlib.PurePath(file).name != file:",
            "if not file:",
        ),
        ("tests/checkpoints/test_tensors.py::test_invalid_index_raises_error",),
    ),
    Fault(
        "checkpoints-glove-count",
        "fewer words than the first line announces are accepted",
        Place(
            "keras_llm/checkpoints/glove.py",
            "if head and head[0] != len(words):",
            "if head and head[0] < len(words):",
        ),
        ("tests/checkpoints/test_glove.py",),
    ),
    Fault(
        "checkpoints-attention-scale",
        "the attention scale is not a square root",
        Place(
            "keras_llm/checkpoints/hugging_face/decoders.py",
            '"attention_scale": scalar**-0.5,',
            '"attention_scale": scalar**-1.0,',
        ),
        ("tests/checkpoints/test_hugging_face.py::test_families_round_trip_bit_exact",),
    ),
)

COMMANDS = (
    Fault(
        "cli-exit-code",
        "invalid input exits with code 1",
        Place("keras_llm/cli.py", "    return 2", "    return 1"),
        (
            "tests/checkpoints/test_import_command.py"
            "::test_invalid_input_prints_one_line_and_exits_with_code_2",
        ),
    ),
    Fault(
        "commands-settings-given",
        "settings that differ from the defaults are dropped",
        Place(
            "keras_llm/commands/sampling.py",
            "or value != field.default",
            "or value == field.default",
        ),
        ("tests/test_cli.py::test_generate_passes_all_settings",),
    ),
    Fault(
        "commands-chat-reset",
        "a reset conversation has no system message",
        Place(
            "keras_llm/commands/chat.py",
            '== "/reset":\n            conversation = task.conversation(options.system)',
            '== "/reset":\n            conversation = task.conversation()',
        ),
        ("tests/test_cli.py::test_chat_reads_messages_line_by_line",),
    ),
    Fault(
        "commands-audit-card",
        "the audit of a model card is appended instead of replaced",
        Place(
            "keras_llm/commands/audit.py",
            'text.partition(_BEGIN + "\\n")',
            'text.partition(_END + "\\n")',
        ),
        ("tests/tasks/test_audit.py::test_command_line_writes_model_card",),
    ),
    Fault(
        "commands-explain-shades",
        "shades of the page are not scaled by the square root",
        Place(
            "keras_llm/commands/explain_page.py",
            "255 * np.sqrt(p / p.max())",
            "255 * (p / p.max())",
        ),
        ("tests/tasks/test_explanation.py::test_page_shows_values_and_loads_nothing",),
    ),
    Fault(
        "files-offset",
        "the offset of an invalid byte is that within its line",
        Place("keras_llm/files.py", "{offset + error.start}", "{error.start}"),
        ("tests/data/test_data.py::test_invalid_files_raise_error_with_line",),
    ),
    Fault(
        "files-kept",
        "`keep_if` is negated",
        Place(
            "keras_llm/files.py",
            "            if not _has_any(partial, keep_if):",
            "            if _has_any(partial, keep_if):",
        ),
        ("tests/test_files.py",),
    ),
)

EXPORT = (
    Fault(
        "export-weights-transposed",
        "weights of a matrix product are transposed twice",
        Place(
            "export/litert/lowering/rewrites.py",
            "if not operator.builtinOptions.adjY:",
            "if operator.builtinOptions.adjY:",
        ),
        ("tests/export/test_quantization.py",),
    ),
    Fault(
        "export-logits-output",
        "another output is taken for the logits",
        Place(
            "export/litert/lowering/flatbuffer.py",
            'if row.name == b"logits" and row.tensorIndex == output:',
            'if row.name != b"logits" and row.tensorIndex == output:',
        ),
        (
            "tests/export/test_quantization.py::test_weights_are_stored_once_by_their_rules",
            "tests/export/test_quantization.py::test_different_rules_for_tied_embeddings_raise_error",
            "tests/export/test_litert_lm.py::test_byte_pair_tokenizer_and_additional_end_token",
        ),
        (
            Place(
                "export/rewrite.py",
                'if output.name == b"logits":',
                'if output.name != b"logits":',
            ),
        ),
    ),
    Fault(
        "export-float32",
        "a model with any float32 layer counts as float32",
        Place(
            "export/litert/lowering/trace.py",
            "return all(layer.compute_dtype in dtypes",
            "return any(layer.compute_dtype in dtypes",
        ),
        (
            "tests/export/test_litert.py::test_a_bfloat16_model_is_exported_in_float32",
            "tests/export/test_litert.py"
            "::test_bfloat16_additional_end_tokens_and_shorter_decode_lengths",
        ),
        (
            Place(
                "export/litert/conversion.py",
                'if all(layer.compute_dtype == "float32" for layer in _layers(task.model)):',
                'if any(layer.compute_dtype == "float32" for layer in _layers(task.model)):',
            ),
        ),
    ),
    Fault(
        "export-product-weights",
        "matrix products are found by their other input",
        Place(
            "export/litert/lowering/trace.py",
            "consumer.inputs[1] is tensor",
            "consumer.inputs[0] is tensor",
        ),
        ("tests/export/test_smooth_quant.py",),
        (
            Place(
                "export/products.py",
                "found.setdefault(int(operator.inputs[0]), []).append((matrix, operator))",
                "found.setdefault(int(operator.inputs[1]), []).append((matrix, operator))",
            ),
        ),
    ),
    Fault(
        "export-balance-divisor",
        "weights are multiplied by the factor instead of divided",
        Place(
            "export/litert/weights.py",
            "yield rows if constant.divisor is None else rows / constant.divisor",
            "yield rows if constant.divisor is None else rows * constant.divisor",
        ),
        ("tests/export/test_smooth_quant.py::test_float32_outputs_do_not_change",),
        (
            Place(
                "export/litert/quantization/smooth_quant.py",
                "products.matrix(model, matrix) / factor)",
                "products.matrix(model, matrix) * factor)",
            ),
        ),
    ),
    Fault(
        "export-biases-last",
        "biases are stored before the weights whose scales they need",
        Place(
            "export/litert/weights.py",
            "key=lambda c: isinstance(c.storage, BiasStorage))",
            "key=lambda c: not isinstance(c.storage, BiasStorage))",
        ),
        ("tests/export/test_quantization.py::test_recipes_match_dequantized_weights",),
    ),
    Fault(
        "export-first-rule",
        "the first matching rule applies, not the last",
        Place(
            "export/litert/quantization/rules.py",
            "for rule in reversed(rules) if re.search",
            "for rule in rules if re.search",
        ),
        (
            "tests/export/test_quantization.py::test_last_matching_rule_applies",
            "tests/export/test_litert_lm.py::test_byte_pair_tokenizer_and_additional_end_token",
        ),
        (
            Place(
                "export/quantize.py",
                "for rule in reversed(rules) if re.search",
                "for rule in rules if re.search",
            ),
        ),
    ),
    Fault(
        "export-int8-range",
        "the range of 8-bit values is 128",
        Place(
            "export/litert/quantization/rounding.py",
            "np.float32(127 if self.bits == 8 else 7)",
            "np.float32(128 if self.bits == 8 else 7)",
        ),
        ("tests/export/test_quantization.py::test_values_match_ai_edge_quantizer",),
    ),
    Fault(
        "export-int4-pairs",
        "the two values of a byte are swapped",
        Place(
            "export/litert/quantization/rounding.py",
            "values[0::2] & 0x0F | (values[1::2] << 4)",
            "values[1::2] & 0x0F | (values[0::2] << 4)",
        ),
        ("tests/export/test_quantization.py::test_pack_int4",),
    ),
    Fault(
        "export-zero-point",
        "the zero point of an activation has the wrong sign",
        Place(
            "export/litert/quantization/rounding.py",
            "np.rint(-128 - least / scale)",
            "np.rint(-128 + least / scale)",
        ),
        ("tests/export/test_quantization.py::test_recipes_match_dequantized_weights",),
    ),
    Fault(
        "export-balance-factor",
        "columns are balanced in the wrong direction",
        Place(
            "export/litert/quantization/smooth_quant.py",
            "factor = np.sqrt(np.maximum(columns, _LEAST) / np.maximum(values, _LEAST))",
            "factor = np.sqrt(np.maximum(values, _LEAST) / np.maximum(columns, _LEAST))",
        ),
        ("tests/export/test_smooth_quant.py::test_8_bit_errors_decrease",),
    ),
    Fault(
        "export-gptq-carry",
        "errors of a block are added to the later columns",
        Place(
            "export/litert/quantization/gptq.py",
            "work[:, end:] -= errors @ factor[begin:end, end:]",
            "work[:, end:] += errors @ factor[begin:end, end:]",
        ),
        ("tests/export/test_gptq.py",),
    ),
    Fault(
        "export-gptq-scale",
        "the scale of a block ignores the weights of its columns",
        Place(
            "export/litert/quantization/gptq.py",
            "((block - steps * scale[:, None]) / diagonal) ** 2",
            "(block - steps * scale[:, None]) ** 2",
        ),
        ("tests/export/test_gptq.py",),
    ),
    Fault(
        "export-calibration-range",
        "the range of an activation is the intersection over batches",
        Place(
            "export/litert/quantization/calibration.py",
            "min(least, float(values.min())), max(largest, float(values.max()))",
            "max(least, float(values.min())), min(largest, float(values.max()))",
        ),
        ("tests/export/test_quantization.py::test_recipes_match_dequantized_weights",),
    ),
    Fault(
        "export-encoder-mask",
        "source padding is attended to on the device",
        Place(
            "export/litert/decoder_graphs.py",
            'value > 0.5 if spec.dtype == "bool"',
            'value > -1.0 if spec.dtype == "bool"',
        ),
        ("tests/export/test_litert_lm.py::test_translation_matches_keras",),
    ),
    Fault(
        "export-decode-lengths",
        "a step reads one slot too few at the boundary of a length",
        Place(
            "export/litert/runtime/decoder.py",
            "if n > position), None)",
            "if n >= position), None)",
        ),
        (
            "tests/export/test_litert.py::test_steps_that_look_at_fewer_slots_say_the_same",
            "tests/export/test_litert.py"
            "::test_bfloat16_additional_end_tokens_and_shorter_decode_lengths",
        ),
    ),
    Fault(
        "export-runner-budget",
        "a text that fills the cache ends one token early",
        Place(
            "export/litert/runtime/model.py",
            "range(min(budget, self.max_length - first))",
            "range(min(budget, self.max_length - first - 1))",
        ),
        ("tests/export/test_litert.py::test_other_architectures",),
    ),
    Fault(
        "export-numpy-top-k",
        "one token more than top_k is kept",
        Place(
            "export/sampling.py",
            "np.arange(size) < (top_k if top_k > 0 else size)",
            "np.arange(size) <= (top_k if top_k > 0 else size)",
        ),
        ("tests/export/test_numpy_sampling.py",),
    ),
    Fault(
        "export-word-tokens",
        "a word that begins where a token ends gets that token",
        Place(
            "export/saved_model/signatures/heads.py",
            'word_starts, side="right")',
            'word_starts, side="left")',
        ),
        ("tests/export/test_task_signatures.py::test_signature_matches_task",),
    ),
    Fault(
        "export-answer-start",
        "white space before an answer moves its start the wrong way",
        Place(
            "export/saved_model/signatures/question_answering.py",
            "start += _characters(answer) - _characters(trimmed)",
            "start -= _characters(answer) - _characters(trimmed)",
        ),
        ("tests/export/test_task_signatures.py::test_signature_matches_task",),
    ),
    Fault(
        "export-loop-bounds",
        "zero new tokens are accepted",
        Place(
            "export/saved_model/signatures/loop.py",
            'return value > 0, "an int > 0"',
            'return value >= 0, "an int > 0"',
        ),
        ("tests/export/test_task_signatures.py::test_invalid_inputs_raise_error",),
    ),
    Fault(
        "export-prompt-end",
        "a prompt that is too long keeps its first tokens",
        Place(
            "export/saved_model/signatures/text_generation.py",
            "source = tf.where(place < begin, place, place + tf.expand_dims(lengths - kept, 1))",
            "source = place",
        ),
        ("tests/export/test_saved_model.py::test_long_prompt_keeps_last_tokens",),
    ),
    Fault(
        "export-saved-int8",
        "8-bit weights of a SavedModel have the range 128",
        Place(
            "export/saved_model/signatures/weights.py",
            "keepdims=True) / 127.0",
            "keepdims=True) / 128.0",
        ),
        ("tests/export/test_serving_files.py",),
    ),
    Fault(
        "export-verify-tolerance",
        "verification ignores outputs that should be exact",
        Place(
            "export/saved_model/verify_base.py",
            "tolerance = tolerance if self.exact else np.inf",
            "tolerance = np.inf if self.exact else tolerance",
        ),
        ("tests/export/test_task_signatures.py::test_verification_fails_if_outputs_differ",),
        (
            Place(
                "export/saved_model/verify_base.py",
                "tolerance = TOLERANCE if self.exact else np.inf",
                "tolerance = np.inf if self.exact else TOLERANCE",
            ),
        ),
    ),
    Fault(
        "export-verify-scores",
        "verification compares the scores of the task with themselves",
        Place(
            "export/saved_model/verify_generation.py",
            'self.number("scores", scored["log_probability"], self._scores)',
            'self.number("scores", self._scores, self._scores)',
        ),
        (
            "tests/export/test_saved_model.py::test_an_export_with_other_weights_leaves_nothing",
            "tests/export/test_saved_model.py::test_verification_fails_if_outputs_differ",
        ),
        (
            Place(
                "export/saved_model/verify_generation.py",
                '"scores", scored["log_probability"], task.score(self._prompts)',
                '"scores", task.score(self._prompts), task.score(self._prompts)',
            ),
        ),
    ),
    Fault(
        "export-divergence-sign",
        "the divergence of two distributions is negative",
        Place(
            "export/verification.py",
            "np.sum(np.exp(p) * (p - q))",
            "np.sum(np.exp(p) * (q - p))",
        ),
        ("tests/export/test_litert.py::test_failed_verification_writes_no_file",),
    ),
    Fault(
        "export-client-retries",
        "a client retries after every error",
        Place(
            "export/serving/client/client.py",
            'if error.code != "UNAVAILABLE" or attempt == self._retries:',
            "if attempt == self._retries:",
        ),
        ("tests/export/client/test_failures.py::test_only_unavailable_is_retried",),
    ),
    Fault(
        "export-client-positions",
        "token positions of a stream are too large by one",
        Place(
            "export/serving/client/stream.py",
            '"positions": [[length + step]],',
            '"positions": [[length + step + 1]],',
        ),
        (
            "tests/export/test_generation_signatures.py"
            "::test_client_steps_never_choose_ids_outside_tokenizer",
        ),
    ),
    Fault(
        "export-batching-shapes",
        "requests of different shapes are merged into one batch",
        Place(
            "export/serving/server/batching.py",
            "key = (id(servable), signature.name, inner)",
            "key = (id(servable), signature.name)",
        ),
        ("tests/export/test_batching.py::test_different_inner_shapes_are_not_batched",),
    ),
    Fault(
        "export-server-version",
        "the oldest version of a model is served",
        Place(
            "export/serving/server/models.py",
            "return max(available)",
            "return min(available)",
        ),
        ("tests/export/server/test_versions.py::test_version_policies_and_labels",),
    ),
    Fault(
        "export-server-body-size",
        "a body of just the largest size is rejected",
        Place(
            "export/serving/server/rest_api.py",
            "if len(body) > limit:",
            "if len(body) >= limit:",
        ),
        ("tests/export/server/test_http.py::test_rest_limits",),
    ),
    Fault(
        "export-server-text-size",
        "a text of the maximum size is rejected",
        Place(
            "export/serving/server/core.py",
            "if size > self._max_text_bytes:",
            "if size >= self._max_text_bytes:",
        ),
        ("tests/export/server/test_grpc.py::test_deadline_and_text_limit",),
    ),
    Fault(
        "export-tensor-repeat",
        "missing values repeat the first value",
        Place(
            "export/serving/tensors.py",
            "values[-1:] if len(values)",
            "values[:1] if len(values)",
        ),
        ("tests/export/test_wire.py::test_missing_values_repeat_last_value_or_zero",),
    ),
    Fault(
        "export-wire-number",
        "the signature name has another field number",
        Place(
            "export/serving/wire.py",
            "string signature_name = 3",
            "string signature_name = 5",
        ),
        ("tests/export/test_wire.py::test_fields_match_published_messages",),
    ),
    Fault(
        "export-serving-stable",
        "the oldest version is labeled stable",
        Place(
            "export/serving/manifests.py",
            '{"stable": max(versions)}',
            '{"stable": min(versions)}',
        ),
        ("tests/export/test_serving_files.py::test_files_parse_and_agree",),
    ),
    Fault(
        "export-child-signal",
        "a child killed by a signal counts as exited with a code",
        Place("export/children.py", "elif code < 0:", "elif code > 0:"),
        ("tests/export/test_children.py::test_error_message_of_failing_child",),
    ),
)

RECIPES = (
    Fault(
        "recipes-first-answer",
        "the first answer is used even if the text does not contain it",
        Place(
            "recipes/corpora/readers.py",
            "(known or answers)[0]",
            "answers[0]",
        ),
        ("tests/recipes/runs/test_question_answering.py::test_read_package_corpora",),
    ),
    Fault(
        "recipes-test-questions",
        "questions of the test set stay in the training rows",
        Place(
            "recipes/corpora/readers.py",
            'if "label" in record and record["question"] not in known',
            'if "label" in record',
        ),
        ("tests/recipes/runs/test_question_answering.py::test_read_package_corpora",),
    ),
    Fault(
        "recipes-whole-words",
        "an answer may end within a word",
        Place(
            "keras_llm/data/answer_spans.py",
            "if letters[-1].isalnum():",
            "if letters[-1].isdigit():",
        ),
        (
            "tests/recipes/runs/test_question_answering.py"
            "::test_answers_match_whole_words_ignoring_white_space",
        ),
    ),
    Fault(
        "recipes-next-line",
        "the most frequent next line is that of a file's first line",
        Place(
            "recipes/common/code_evaluation.py",
            "usual.get(prefix.splitlines()[-1].strip())",
            "usual.get(prefix.splitlines()[0].strip())",
        ),
        (
            "tests/recipes/runs/test_code_generation.py::test_removed_line_and_its_context_occur_in_the_file",
        ),
    ),
    Fault(
        "recipes-contamination",
        "rows are removed from the test set, not from the training set",
        Place(
            "recipes/common/tables.py",
            "data.without_contamination(train, held_out, by)",
            "data.without_contamination(held_out, train, by)",
        ),
        ("tests/recipes/runs/test_text_classification.py::test_corpus_split_is_kept",),
    ),
    Fault(
        "recipes-random-pair",
        "a random reply and its context are swapped",
        Place(
            "recipes/common/judges.py",
            "RankedChat.pair(message, other)",
            "RankedChat.pair(other, message)",
        ),
        ("tests/recipes/runs/test_chatbot.py::test_random_replies_come_from_other_conversations",),
    ),
    Fault(
        "recipes-start-length",
        "a pretrained start ignores the requested length",
        Place(
            "recipes/common/pretrained.py",
            "max_length = min(max_length, config.max_length)",
            "max_length = config.max_length",
        ),
        ("tests/recipes/runs/test_question_answering.py::test_start_from_a_published_encoder",),
    ),
    Fault(
        "recipes-package-hash",
        "a downloaded file with another hash is used",
        Place(
            "recipes/corpora/packages.py",
            'if package.sha256 not in ("", found):',
            'if package.sha256 == "":',
        ),
        ("tests/recipes/test_corpora.py::test_download_with_another_hash_raises",),
    ),
    Fault(
        "recipes-memory-nearest",
        "a translation is that of the least similar source",
        Place(
            "recipes/common/translations.py",
            "(sources @ row.T).toarray().argmax()",
            "(sources @ row.T).toarray().argmin()",
        ),
        ("tests/recipes/runs/test_translation.py::test_nearest_source_baseline",),
    ),
)

FAULTS = (
    *LAYERS,
    *MODELS,
    *GENERATION,
    *TOKENIZERS,
    *DATA,
    *TRAINING,
    *TASKS,
    *CHECKPOINTS,
    *COMMANDS,
    *EXPORT,
    *RECIPES,
)
