"""The faults that seeded_faults.py puts into a copy of the library, one at a time.

Each is one changed line of one file which changes what the code does: a bound that is off by one,
a wrong axis or sign, a mask or check left out, arguments that changed places. Its name begins with
its room. Where the same line stands in another file in an older checkout, `older` says where.
"""

from typing import NamedTuple


class Place(NamedTuple):
    """Where the changed line is: its file, text that is there exactly once, and the new text."""

    file: str
    find: str
    replace: str


class Fault(NamedTuple):
    """A seeded fault and the tests, as pytest takes them, which are expected to notice it."""

    name: str
    what: str
    place: Place
    tests: tuple[str, ...]
    older: tuple[Place, ...] = ()


LAYERS = (
    Fault(
        "layers-causal-strict",
        "a token does not see itself",
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
        "slopes of heads beyond a power of two are the wrong ones",
        Place(
            "keras_llm/layers/alibi.py",
            "_slopes(2 * power, max_bias)[::2]",
            "_slopes(2 * power, max_bias)[1::2]",
        ),
        ("tests/layers/test_position.py",),
    ),
    Fault(
        "layers-yarn-ramp",
        "YaRN stretches the frequencies it should keep",
        Place(
            "keras_llm/layers/rotary.py",
            "return plain * (1 - ramp) + plain / self.factor * ramp, attention_factor",
            "return plain * ramp + plain / self.factor * (1 - ramp), attention_factor",
        ),
        ("tests/layers/test_position.py",),
    ),
    Fault(
        "layers-moe-balance",
        "the balance loss of experts has the wrong scale",
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
        "a distance at the edge falls into the bucket before",
        Place(
            "keras_llm/layers/relative.py",
            'ops.cast(distance >= bound, "int32")',
            'ops.cast(distance > bound, "int32")',
        ),
        ("tests/layers/test_parts.py",),
    ),
)

MODELS = (
    Fault(
        "models-prefill-place",
        "the first token of a chunk is not taken from it",
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
            "keras_llm/models/forward_cached.py",
            "ring = config.window(i) + config.num_sink_tokens",
            "ring = config.window(i)",
        ),
        ("tests/models/test_causal_lm.py",),
    ),
    Fault(
        "models-mean-mask",
        "the mean over tokens takes padding in",
        Place(
            "keras_llm/models/head_layers.py",
            "total = ops.sum(hidden * ops.expand_dims(mask, -1), axis=1)",
            "total = ops.sum(hidden, axis=1)",
        ),
        ("tests/models/test_heads.py",),
    ),
    Fault(
        "models-source-mask",
        "padding of the source is attended to",
        Place(
            "keras_llm/models/seq2seq.py",
            "mask = ops.not_equal(token_ids, config.pad_id)",
            "mask = ops.greater_equal(token_ids, config.pad_id)",
        ),
        ("tests/models/test_causal_lm.py::test_cross_attention_can_be_looked_at",),
    ),
    Fault(
        "models-window-pattern",
        "the pattern of windows is shifted by one layer",
        Place(
            "keras_llm/models/config.py",
            "pattern[layer % len(pattern)]",
            "pattern[(layer + 1) % len(pattern)]",
        ),
        ("tests/models/test_causal_lm.py::test_attention_can_be_looked_at",),
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
        ("tests/generation/test_generation.py::test_keep_top_is_the_definition",),
    ),
    Fault(
        "generation-typical-sign",
        "typical sampling measures from minus the entropy",
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
        "scores count one place after the text",
        Place(
            "keras_llm/generation/loop.py",
            'ops.expand_dims(ops.cast(lengths, "int32") - 1, 1)',
            'ops.expand_dims(ops.cast(lengths, "int32"), 1)',
        ),
        ("tests/generation/test_generation.py::test_scores_are_sums_of_log_probabilities",),
    ),
    Fault(
        "generation-greedy-rows",
        "rows of temperature 0 are sampled beside warm ones",
        Place(
            "keras_llm/generation/sampling.py",
            "return ops.where(sampling.temperature > 0, token, greedy())",
            "return ops.where(sampling.temperature >= 0, token, greedy())",
        ),
        ("tests/generation/test_generation.py::test_settings_are_per_row",),
    ),
    Fault(
        "generation-rank-mean",
        "the score of a continuation is the sum, not the mean",
        Place(
            "keras_llm/generation/search/ranked.py",
            "log_p / ops.maximum(count, 1.0), -math.inf",
            "log_p, -math.inf",
        ),
        ("tests/generation/test_rank.py",),
    ),
    Fault(
        "generation-beam-parent",
        "beams of a later group go on from those of the first",
        Place(
            "keras_llm/generation/search/beam.py",
            "parents.append(parent + i * width)",
            "parents.append(parent)",
        ),
        ("tests/generation/test_search.py::test_beam_search_is_the_definition",),
    ),
    Fault(
        "generation-contrastive-slot",
        "the penalty looks at a slot that is not written yet",
        Place(
            "keras_llm/generation/search/contrastive.py",
            "(slots < length + step)",
            "(slots <= length + step)",
        ),
        ("tests/generation/test_contrastive.py::test_the_penalty_alone_takes_the_least_alike",),
    ),
    Fault(
        "generation-speculative-accept",
        "drafted tokens after a refused one are taken",
        Place(
            "keras_llm/generation/search/speculative.py",
            "accepted = _sum(_none_before(ops.logical_not(agrees)))",
            "accepted = _sum(agrees)",
        ),
        ("tests/generation/test_speculative.py::test_every_kind_of_cache",),
    ),
    Fault(
        "generation-known-prefix",
        "the last token of a prompt counts as known",
        Place(
            "keras_llm/generation/prefix_cache.py",
            "row = token_ids[0, :-1]",
            "row = token_ids[0]",
        ),
        ("tests/tasks/test_conversation.py::test_what_is_known_gives_the_same_text",),
    ),
    Fault(
        "generation-engine-text",
        "penalties of the engine look at the prompt alone",
        Place(
            "keras_llm/generation/scheduler/steps.py",
            "ops.reshape(prompt_length + step, (1,)),",
            "ops.reshape(prompt_length, (1,)),",
        ),
        (
            "tests/generation/test_engine.py"
            "::test_each_request_gets_what_it_gets_alone_of_a_model_with_windows",
        ),
    ),
    Fault(
        "generation-engine-waiting",
        "one request too many may wait",
        Place(
            "keras_llm/generation/scheduler/engine.py",
            "if len(self._waiting) >= self._max_waiting:",
            "if len(self._waiting) > self._max_waiting:",
        ),
        (
            "tests/generation/test_engine.py::test_waiting_full_and_cancelled",
            "tests/generation/test_engine.py"
            "::test_waiting_full_and_cancelled_and_left_by_an_exception",
        ),
    ),
)

TOKENIZERS = (
    Fault(
        "tokenizers-unescape-order",
        "escapes are undone in the order they were made",
        Place(
            "keras_llm/tokenizers/sentencepiece.py",
            "\n    for character, escaped in reversed(ESCAPES):",
            "\n    for character, escaped in ESCAPES:",
        ),
        ("tests/tokenizers/test_sentencepiece.py",),
    ),
    Fault(
        "tokenizers-repeats",
        "a bounded repeat allows one too many",
        Place(
            "keras_llm/tokenizers/byte_automaton.py",
            "for _ in range(most - least):",
            "for _ in range(most - least + 1):",
        ),
        ("tests/tokenizers/test_constraint.py::test_walks_match",),
    ),
    Fault(
        "tokenizers-exclusive-minimum",
        "an exclusive minimum is taken as inclusive",
        Place(
            "keras_llm/tokenizers/json_schema.py",
            'math.floor(schema["exclusiveMinimum"]) + 1',
            'math.floor(schema["exclusiveMinimum"])',
        ),
        ("tests/tokenizers/test_constraint.py::test_integers_within_bounds",),
    ),
    Fault(
        "tokenizers-word-length",
        "words one character too long are split into pieces",
        Place(
            "keras_llm/tokenizers/word_piece.py",
            "max_input_chars_per_word=self.max_word_length,",
            "max_input_chars_per_word=self.max_word_length + 1,",
        ),
        ("tests/tokenizers/test_word_piece.py::test_ids_and_texts_of_the_original",),
    ),
    Fault(
        "tokenizers-offsets",
        "a token that begins within a character begins after it",
        Place(
            "keras_llm/tokenizers/offsets.py",
            "return self.before(starts + 1) - 1, self.before(ends)",
            "return self.before(starts), self.before(ends)",
        ),
        ("tests/tokenizers/test_offsets.py::test_a_graph_tells_the_same_places",),
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
        "packed texts learn to begin the next text",
        Place(
            "keras_llm/data/packing.py",
            "return inputs, tf.where(targets == bos_id, pad_id, targets)",
            "return inputs, targets",
        ),
        ("tests/data/test_data.py",),
    ),
    Fault(
        "data-masking-kept",
        "tokens are kept in place of random ones, not beside them",
        Place(
            "keras_llm/data/masking.py",
            "new = tf.where(fate > 1 - _KEPT, ids, new)",
            "new = tf.where(fate < _KEPT, ids, new)",
        ),
        ("tests/data/test_masking.py",),
    ),
    Fault(
        "data-infilling-shift",
        "the middle of an example moves one place too few",
        Place(
            "keras_llm/data/infilling.py",
            "shift = tf.where(places < second, 3 + end - second, shift)",
            "shift = tf.where(places < second, 2 + end - second, shift)",
        ),
        ("tests/data/test_spans.py",),
    ),
    Fault(
        "data-duplicates-union",
        "the size of a union counts what both texts have twice",
        Place(
            "keras_llm/data/cleaning/near_duplicates.py",
            "either = len(first) + len(second) - both",
            "either = len(first) + len(second)",
        ),
        ("tests/data/test_cleaning.py",),
    ),
    Fault(
        "data-card-digits",
        "the check of a card number doubles the wrong digits",
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
        "a random sentence may come of the same text",
        Place(
            "keras_llm/data/sentence_pairs.py",
            "tf.where(other < begin, other, other + size)",
            "tf.where(other <= begin, other, other + size)",
        ),
        ("tests/data/test_sentence_pairs.py",),
    ),
    Fault(
        "data-chat-learned",
        "the mark of what is learned is one token late",
        Place(
            "keras_llm/data/chat.py",
            "[example.learned[1:] for example in examples]",
            "[example.learned[:-1] for example in examples]",
        ),
        ("tests/data/test_chat.py::test_batches_give_the_loss_of_the_answers_alone",),
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
        ("tests/training/test_chunked.py::test_losses_and_gradients_are_those_of_the_formula",),
    ),
    Fault(
        "training-warmup",
        "the first step has a learning rate of zero",
        Place(
            "keras_llm/training/optimizers/schedules.py",
            "warmup = (step + 1.0) / (self.warmup_steps + 1.0)",
            "warmup = step / (self.warmup_steps + 1.0)",
        ),
        ("tests/training/test_optimizers.py::test_schedules_are_their_formulas",),
    ),
    Fault(
        "training-preference-sign",
        "the slope of the preference loss has its margins swapped",
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
        ("tests/training/test_lora.py::test_merged_saved_and_loaded_models_do_the_same",),
    ),
    Fault(
        "training-ngram-discount",
        "the discount of n-grams counts those seen twice once",
        Place(
            "keras_llm/training/metrics/ngrams.py",
            "ones / (ones + 2 * twos) if ones",
            "ones / (ones + twos) if ones",
        ),
        ("tests/training/test_ngrams.py",),
    ),
    Fault(
        "training-contrastive-own",
        "the own pair is left out of the loss, not its doubles",
        Place(
            "keras_llm/training/losses/contrastive.py",
            "excluded = ops.logical_and(same_group, ops.logical_not(same_row))",
            "excluded = ops.logical_and(same_group, same_row)",
        ),
        ("tests/training/test_contrastive.py::test_the_loss_is_its_formula",),
    ),
    Fault(
        "training-distillation-scale",
        "the loss of distillation is scaled by t, not by its square",
        Place(
            "keras_llm/training/trainers/distillation.py",
            "share * t * t * divergence",
            "share * t * divergence",
        ),
        ("tests/training/test_distillation.py",),
    ),
    Fault(
        "training-eight-bit-round",
        "averages in 8 bits are off by half a code more",
        Place(
            "keras_llm/training/optimizers/quantized_moments.py",
            "codes = ops.round(254.5 * ops.sqrt(roots) + 0.5)",
            "codes = ops.round(254.5 * ops.sqrt(roots))",
        ),
        (
            "tests/training/test_optimizers.py"
            "::test_averages_in_8_bits_are_off_by_half_a_code_at_most",
        ),
    ),
    Fault(
        "training-f1-axis",
        "F1 counts the guesses twice and the truth never",
        Place(
            "keras_llm/training/metrics/classification.py",
            "counts.sum(axis=0) + counts.sum(axis=1)",
            "counts.sum(axis=0) + counts.sum(axis=0)",
        ),
        ("tests/training/test_classification.py",),
    ),
    Fault(
        "training-resume-skip",
        "a resumed run leaves out one batch",
        Place(
            "keras_llm/training/callbacks/resume.py",
            "whole.skip(self.step)",
            "whole.skip(self.step + 1)",
        ),
        (
            "tests/training/test_optimizers.py"
            "::test_a_run_with_averages_in_8_bits_goes_on_with_the_same_bits",
        ),
    ),
)

TASKS = (
    Fault(
        "tasks-answer-window",
        "an answer in a later window is read off at the beginning",
        Place(
            "keras_llm/tasks/answer_spans.py",
            "begin = begin + span.start - ops.reshape(",
            "begin = span.start - ops.reshape(",
        ),
        ("tests/tasks/test_head_tasks.py::test_a_long_context_is_read_to_its_end",),
    ),
    Fault(
        "tasks-stop-held",
        "the first character of a stop string is given out",
        Place(
            "keras_llm/tasks/settings.py",
            "max(map(len, stops), default=1) - 1)",
            "max(map(len, stops), default=1) - 2)",
        ),
        ("tests/tasks/test_settings.py::test_pieces_hold_back_what_may_become_a_stop_string",),
    ),
    Fault(
        "tasks-sample-seeds",
        "all texts of a prompt have one seed",
        Place(
            "keras_llm/tasks/settings.py",
            "seeds = [seed + i for seed in",
            "seeds = [seed for seed in",
        ),
        ("tests/tasks/test_settings.py::test_several_texts_of_one_prompt",),
    ),
    Fault(
        "tasks-audit-end",
        "an audit compares the beginning of a text, not its end",
        Place(
            "keras_llm/tasks/audit.py",
            "[:, -new_tokens:]",
            "[:, :new_tokens]",
        ),
        ("tests/tasks/test_audit.py::test_what_is_known_by_heart_is_what_greedy_decoding_gives",),
    ),
    Fault(
        "tasks-attention-before",
        "attention to the token before is that to the token after",
        Place(
            "keras_llm/tasks/explanation.py",
            "before = np.diagonal(p, -1)",
            "before = np.diagonal(p, 1)",
        ),
        ("tests/tasks/test_explanation.py::test_attention_is_shared_out_whole",),
    ),
    Fault(
        "tasks-gradient-points",
        "the points of integration go from -1 to 1",
        Place(
            "keras_llm/tasks/gradients.py",
            "(points[batch, None, None] + 1) / 2",
            "points[batch, None, None]",
        ),
        ("tests/tasks/test_explanation.py::test_attributions_sum_to_what_the_text_adds",),
    ),
    Fault(
        "tasks-ranked-length",
        "long replies are ranked by their sum",
        Place(
            "keras_llm/tasks/ranked_chat.py",
            "row.log_probability / row.num_tokens",
            "row.log_probability",
        ),
        (
            "tests/tasks/test_ranked_chat.py"
            "::test_the_samples_are_those_of_the_chat_model_and_are_ranked_by_both_scores",
        ),
    ),
)

CHECKPOINTS = (
    Fault(
        "checkpoints-rope-ratio",
        "the ratio of the lengths of rotary positions is upside down",
        Place(
            "keras_llm/checkpoints/hugging_face/rope.py",
            'ratio = fields.get("max_position_embeddings") / original',
            'ratio = original / fields.get("max_position_embeddings")',
        ),
        (
            "tests/checkpoints/test_hugging_face.py"
            "::test_rotary_positions_of_every_version_of_the_format",
        ),
    ),
    Fault(
        "checkpoints-rotary-order",
        "rotary dimensions are put apart on the way in",
        Place(
            "keras_llm/checkpoints/hugging_face/weight_mapping.py",
            "[reorder(tensors[0], together).T]",
            "[reorder(tensors[0], apart).T]",
        ),
        ("tests/checkpoints/test_gguf.py::test_a_file_in_float32_is_the_model_bit_for_bit",),
    ),
    Fault(
        "checkpoints-gguf-heads",
        "keys have the heads of queries",
        Place(
            "keras_llm/checkpoints/gguf/model.py",
            'config.num_key_value_heads if part.key.endswith("key")',
            'config.num_key_value_heads if part.key.endswith("query")',
        ),
        ("tests/checkpoints/test_gguf.py::test_a_file_in_float32_is_the_model_bit_for_bit",),
    ),
    Fault(
        "checkpoints-outside-folder",
        "an index may name files outside its folder",
        Place(
            "keras_llm/checkpoints/hugging_face/tensors.py",
            "if pathlib.PurePath(file).name != file:",
            "if not file:",
        ),
        ("tests/checkpoints/test_tensors.py::test_a_broken_index_is_named",),
    ),
    Fault(
        "checkpoints-glove-count",
        "more words than the first line tells of are refused, fewer are not",
        Place(
            "keras_llm/checkpoints/glove.py",
            "if head and head[0] != len(words):",
            "if head and head[0] < len(words):",
        ),
        ("tests/checkpoints/test_glove.py",),
    ),
    Fault(
        "checkpoints-attention-scale",
        "the scale of attention is not a root",
        Place(
            "keras_llm/checkpoints/hugging_face/decoders.py",
            '"attention_scale": scalar**-0.5,',
            '"attention_scale": scalar**-1.0,',
        ),
        ("tests/checkpoints/test_hugging_face.py::test_every_family_comes_back_bit_for_bit",),
    ),
)

COMMANDS = (
    Fault(
        "cli-exit-code",
        "a wrong input ends the command with exit code 1",
        Place("keras_llm/cli.py", "    return 2", "    return 1"),
        (
            "tests/checkpoints/test_import_command.py"
            "::test_what_is_wrong_is_one_line_and_exit_code_2",
        ),
    ),
    Fault(
        "commands-settings-given",
        "settings that differ from the usual ones are left out",
        Place(
            "keras_llm/commands/sampling.py",
            "or value != field.default",
            "or value == field.default",
        ),
        ("tests/test_cli.py::test_generate_takes_every_setting",),
    ),
    Fault(
        "commands-chat-reset",
        "a conversation that is reset has no system text",
        Place(
            "keras_llm/commands/chat.py",
            '== "/reset":\n            conversation = task.conversation(options.system)',
            '== "/reset":\n            conversation = task.conversation()',
        ),
        ("tests/test_cli.py::test_a_chat_goes_on_line_by_line",),
    ),
    Fault(
        "commands-audit-card",
        "the audit of a card is added, not written anew",
        Place(
            "keras_llm/commands/audit.py",
            'text.partition(_BEGIN + "\\n")',
            'text.partition(_END + "\\n")',
        ),
        ("tests/tasks/test_audit.py::test_the_command_line_writes_the_card",),
    ),
    Fault(
        "commands-explain-shades",
        "shades of the page are those of the plain share",
        Place(
            "keras_llm/commands/explain_page.py",
            "255 * np.sqrt(p / p.max())",
            "255 * (p / p.max())",
        ),
        ("tests/tasks/test_explanation.py::test_the_page_shows_the_numbers_and_asks_for_nothing",),
    ),
    Fault(
        "files-offset",
        "the place of a broken byte is that within its line",
        Place("keras_llm/files.py", "{offset + error.start}", "{error.start}"),
        ("tests/data/test_data.py::test_bad_files_are_named_with_their_line",),
    ),
    Fault(
        "files-kept",
        "what is worth keeping is removed after an error, the rest is kept",
        Place(
            "keras_llm/files.py",
            "            if not worth_keeping():",
            "            if worth_keeping():",
        ),
        ("tests/test_files.py",),
    ),
)

EXPORT = (
    Fault(
        "export-weights-transposed",
        "weights of a product are transposed where they already are",
        Place(
            "export/litert/lowering/rewrites.py",
            "if not operator.builtinOptions.adjY:",
            "if operator.builtinOptions.adjY:",
        ),
        ("tests/export/test_quantization.py",),
    ),
    Fault(
        "export-logits-output",
        "another output than the logits is taken for them",
        Place(
            "export/litert/lowering/flatbuffer.py",
            'if row.name == b"logits" and row.tensorIndex == output:',
            'if row.name != b"logits" and row.tensorIndex == output:',
        ),
        (
            "tests/export/test_quantization.py"
            "::test_each_weight_is_stored_once_and_as_its_rule_says",
            "tests/export/test_quantization.py::test_a_shared_table_has_one_rule",
            "tests/export/test_litert_lm.py"
            "::test_a_byte_pair_tokenizer_goes_in_as_tokenizer_json_with_a_further_end_token",
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
        "a model with any layer in float32 counts as one in float32",
        Place(
            "export/litert/lowering/trace.py",
            "return all(layer.compute_dtype in dtypes",
            "return any(layer.compute_dtype in dtypes",
        ),
        (
            "tests/export/test_litert.py::test_a_bfloat16_model_is_exported_in_float32",
            "tests/export/test_litert.py"
            "::test_bfloat16_further_end_tokens_and_steps_that_look_at_fewer_slots",
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
        "products are found by their other input",
        Place(
            "export/litert/lowering/trace.py",
            "consumer.inputs[1] is tensor",
            "consumer.inputs[0] is tensor",
        ),
        ("tests/export/test_balance.py",),
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
        "weights are multiplied by the factor of their inputs",
        Place(
            "export/litert/weights.py",
            "yield rows if constant.divisor is None else rows / constant.divisor",
            "yield rows if constant.divisor is None else rows * constant.divisor",
        ),
        ("tests/export/test_balance.py::test_nothing_changes_in_float32",),
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
        ("tests/export/test_quantization.py::test_a_recipe_gives_what_dequantized_weights_give",),
    ),
    Fault(
        "export-first-rule",
        "the first rule that fits a layer counts, not the last",
        Place(
            "export/litert/quantization/rules.py",
            "for rule in reversed(rules) if re.search",
            "for rule in rules if re.search",
        ),
        (
            "tests/export/test_quantization.py::test_the_last_rule_that_fits_counts",
            "tests/export/test_litert_lm.py"
            "::test_a_byte_pair_tokenizer_goes_in_as_tokenizer_json_with_a_further_end_token",
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
        "the range of 8 bits is 128",
        Place(
            "export/litert/quantization/rounding.py",
            "np.float32(127 if self.bits == 8 else 7)",
            "np.float32(128 if self.bits == 8 else 7)",
        ),
        ("tests/export/test_quantization.py::test_numbers_are_those_of_googles_quantizer",),
    ),
    Fault(
        "export-int4-pairs",
        "the two numbers of a byte have changed places",
        Place(
            "export/litert/quantization/rounding.py",
            "values[0::2] & 0x0F | (values[1::2] << 4)",
            "values[1::2] & 0x0F | (values[0::2] << 4)",
        ),
        ("tests/export/test_quantization.py::test_pairs_of_four_bits",),
    ),
    Fault(
        "export-zero-point",
        "the zero point of an activation has the wrong sign",
        Place(
            "export/litert/quantization/rounding.py",
            "np.rint(-128 - least / scale)",
            "np.rint(-128 + least / scale)",
        ),
        ("tests/export/test_quantization.py::test_a_recipe_gives_what_dequantized_weights_give",),
    ),
    Fault(
        "export-balance-factor",
        "columns are balanced the wrong way",
        Place(
            "export/litert/quantization/smooth_quant.py",
            "factor = np.sqrt(np.maximum(columns, _LEAST) / np.maximum(values, _LEAST))",
            "factor = np.sqrt(np.maximum(values, _LEAST) / np.maximum(columns, _LEAST))",
        ),
        ("tests/export/test_balance.py::test_eight_bits_lose_less",),
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
        "the scale of a block is chosen without the weight of its columns",
        Place(
            "export/litert/quantization/gptq.py",
            "((block - steps * scale[:, None]) / diagonal) ** 2",
            "(block - steps * scale[:, None]) ** 2",
        ),
        ("tests/export/test_gptq.py",),
    ),
    Fault(
        "export-calibration-range",
        "the range of an activation is the part that all batches share",
        Place(
            "export/litert/quantization/calibration.py",
            "min(least, float(values.min())), max(largest, float(values.max()))",
            "max(least, float(values.min())), min(largest, float(values.max()))",
        ),
        ("tests/export/test_quantization.py::test_a_recipe_gives_what_dequantized_weights_give",),
    ),
    Fault(
        "export-encoder-mask",
        "padding of a source is attended to on the device",
        Place(
            "export/litert/decoder_graphs.py",
            "encoder_mask > 0.5",
            "encoder_mask > -0.5",
        ),
        ("tests/export/test_litert_lm.py::test_a_translation_is_the_same_text",),
    ),
    Fault(
        "export-decode-lengths",
        "a step looks at one slot too few at the edge of a length",
        Place(
            "export/litert/runtime/decoder.py",
            "if n > position), None)",
            "if n >= position), None)",
        ),
        (
            "tests/export/test_litert.py::test_steps_that_look_at_fewer_slots_say_the_same",
            "tests/export/test_litert.py"
            "::test_bfloat16_further_end_tokens_and_steps_that_look_at_fewer_slots",
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
        ("tests/export/test_litert.py::test_models_of_other_parts",),
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
        "a word that begins where a token ends is given that token",
        Place(
            "export/saved_model/signatures/heads.py",
            'word_starts, side="right")',
            'word_starts, side="left")',
        ),
        ("tests/export/test_task_signatures.py::test_a_graph_answers_as_its_task",),
    ),
    Fault(
        "export-answer-start",
        "white space before an answer moves its start the wrong way",
        Place(
            "export/saved_model/signatures/question_answering.py",
            "start += _characters(answer) - _characters(trimmed)",
            "start -= _characters(answer) - _characters(trimmed)",
        ),
        ("tests/export/test_task_signatures.py::test_a_graph_answers_as_its_task",),
    ),
    Fault(
        "export-loop-bounds",
        "no new tokens may be asked for",
        Place(
            "export/saved_model/signatures/loop.py",
            'return value > 0, "an int > 0"',
            'return value >= 0, "an int > 0"',
        ),
        ("tests/export/test_task_signatures.py::test_hostile_inputs_are_refused",),
    ),
    Fault(
        "export-prompt-end",
        "a prompt that is too long keeps its first tokens",
        Place(
            "export/saved_model/signatures/text_generation.py",
            "source = tf.where(place < begin, place, place + tf.expand_dims(lengths - kept, 1))",
            "source = place",
        ),
        ("tests/export/test_saved_model.py::test_a_prompt_that_is_too_long_keeps_its_last_tokens",),
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
        "export-proof-tolerance",
        "a proof asks nothing of what should be exact",
        Place(
            "export/saved_model/verify_base.py",
            "tolerance = tolerance if self.exact else np.inf",
            "tolerance = np.inf if self.exact else tolerance",
        ),
        ("tests/export/test_task_signatures.py::test_verification_fails_where_answers_differ",),
        (
            Place(
                "export/saved_model/verify_base.py",
                "tolerance = TOLERANCE if self.exact else np.inf",
                "tolerance = np.inf if self.exact else TOLERANCE",
            ),
        ),
    ),
    Fault(
        "export-proof-scores",
        "a proof compares the scores of the task with themselves",
        Place(
            "export/saved_model/verify_generation.py",
            'self.number("scores", scored["log_probability"], self._scores)',
            'self.number("scores", self._scores, self._scores)',
        ),
        (
            "tests/export/test_saved_model.py::test_an_export_with_other_weights_leaves_nothing",
            "tests/export/test_saved_model.py::test_verification_fails_where_answers_differ",
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
        ("tests/export/test_litert.py::test_a_file_that_differs_from_the_model_is_not_written",),
    ),
    Fault(
        "export-client-retries",
        "a client tries again after every error",
        Place(
            "export/serving/client/client.py",
            'if error.code != "UNAVAILABLE" or attempt == self._retries:',
            "if attempt == self._retries:",
        ),
        ("tests/export/test_client.py::test_only_unavailable_is_retried",),
    ),
    Fault(
        "export-client-positions",
        "tokens of a stream are one place too far",
        Place(
            "export/serving/client/stream.py",
            '"positions": [[length + step]],',
            '"positions": [[length + step + 1]],',
        ),
        (
            "tests/export/test_generation_signatures.py"
            "::test_steps_of_a_client_take_no_id_that_the_tokenizer_lacks",
        ),
    ),
    Fault(
        "export-batching-shapes",
        "requests of other shapes are merged into one batch",
        Place(
            "export/serving/server/batching.py",
            "key = (id(servable), signature.name, inner)",
            "key = (id(servable), signature.name)",
        ),
        ("tests/export/test_batching.py::test_only_what_has_equal_inner_shapes_is_merged",),
    ),
    Fault(
        "export-server-version",
        "the oldest version of a model is served",
        Place(
            "export/serving/server/models.py",
            "return max(available)",
            "return min(available)",
        ),
        ("tests/export/test_local_server.py::test_policies_and_labels",),
    ),
    Fault(
        "export-server-chunked",
        "a request with a length and in chunks is taken",
        Place(
            "export/serving/server/rest.py",
            'if len(lengths) == 1 and "Transfer-Encoding" not in self.headers else ""',
            'if len(lengths) == 1 else ""',
        ),
        ("tests/export/test_local_server.py::test_broken_http_gets_an_answer_or_an_end",),
    ),
    Fault(
        "export-server-text-size",
        "a text of just the largest size is refused",
        Place(
            "export/serving/server/core.py",
            "if size > self._max_text_bytes:",
            "if size >= self._max_text_bytes:",
        ),
        ("tests/export/test_local_server.py::test_deadlines_and_message_sizes",),
    ),
    Fault(
        "export-tensor-repeat",
        "values that are left out are the first one",
        Place(
            "export/serving/tensors.py",
            "values[-1:] if len(values)",
            "values[:1] if len(values)",
        ),
        ("tests/export/test_wire.py::test_what_is_left_out_is_the_last_value_or_zero",),
    ),
    Fault(
        "export-wire-number",
        "the name of a signature has another field number",
        Place(
            "export/serving/wire.py",
            "string signature_name = 3",
            "string signature_name = 5",
        ),
        ("tests/export/test_wire.py::test_fields_are_those_of_the_published_messages",),
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
        "a child that a signal ended counts as one with an exit code",
        Place("export/children.py", "elif code < 0:", "elif code > 0:"),
        ("tests/export/test_children.py::test_words_of_a_child_that_fails",),
    ),
)

RECIPES = (
    Fault(
        "recipes-answer-asked",
        "the first answer counts, whether or not it is known",
        Place(
            "recipes/corpora/readers.py",
            "(known or answers)[0]",
            "answers[0]",
        ),
        (
            "tests/recipes/test_question_answering.py"
            "::test_corpora_are_read_as_their_package_has_them",
        ),
    ),
    Fault(
        "recipes-questions-known",
        "questions that are asked in the test stay in the training rows",
        Place(
            "recipes/corpora/readers.py",
            'if "label" in record and record["question"] not in known',
            'if "label" in record',
        ),
        (
            "tests/recipes/test_question_answering.py"
            "::test_corpora_are_read_as_their_package_has_them",
        ),
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
            "tests/recipes/test_question_answering.py"
            "::test_answers_are_found_as_whole_words_white_space_aside",
        ),
    ),
    Fault(
        "recipes-usual-line",
        "the usual next line is that of the first line of a file",
        Place(
            "recipes/common/code_evaluation.py",
            "usual.get(prefix.splitlines()[-1].strip())",
            "usual.get(prefix.splitlines()[0].strip())",
        ),
        ("tests/recipes/test_code_generation.py::test_a_gap_and_what_is_around_it_are_the_file",),
    ),
    Fault(
        "recipes-contamination",
        "rows are taken out of the test, not of the training",
        Place(
            "recipes/common/tables.py",
            "data.without_contamination(train, held_out, by)",
            "data.without_contamination(held_out, train, by)",
        ),
        ("tests/recipes/test_text_classification.py::test_a_corpus_with_its_own_split_keeps_it",),
    ),
    Fault(
        "recipes-random-pair",
        "a random reply stands before what was said",
        Place(
            "recipes/common/judges.py",
            "RankedChat.pair(said, other)",
            "RankedChat.pair(other, said)",
        ),
        ("tests/recipes/test_chatbot.py::test_replies_of_other_conversations_are_the_random_ones",),
    ),
    Fault(
        "recipes-start-length",
        "a published beginning forgets the length that was asked for",
        Place(
            "recipes/common/pretrained.py",
            "max_length = min(max_length, config.max_length)",
            "max_length = config.max_length",
        ),
        ("tests/recipes/test_question_answering.py::test_a_published_encoder_is_the_beginning",),
    ),
    Fault(
        "recipes-package-hash",
        "a downloaded file with another hash is used",
        Place(
            "recipes/corpora/packages.py",
            'if package.sha256 not in ("", found):',
            'if package.sha256 == "":',
        ),
        ("tests/recipes/test_corpora.py::test_another_file_under_the_same_name_is_not_used",),
    ),
    Fault(
        "recipes-memory-nearest",
        "a translation is that of the least alike source",
        Place(
            "recipes/common/translations.py",
            "(known @ row.T).toarray().argmax()",
            "(known @ row.T).toarray().argmin()",
        ),
        (
            "tests/recipes/test_translation.py"
            "::test_the_memory_gives_the_target_of_the_nearest_source",
        ),
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
