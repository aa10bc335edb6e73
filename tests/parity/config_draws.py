"""Draw legal config.json files of every family, with every field of its config class."""

SIZE, HEADS, LENGTH, VOCABULARY = 48, 6, 64, 97
# Fields of config classes that do not change what a model computes.
NO_EFFECT = {
    *("bos_token_id", "eos_token_id", "initializer_factor", "output_router_logits"),
    *("pretraining_tp", "reorder_and_upcast_attn", "sinusoidal_pos_embds", "summary_activation"),
    *("summary_first_dropout", "summary_proj_to_labels", "summary_type", "summary_use_proj"),
    *("use_cache", "_sliding_window_pattern"),
}


def pick(rng, *values):
    """Return one of `values`."""
    return values[rng.integers(len(values))]


def rope(rng, gemma3=False):
    """Draw the fields of rotary positions in the format of any version of transformers."""
    theta = pick(rng, 100.0, 10000.0, 500000.0)
    scaling = pick(
        rng,
        None,
        {"rope_type": "default"},
        {"rope_type": "linear", "factor": 2.5},
        {"rope_type": "linear", "factor": 4.0, "rope_theta": 3000.0},
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": pick(rng, 2.0, 4.0),
            "original_max_position_embeddings": 16,
        },
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
        {
            "rope_type": "yarn",
            "factor": 2.0,
            "attention_factor": 1.3,
            "beta_fast": 8.0,
            "beta_slow": 2.0,
            "truncate": False,
        },
        {"rope_type": "yarn", "factor": 3.0, "mscale": 1.2, "mscale_all_dim": 0.7},
        {"rope_type": "dynamic", "factor": 2.0},
        {"type": "linear", "factor": 2.0},
    )
    other = {"rope_type": "linear", "factor": 6.0, "rope_theta": 700.0}
    if gemma3:
        new = {"full_attention": scaling or other, "sliding_attention": pick(rng, None, other)}
        return pick(
            rng,
            {},
            {"rope_theta": theta, "rope_scaling": scaling},
            {"rope_local_base_freq": 300.0},
            {"rope_parameters": new},
            {"rope_parameters": new, "rope_scaling": scaling},
        )
    return pick(
        rng,
        {},
        {"rope_theta": theta},
        {"rope_theta": theta, "rope_scaling": scaling},
        {"rope_parameters": scaling},
        {"rope_parameters": {"rope_theta": theta, **(scaling or {"rope_type": "default"})}},
        {"rope_parameters": other, "rope_scaling": scaling},
        {"rope_parameters": other, "rope_scaling": scaling, "rope_theta": theta},
    )


def decoder(rng, activation="hidden_act"):
    """Draw the fields that Llama and later families share."""
    return {
        "vocab_size": VOCABULARY,
        "hidden_size": SIZE,
        "intermediate_size": pick(rng, 33, 80),
        "num_hidden_layers": pick(rng, 1, 2, 4),
        "num_attention_heads": HEADS,
        "num_key_value_heads": pick(rng, 1, 2, 6),
        "head_dim": pick(rng, 8, 10, 16),
        "max_position_embeddings": LENGTH,
        "rms_norm_eps": pick(rng, 1e-6, 1e-5, 1e-2),
        activation: pick(rng, "silu", "swish", "gelu", "gelu_new", "gelu_pytorch_tanh", "relu"),
        "tie_word_embeddings": pick(rng, True, False),
        "attention_dropout": pick(rng, 0.0, 0.1),
        "initializer_range": pick(rng, 0.02, 0.1),
        "pad_token_id": pick(rng, None, 1),
        **pick(rng, *[{}] * 7, {"is_causal": pick(rng, True, False)}),
        **rope(rng),
    }


def layer_types(rng, fields):
    """Draw the kinds of the layers, or nothing."""
    kinds = ("full_attention", "sliding_attention")
    types = [pick(rng, *kinds) for _ in range(fields["num_hidden_layers"])]
    return pick(rng, {}, {"layer_types": types})


def llama(rng):
    biases = {name: pick(rng, True, False) for name in ("attention_bias", "mlp_bias")}
    return {**decoder(rng), **biases, "head_dim": pick(rng, None, 10, 16)}


def mistral(rng):
    return {**decoder(rng), "sliding_window": pick(rng, None, 1, 5, 100)}


def mixtral(rng):
    experts = {
        "intermediate_size": pick(rng, 48, 80),
        "num_local_experts": pick(rng, 2, 4),
        "num_experts_per_tok": pick(rng, 1, 2),
        "router_aux_loss_coef": 0.01,
        "router_jitter_noise": 0.0,
    }
    return {**mistral(rng), **experts}


def qwen3(rng):
    fields = decoder(rng)
    return {
        **fields,
        "attention_bias": pick(rng, True, False),
        "use_sliding_window": pick(rng, True, False),
        "sliding_window": pick(rng, None, 1, 5),
        "max_window_layers": pick(rng, 0, 1, 9),
        **layer_types(rng, fields),
    }


def qwen2(rng):
    fields = qwen3(rng)
    del fields["attention_bias"], fields["head_dim"]
    return fields


def smollm3(rng):
    fields = decoder(rng)
    del fields["head_dim"]
    count = fields["num_hidden_layers"]
    flags = [int(rng.integers(2)) for _ in range(count)]
    return {
        **fields,
        **{name: pick(rng, True, False) for name in ("attention_bias", "mlp_bias")},
        **pick(rng, {}, {"no_rope_layers": flags}, {"no_rope_layer_interval": pick(rng, 1, 2)}),
        "use_sliding_window": pick(rng, *[False] * 5, True),
        "sliding_window": pick(rng, None, 5),
        **pick(rng, {}, {}, layer_types(rng, fields)),
    }


def phi3(rng):
    fields = decoder(rng)
    del fields["head_dim"]
    for name in ("rope_theta", "rope_scaling", "rope_parameters"):
        fields.pop(name, None)
    fraction = pick(rng, {}, {"partial_rotary_factor": 0.5})
    theta = {"rope_theta": pick(rng, 300.0, 10000.0)}
    count = int(SIZE // HEADS * fraction.get("partial_rotary_factor", 1.0)) // 2
    factors = {"short_factor": [1.0] * count, "long_factor": [2.0] * count}
    long = {"rope_type": "longrope", **factors, **theta}  # the only scaling; refused
    default = {"rope_type": "default", **theta, **fraction}
    return {
        **fields,
        **fraction,
        **pick(rng, {}, theta, *[{"rope_parameters": default}] * 3, {"rope_parameters": long}),
        "sliding_window": pick(rng, None, 1, 5, 100),
        "resid_pdrop": pick(rng, 0.0, 0.1),
        "embd_pdrop": pick(rng, 0.0, 0.1),
        "original_max_position_embeddings": LENGTH,
    }


def opt(rng):
    return {
        "vocab_size": VOCABULARY,
        "hidden_size": SIZE,
        "word_embed_proj_dim": pick(rng, *[SIZE] * 5, SIZE // 2),
        "ffn_dim": pick(rng, 33, 80),
        "num_hidden_layers": pick(rng, 1, 2, 4),
        "num_attention_heads": HEADS,
        "max_position_embeddings": LENGTH,
        "do_layer_norm_before": pick(rng, True, False),
        "activation_function": pick(rng, "relu", "gelu", "silu"),
        "tie_word_embeddings": pick(rng, True, False),
        "enable_bias": pick(rng, *[True] * 5, False),
        "layer_norm_elementwise_affine": pick(rng, *[True] * 5, False),
        "_remove_final_layer_norm": pick(rng, *[False] * 5, True),
        "dropout": pick(rng, 0.0, 0.1),
        "attention_dropout": pick(rng, 0.0, 0.1),
        "layerdrop": 0.0,
        "init_std": pick(rng, 0.02, 0.1),
        "pad_token_id": 1,
    }


def gpt_neox(rng):
    fraction = pick(rng, 0.25, 0.5, 1.0)
    theta = pick(rng, 300.0, 10000.0)
    old = {"rotary_pct": fraction, "rotary_emb_base": theta}
    new = {"rope_type": "default", "rope_theta": theta, "partial_rotary_factor": fraction}
    return {
        "vocab_size": VOCABULARY,
        "hidden_size": SIZE,
        "intermediate_size": pick(rng, 33, 80),
        "num_hidden_layers": pick(rng, 1, 2, 4),
        "num_attention_heads": HEADS,
        "max_position_embeddings": LENGTH,
        "hidden_act": pick(rng, "gelu", "gelu_new", "relu"),
        "layer_norm_eps": pick(rng, 1e-6, 1e-5, 1e-2),
        "use_parallel_residual": pick(rng, True, False),
        "attention_bias": pick(rng, True, False),
        "tie_word_embeddings": pick(rng, True, False),
        "hidden_dropout": pick(rng, 0.0, 0.1),
        "attention_dropout": pick(rng, 0.0, 0.1),
        "classifier_dropout": 0.1,
        "is_decoder": False,
        "pad_token_id": pick(rng, None, 1),
        "initializer_range": pick(rng, 0.02, 0.1),
        **pick(rng, {}, old, {"rope_parameters": new}),
    }


def gemma2(rng):
    fields = decoder(rng, "hidden_activation")
    return {
        **fields,
        "attention_bias": pick(rng, True, False),
        "query_pre_attn_scalar": pick(rng, 1, 24, 256),
        "sliding_window": pick(rng, 1, 5, 100),
        "attn_logit_softcapping": pick(rng, None, 2.0, 50.0),
        "final_logit_softcapping": pick(rng, None, 3.0),
        "use_bidirectional_attention": pick(rng, None, None, None, False, True),
        **layer_types(rng, fields),
    }


def gemma3(rng):
    fields = gemma2(rng)
    for name in ("rope_theta", "rope_scaling", "rope_parameters"):
        fields.pop(name, None)
    period = pick(rng, {}, {"sliding_window_pattern": pick(rng, 2, 3)})
    cap = pick(rng, None, None, None, 2.0)
    return {**fields, **rope(rng, gemma3=True), **period, "attn_logit_softcapping": cap}


def gpt2(rng):
    return {
        "vocab_size": VOCABULARY,
        "n_positions": LENGTH,
        "n_embd": SIZE,
        "n_layer": pick(rng, 1, 3),
        "n_head": pick(rng, 1, 6),
        "n_inner": pick(rng, None, 100),
        "activation_function": pick(rng, "gelu_new", "gelu", "relu", "silu", "gelu_pytorch_tanh"),
        "layer_norm_epsilon": pick(rng, 1e-5, 1e-2),
        **{name: pick(rng, 0.0, 0.1) for name in ("resid_pdrop", "embd_pdrop", "attn_pdrop")},
        "tie_word_embeddings": pick(rng, True, False),
        "scale_attn_weights": pick(rng, True, True, True, False),
        "scale_attn_by_inverse_layer_idx": pick(rng, False, False, False, True),
        "add_cross_attention": False,
        "initializer_range": 0.02,
        "pad_token_id": pick(rng, None, 1),
    }


def labels(rng):
    """Draw the fields of a classifier's labels."""
    count = pick(rng, 1, 2, 3, 5)
    several = (None, "single_label_classification", "multi_label_classification", "regression")
    fields = {"problem_type": pick(rng, *((None, "regression") if count == 1 else several))}
    names = {str(i): f"L{i}" for i in range(count)}
    return {**fields, **pick(rng, {"num_labels": count}, {"id2label": names})}


def bert(rng):
    return {
        "vocab_size": VOCABULARY,
        "hidden_size": SIZE,
        "num_hidden_layers": pick(rng, 1, 3),
        "num_attention_heads": pick(rng, 1, 6),
        "intermediate_size": pick(rng, 33, 80),
        "max_position_embeddings": LENGTH,
        "type_vocab_size": pick(rng, 1, 2, 3),
        "hidden_act": pick(rng, "gelu", "relu", "gelu_new", "silu"),
        "layer_norm_eps": pick(rng, 1e-12, 1e-5, 1e-2),
        "hidden_dropout_prob": pick(rng, 0.0, 0.1),
        "attention_probs_dropout_prob": pick(rng, 0.0, 0.1),
        "classifier_dropout": pick(rng, None, 0.0, 0.2),
        "initializer_range": 0.02,
        "pad_token_id": pick(rng, 0, 1),
        "is_decoder": pick(rng, False, False, False, True),
        "add_cross_attention": False,
        "tie_word_embeddings": pick(rng, True, True, True, False),
        **labels(rng),
    }


def roberta(rng):
    return {**bert(rng), "pad_token_id": pick(rng, 1, 0, 5)}


def distilbert(rng):
    return {
        "vocab_size": VOCABULARY,
        "max_position_embeddings": LENGTH,
        "n_layers": pick(rng, 1, 3),
        "n_heads": pick(rng, 1, 6),
        "dim": SIZE,
        "hidden_dim": pick(rng, 33, 80),
        "activation": pick(rng, "gelu", "relu", "gelu_new"),
        "dropout": pick(rng, 0.0, 0.1),
        "attention_dropout": pick(rng, 0.0, 0.1),
        "qa_dropout": pick(rng, 0.0, 0.1),
        "seq_classif_dropout": pick(rng, 0.0, 0.2),
        "initializer_range": 0.02,
        "pad_token_id": pick(rng, 0, 1),
        "tie_word_embeddings": pick(rng, True, True, True, False),
        **labels(rng),
    }


def t5(rng):
    form = pick(rng, "relu", "gelu", "gated-gelu", "gated-silu", "gated-relu")
    activation = "gelu_new" if form == "gated-gelu" else form.removeprefix("gated-")
    derived = {"dense_act_fn": activation, "is_gated_act": form.startswith("gated")}
    return {
        "vocab_size": VOCABULARY,
        "d_model": SIZE,
        "d_kv": pick(rng, 8, 10),
        "d_ff": pick(rng, 33, 80),
        "num_layers": pick(rng, 1, 2),
        "num_decoder_layers": pick(rng, None, 1, 3),
        "num_heads": pick(rng, 1, 4),
        "relative_attention_num_buckets": pick(rng, 8, 32),
        "relative_attention_max_distance": pick(rng, 20, 128),
        "layer_norm_epsilon": pick(rng, 1e-6, 1e-2),
        "feed_forward_proj": form,
        **pick(rng, {}, {}, derived, {"dense_act_fn": "relu"}),
        "tie_word_embeddings": pick(rng, True, False),
        "scale_decoder_outputs": pick(rng, True, False),
        "dropout_rate": pick(rng, 0.0, 0.1),
        "classifier_dropout": 0.0,
        "pad_token_id": 0,
        "decoder_start_token_id": pick(rng, 0, 2),
        "is_decoder": False,
    }


_ENCODER_HEADS = ("", "ForMaskedLM", "ForSequenceClassification", "ForTokenClassification")
# Model type -> function that draws a config, and names of classes that transformers has.
FAMILIES = {
    "gpt2": (gpt2, ["GPT2LMHeadModel"]),
    "opt": (opt, ["OPTForCausalLM"]),
    "gpt_neox": (gpt_neox, ["GPTNeoXForCausalLM"]),
    "llama": (llama, ["LlamaForCausalLM"]),
    "mistral": (mistral, ["MistralForCausalLM"]),
    "mixtral": (mixtral, ["MixtralForCausalLM"]),
    "qwen2": (qwen2, ["Qwen2ForCausalLM"]),
    "qwen3": (qwen3, ["Qwen3ForCausalLM"]),
    "smollm3": (smollm3, ["SmolLM3ForCausalLM"]),
    "phi3": (phi3, ["Phi3ForCausalLM"]),
    "gemma2": (gemma2, ["Gemma2ForCausalLM"]),
    "gemma3_text": (gemma3, ["Gemma3ForCausalLM"]),
    "bert": (
        bert,
        [
            *(f"Bert{head or 'Model'}" for head in (*_ENCODER_HEADS, "ForQuestionAnswering")),
            "BertForNextSentencePrediction",
        ],
    ),
    "roberta": (
        roberta,
        [f"Roberta{head or 'Model'}" for head in (*_ENCODER_HEADS, "ForQuestionAnswering")],
    ),
    "distilbert": (
        distilbert,
        [f"DistilBert{head or 'Model'}" for head in (*_ENCODER_HEADS, "ForQuestionAnswering")],
    ),
    "t5": (t5, ["T5ForConditionalGeneration"]),
}
