"""Build and train the models that `training.py` compares, with this library and with others.

"gpt" predicts the next token at 256 positions; "bert" predicts 38 masked tokens (15 %) of 256. Both
are trained on random tokens in float32, with AdamW with the same settings.
"""

import contextlib
import time

HIDDEN = 38
SHAPES = {
    "gpt": {"num_layers": 6, "hidden_dim": 256, "num_heads": 4, "intermediate_dim": 1024},
    "bert": {"num_layers": 4, "hidden_dim": 256, "num_heads": 4, "intermediate_dim": 1024},
    "tiny": {"num_layers": 2, "hidden_dim": 32, "num_heads": 2, "intermediate_dim": 64},
}
LENGTHS = {"gpt": 256, "bert": 256, "tiny": 32}


def config_of(shape, vocabulary_size):
    from keras_llm import models

    kind = models.EncoderConfig if shape == "bert" else models.CausalLMConfig
    return kind(
        vocabulary_size=vocabulary_size,
        max_length=LENGTHS[shape],
        position="learned",
        norm="layer",
        activation="gelu_tanh",
        gated=False,
        use_bias=True,
        **SHAPES[shape],
    )


def ours(shape, vocabulary_size):
    from keras_llm import models, training

    build = models.masked_lm if shape == "bert" else models.causal_lm
    trainer = training.LanguageModelTrainer(build(config_of(shape, vocabulary_size)))
    return trainer, {"optimizer": training.AdamW(1e-3)}


def rematerialized(shape, vocabulary_size):
    from keras_llm import training

    trainer, arguments = ours(shape, vocabulary_size)
    training.rematerialize(trainer)
    return trainer, arguments


def eight_bit_state(shape, vocabulary_size):
    from keras_llm import training

    trainer, _ = ours(shape, vocabulary_size)
    return trainer, {"optimizer": training.AdamW(1e-3, state_bits=8)}


def plain_loss(shape, vocabulary_size):
    """Build the same model with full logits and Keras's cross-entropy loss."""
    import keras

    trainer, _ = ours(shape, vocabulary_size)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return trainer.model, {"loss": loss, "metrics": ["accuracy"]}


def keras_hub(shape, vocabulary_size):
    import keras
    import keras_hub

    def gelu(x):
        return keras.activations.gelu(x, approximate=True)

    row = SHAPES[shape]
    is_bert = shape == "bert"
    token_ids = keras.Input((LENGTHS[shape],), dtype="int32", name="token_ids")
    inputs, mask = token_ids, {}
    if is_bert:
        inputs = {
            "token_ids": token_ids,
            "padding_mask": keras.Input((LENGTHS[shape],), dtype="bool", name="padding_mask"),
            "mask_positions": keras.Input((HIDDEN,), dtype="int32", name="mask_positions"),
        }
        mask = {"padding_mask": inputs["padding_mask"]}
    embedding = keras_hub.layers.TokenAndPositionEmbedding(
        vocabulary_size, LENGTHS[shape], row["hidden_dim"]
    )
    x = embedding(token_ids)
    layer = keras_hub.layers.TransformerEncoder if is_bert else keras_hub.layers.TransformerDecoder
    for _ in range(row["num_layers"]):
        x = layer(
            row["intermediate_dim"], row["num_heads"], activation=gelu, normalize_first=not is_bert
        )(x, **mask)
    if is_bert:
        head = keras_hub.layers.MaskedLMHead(
            token_embedding=embedding.token_embedding, intermediate_activation=gelu
        )
        logits = head(x, mask_positions=inputs["mask_positions"])
    else:
        logits = embedding.token_embedding(keras.layers.LayerNormalization()(x), reverse=True)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    return keras.Model(inputs, logits), {"loss": loss, "metrics": ["accuracy"]}


KERAS = {
    "keras_llm": ours,
    "rematerialized": rematerialized,
    "8-bit state": eight_bit_state,
    "plain loss": plain_loss,
    "KerasHub": keras_hub,
}
TORCH = {"PyTorch": False, "torch.compile": True}


def batches(shape, vocabulary_size, batch_size, steps):
    import tensorflow as tf

    length = LENGTHS[shape]

    def batch(index):
        seed = tf.stack([tf.cast(index, tf.int32), 0])
        size = (batch_size, length + 1)
        ids = tf.random.stateless_uniform(size, seed, 0, vocabulary_size, tf.int32)
        if shape != "bert":
            return ids[:, :-1], ids[:, 1:]
        noise = tf.random.stateless_uniform((batch_size, length), seed + 1)
        mask_positions = tf.sort(tf.argsort(noise)[:, :HIDDEN])
        inputs = {"token_ids": ids[:, 1:], "padding_mask": tf.ones((batch_size, length), bool)}
        return {**inputs, "mask_positions": mask_positions}, ids[:, :HIDDEN]

    options = tf.data.Options()
    options.autotune.enabled = False
    return tf.data.Dataset.range(steps).map(batch).prefetch(2).with_options(options)


def fit(peer, shape, vocabulary_size, batch_size, steps):
    """Train with `fit`; return loss, parameter count, seconds and CPU seconds."""
    import keras

    keras.utils.set_random_seed(0)
    model, arguments = KERAS[peer](shape, vocabulary_size)
    arguments = {"optimizer": keras.optimizers.AdamW(1e-3), **arguments}
    model.compile(jit_compile=False, **arguments)
    model.fit(batches(shape, vocabulary_size, batch_size, 3), verbose=0)  # traces
    data = batches(shape, vocabulary_size, batch_size, steps)
    with _clock() as spent:
        loss = model.fit(data, verbose=0).history["loss"][0]
    return {"loss": loss, "parameters": model.count_params(), **spent}


def loop(peer, shape, vocabulary_size, batch_size, steps, threads):
    """Train with PyTorch in a nanoGPT-style loop; return the same values as `fit`."""
    import torch
    from torch.nn import functional

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = torch_model(shape, vocabulary_size)
    run = torch.compile(model) if TORCH[peer] else model
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3)
    random = torch.Generator().manual_seed(0)
    length = LENGTHS[shape]

    def step():
        size = (batch_size, length + 1)
        ids = torch.randint(vocabulary_size, size, generator=random)
        inputs, targets, mask_positions = ids[:, :-1], ids[:, 1:], None
        if shape == "bert":
            noise = torch.rand((batch_size, length), generator=random)
            mask_positions = noise.argsort()[:, :HIDDEN].sort().values
            targets = ids[:, :HIDDEN]
        logits = run(inputs, mask_positions)
        loss = functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return loss.item()

    for _ in range(3):
        step()
    with _clock() as spent:
        losses = [step() for _ in range(steps)]
    parameters = sum(p.numel() for p in model.parameters())
    return {"loss": sum(losses) / steps, "parameters": parameters, **spent}


def torch_model(shape, vocabulary_size):
    import torch
    from torch import nn
    from torch.nn import functional

    row, is_bert = SHAPES[shape], shape == "bert"
    width, heads = row["hidden_dim"], row["num_heads"]

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
            self.query_key_value = nn.Linear(width, 3 * width)
            self.output = nn.Linear(width, width)
            self.up = nn.Linear(width, row["intermediate_dim"])
            self.down = nn.Linear(row["intermediate_dim"], width)

        def attend(self, x):
            parts = self.query_key_value(x).split(width, -1)
            parts = [part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in parts]
            mixed = functional.scaled_dot_product_attention(*parts, is_causal=not is_bert)
            return self.output(mixed.transpose(1, 2).flatten(2))

        def feed(self, x):
            return self.down(functional.gelu(self.up(x), approximate="tanh"))

        def forward(self, x):
            for norm, part in zip(self.norms, (self.attend, self.feed), strict=True):
                x = norm(x + part(x)) if is_bert else x + part(norm(x))
            return x

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.tokens = nn.Embedding(vocabulary_size, width)
            self.positions = nn.Embedding(LENGTHS[shape], width)
            self.blocks = nn.ModuleList(Block() for _ in range(row["num_layers"]))
            self.norm = nn.LayerNorm(width)
            self.dense = nn.Linear(width, width) if is_bert else nn.Identity()
            self.bias = nn.Parameter(torch.zeros(vocabulary_size)) if is_bert else None
            for table in (self.tokens, self.positions):
                nn.init.normal_(table.weight, std=0.02)

        def forward(self, token_ids, mask_positions=None):
            x = self.tokens(token_ids) + self.positions.weight
            for block in self.blocks:
                x = block(x)
            if mask_positions is not None:
                x = x.gather(1, mask_positions[..., None].expand(-1, -1, width))
                x = functional.gelu(self.dense(x), approximate="tanh")
            return functional.linear(self.norm(x), self.tokens.weight, self.bias)

    return Model()


@contextlib.contextmanager
def _clock():
    spent = {}
    wall, cpu = time.perf_counter(), time.process_time()
    yield spent
    spent["seconds"] = time.perf_counter() - wall
    spent["cpu_seconds"] = time.process_time() - cpu
