"""Run layers of Keras and KerasHub on new tokens with a cache."""

from keras import ops, tree

from keras_llm import keras_internals
from keras_llm.errors import InputError
from keras_llm.layers import masks
from keras_llm.layers._handler import (
    Handler,
    attention_on_rows,
    check_causal,
    is_cross,
    later,
    source_mask,
)
from keras_llm.layers.attention import attention
from keras_llm.layers.cache import first_slots, slot_mask, update_cache

UNROLLED = 16  # tokens; runtimes on device have no loops


class KerasAttention(Handler):
    """`keras.layers.MultiHeadAttention` and `GroupQueryAttention`."""

    group = "keys and values"

    def entries(self, layer, arguments, batch_size, length, rings):
        if is_cross(arguments):
            return {}
        check_causal(layer, arguments)
        heads = keras_internals.attention_heads(layer)
        shape = (batch_size, heads.num_key_value_heads, length)
        return {
            kind: ops.zeros((*shape, size), layer.compute_dtype)
            for kind, size in (("k", heads.key_size), ("v", heads.value_size))
        }

    def source(self, layer, arguments):
        if not is_cross(arguments):
            return {}
        value, key = arguments["value"], arguments.get("key")
        keys, values = self._project(layer, value if key is None else key, value)
        return {"cross_k": keys, "cross_v": values, **source_mask(value)}

    @staticmethod
    def _project(layer, key, value):
        heads = keras_internals.attention_heads(layer)
        key, value = heads.key(_cast(layer, key)), heads.value(_cast(layer, value))
        return ops.transpose(key, (0, 2, 1, 3)), ops.transpose(value, (0, 2, 1, 3))

    def call(self, layer, arguments, cache, step):
        heads = keras_internals.attention_heads(layer)
        query, changed = _cast(layer, arguments["query"]), {}
        if "cross_k" in cache:
            keys, values = cache["cross_k"], cache["cross_v"]
            mask = arguments.get("attention_mask")
            padding = masks.merge(arguments.get("value_mask"), cache.get("cross_mask"))
            mask = masks.merge(mask, masks.padding_mask(padding))
        else:
            key, value = arguments.get("key"), arguments["value"]
            new = self._project(layer, value if key is None else key, value)
            full = tuple(
                update_cache(cache[kind], x, step.index) for kind, x in zip("kv", new, strict=True)
            )
            changed = dict(zip("kv", full, strict=True))
            width = step.attention_mask.shape[-1]
            keys, values = (first_slots(x, width) for x in full)
            mask = step.attention_mask
            hidden = keras_internals.implicit_mask(value)
            if hidden is not None:
                visible = slot_mask(hidden, full, new, step.index, width)
                mask = masks.merge(mask, masks.padding_mask(visible))
            if heads.sliding_window is not None:
                band = masks.band_mask(step.positions, step.slots, heads.sliding_window)
                mask = masks.merge(mask, band)
        output = attention(
            heads.query(query),
            keys,
            values,
            mask=None if mask is None else ops.expand_dims(mask, -3),
            scale=heads.scale,
        )
        if heads.gate is not None:
            output = output * heads.gate(query)
        return heads.output(output), changed

    def run_rows(self, layer, arguments, rows):
        return attention_on_rows(layer, arguments, rows)


class KerasHubDecoder(KerasAttention):
    """`keras_hub.layers.TransformerDecoder`."""

    def entries(self, layer, arguments, batch_size, length, rings):
        inner = keras_internals.keras_hub_decoder(layer)
        arguments = {"query": 0, "value": 0, "use_causal_mask": True}
        return super().entries(inner.self_attention, arguments, batch_size, length, rings)

    def source(self, layer, arguments):
        if arguments.get("encoder_sequence") is None:
            return {}
        source, inner = arguments["encoder_sequence"], keras_internals.keras_hub_decoder(layer)
        keys, values = self._project(inner.cross_attention, source, source)
        return {"cross_k": keys, "cross_v": values, **source_mask(source)}

    def call(self, layer, arguments, cache, step):
        inner, changed = keras_internals.keras_hub_decoder(layer), {}

        def self_attention(h):
            nonlocal changed
            own = {kind: cache[kind] for kind in "kv"}
            output, changed = super(KerasHubDecoder, self).call(
                inner.self_attention, {"query": h, "value": h}, own, step
            )
            return output

        def cross_attention(h):
            own = {name: entry for name, entry in cache.items() if name.startswith("cross_")}
            mask = masks.merge(
                arguments.get("encoder_attention_mask"),
                masks.padding_mask(arguments.get("encoder_padding_mask")),
            )
            arguments_of_layer = {"query": h, "attention_mask": mask}
            output, _ = super(KerasHubDecoder, self).call(
                inner.cross_attention, arguments_of_layer, own, step
            )
            return output

        parts = [(self_attention, inner.self_attention_norm)]
        if "cross_k" in cache:
            parts.append((cross_attention, inner.cross_attention_norm))
        parts.append((inner.feed_forward, inner.feed_forward_norm))
        x = _cast(layer, arguments["decoder_sequence"])
        for part, norm in parts:
            x = x + part(norm(x)) if layer.normalize_first else norm(x + part(x))
        return x, changed

    def run_rows(self, layer, arguments, rows):
        """Run the layer; its attention probabilities cannot be read."""
        if rows.attention_mask is not None:
            mask = masks.merge(arguments.get("decoder_attention_mask"), rows.attention_mask)
            arguments = {**arguments, "decoder_attention_mask": mask, "use_causal_mask": False}
        return layer(**arguments)


class Convolution(Handler):
    """Causal one-dimensional convolutions. The cache holds the inputs that the next one reads."""

    group = "inputs"

    def entries(self, layer, arguments, batch_size, length, rings):
        if layer.padding != "causal":
            raise InputError(later(layer, 'pass `padding="causal"`'))
        if layer.strides != (1,) or layer.data_format != "channels_last":
            raise InputError(
                f"layer {layer.name!r}: a convolution must have strides of 1 and "
                '`data_format="channels_last"` to run token by token.'
            )
        held, size = self._held(layer), arguments["inputs"].shape[-1]
        if not held:
            return {}
        return {"inputs": ops.zeros((batch_size, held, size), layer.compute_dtype)}

    @staticmethod
    def _held(layer):
        return (layer.kernel_size[0] - 1) * layer.dilation_rate[0]

    @staticmethod
    def _convolve(layer, inputs, held):
        """Return the outputs for all but the first `held` inputs."""
        # A matrix product for each weight along time, which all runtimes support and quantize.
        length = ops.shape(inputs)[1] - held
        kernel = _cast(layer, layer.kernel)
        outputs = sum(
            _product(inputs[:, i * layer.dilation_rate[0] :][:, :length], kernel[i], layer.groups)
            for i in range(layer.kernel_size[0])
        )
        outputs = outputs if layer.bias is None else outputs + _cast(layer, layer.bias)
        return outputs if layer.activation is None else layer.activation(outputs)

    def call(self, layer, arguments, cache, step):
        held, new = self._held(layer), _cast(layer, arguments["inputs"])
        if not held:
            return self._convolve(layer, new, 0), {}
        inputs = ops.concatenate([cache["inputs"], new], axis=1)
        outputs = self._convolve(layer, inputs, held)
        if new.shape[1] is not None:  # TensorFlow forgets the length of dilated convolutions
            outputs = ops.reshape(outputs, (-1, new.shape[1], outputs.shape[-1]))
        if step.padding_mask is None:
            return outputs, {"inputs": inputs[:, -held:]}
        count = ops.sum(ops.cast(step.padding_mask, "int32"), axis=1, keepdims=True)
        places = count + ops.expand_dims(ops.arange(held, dtype="int32"), 0)
        kept = ops.take_along_axis(inputs, ops.expand_dims(places, -1), axis=1)
        return outputs, {"inputs": kept}


class Recurrent(Handler):
    """`keras.layers.RNN`, `GRU`, `LSTM` and `SimpleRNN`. The cache holds their states."""

    group = "states"

    def entries(self, layer, arguments, batch_size, length, rings):
        if not layer.return_sequences or layer.go_backwards or layer.stateful:
            raise InputError(
                f"layer {layer.name!r}: a recurrent layer must have `return_sequences=True`, and "
                "neither `go_backwards` nor `stateful`, to run token by token."
            )
        states = tree.flatten(layer.get_initial_state(batch_size))
        return {
            f"state_{i}": ops.cast(state, layer.compute_dtype) for i, state in enumerate(states)
        }

    def call(self, layer, arguments, cache, step):
        inputs = _cast(layer, arguments["sequence" if "sequence" in arguments else "sequences"])
        states = list(cache.values())
        first = arguments.get("initial_state")
        if first is not None:
            begins = ops.reshape(ops.cast(step.positions, "int32"), (-1, inputs.shape[1]))[:, :1]
            states = [
                ops.where(begins == 0, ops.cast(own, state.dtype), state)
                for own, state in zip(tree.flatten(first), states, strict=True)
            ]
        mask = step.padding_mask
        if inputs.shape[1] is not None and inputs.shape[1] <= UNROLLED:
            outputs = []
            for i in range(inputs.shape[1]):
                output, new = layer.cell(inputs[:, i], _packed(layer, states))
                if mask is not None:
                    pairs = zip(tree.flatten(new), states, strict=True)
                    new = [ops.where(mask[:, i : i + 1], after, before) for after, before in pairs]
                states = tree.flatten(new)
                outputs.append(output)
            outputs = ops.stack(outputs, axis=1)
        else:
            packed = _packed(layer, states)
            _, outputs, states = keras_internals.run_recurrence(layer, inputs, packed, mask)
        states = tree.flatten(states)
        changed = dict(zip(cache, states, strict=True))
        return ((outputs, *states) if layer.return_state else outputs), changed


def _packed(layer, states):
    """Return a flat list of states in the structure that the cell takes, e.g. of stacked cells."""
    structure = keras_internals.structure_of(lambda: layer.get_initial_state(1))
    return tree.pack_sequence_as(structure, states)


def _product(x, kernel, groups):
    """Multiply features (B, T, D) by a kernel (D / groups, D'), each group by its own columns."""
    if groups == 1:
        return ops.matmul(x, kernel)
    shape = (*ops.shape(x)[:2], groups, kernel.shape[0])
    columns = ops.reshape(kernel, (kernel.shape[0], groups, -1))
    product = ops.einsum("btgi,igo->btgo", ops.reshape(x, shape), columns)
    return ops.cast(ops.reshape(product, (*shape[:2], kernel.shape[1])), x.dtype)


def _cast(layer, x):
    """Cast inputs or weights to the dtype that the layer computes in, as its call does."""
    return ops.cast(x, layer.compute_dtype)
