"""Compare models of random legal configs with transformers: read, and written and read back.

KERAS_LLM_CONFIG_DRAWS sets the number of configs of each family, KERAS_LLM_CONFIG_SEED the first.
"""

import json
import os
import pathlib
import runpy
import shutil

import numpy as np
import pytest
import transformers

from keras_llm.checkpoints import load_model, to_hugging_face
from keras_llm.errors import InputError

HERE = pathlib.Path(__file__).parent
FAMILIES, NO_EFFECT = (
    runpy.run_path(str(HERE / "config_draws.py"))[name] for name in ("FAMILIES", "NO_EFFECT")
)
SHARED = runpy.run_path(str(HERE / "random_models.py"))
DRAWS = int(os.environ.get("KERAS_LLM_CONFIG_DRAWS", "10"))
SEED = int(os.environ.get("KERAS_LLM_CONFIG_SEED", "0"))
SECTION = "Random configs"
LABELS = ("problem_type", "num_labels", "id2label")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_config_field_is_drawn(family):
    draw, _ = FAMILIES[family]
    drawn = {name for seed in range(60) for name in draw(np.random.default_rng(seed))}
    config = transformers.CONFIG_MAPPING[family]()
    drawn |= {config.attribute_map.get(name, name) for name in drawn}
    shared = set(transformers.PreTrainedConfig().to_dict())  # draws have those with an effect
    assert not set(config.to_dict()) - shared - drawn - NO_EFFECT


@pytest.mark.parametrize("family", FAMILIES)
def test_random_configs(family, tmp_path, record):
    draw, classes = FAMILIES[family]
    differences, refused, not_written = [], 0, 0
    for number in range(SEED, SEED + DRAWS):
        rng = np.random.default_rng([number, *family.encode()])
        name = classes[rng.integers(len(classes))]
        fields = {"model_type": family, "architectures": [name], **draw(rng)}
        if name.endswith("ForQuestionAnswering"):  # always two outputs
            fields = {key: fields[key] for key in fields if key not in LABELS}
        folder = tmp_path / str(number)
        their_model = their_folder(folder, name, fields)
        inputs = draw_inputs(rng, fields, name)
        try:
            expected = their_outputs(their_model, inputs)
        except (TypeError, ValueError):  # not legal, such as windowed layers without a window
            continue
        try:
            our_model = load_model(folder / "theirs")
        except InputError as error:
            refused += 1
            named = [f"`{name}{end}" in str(error) for name in fields for end in "`."]
            assert any(named), (fields, str(error))
            continue
        context = (number, fields)
        differences.append(difference(our_outputs(our_model, inputs), expected, inputs, context))
        try:
            to_hugging_face(our_model, folder / "ours")
        except InputError as error:
            not_written += 1
            assert "no Hugging Face family supports this model" in str(error)
            continue
        reloaded, info = getattr(transformers, name).from_pretrained(
            folder / "ours", attn_implementation="eager", output_loading_info=True
        )
        missing = [key for key in info["missing_keys"] if "pooler" not in key]
        assert not missing and not info["mismatched_keys"], (context, info)
        outputs = their_outputs(reloaded.eval(), inputs)
        differences.append(difference(outputs, expected, inputs, context))
        shutil.rmtree(folder)
    assert len(differences) > DRAWS // 2
    record(
        SECTION, family, DRAWS, len(differences), refused, not_written, f"{max(differences):.1e}"
    )


def their_folder(folder, name, fields):
    """Write a folder with these fields and random weights; return transformers' model of it."""
    (folder / "config").mkdir(parents=True)
    (folder / "config" / "config.json").write_text(json.dumps(fields))
    config = transformers.AutoConfig.from_pretrained(folder / "config")
    SHARED["random_model"](name, config).save_pretrained(folder / "theirs")
    shutil.copy(folder / "config" / "config.json", folder / "theirs")
    return (
        getattr(transformers, name)
        .from_pretrained(folder / "theirs", attn_implementation="eager")
        .eval()
    )


def draw_inputs(rng, fields, name):
    token_ids, mask = SHARED["ragged_batch"](int(rng.integers(1000)))
    pad = fields.get("pad_token_id") or 0
    token_ids = np.where(mask, np.where(token_ids == pad, pad + 1, token_ids), pad)
    inputs = {"input_ids": token_ids, "attention_mask": mask.astype(int)}
    if fields.get("type_vocab_size", 0) > 0:
        inputs["token_type_ids"] = np.where(mask, token_ids % fields["type_vocab_size"], 0)
    if name.startswith("T5"):
        inputs["decoder_input_ids"] = rng.integers(2, 97, (3, 14))
    return inputs


def their_outputs(model, inputs):
    outputs = SHARED["run_torch"](model, **inputs)
    if "start_logits" in outputs:
        return np.stack([outputs.start_logits, outputs.end_logits], -1)
    return np.asarray(outputs.logits if "logits" in outputs else outputs.last_hidden_state)


def our_outputs(model, inputs):
    token_ids, mask = inputs["input_ids"], inputs["attention_mask"] == 1
    every = {
        "token_ids": token_ids,
        "padding_mask": mask,
        "segment_ids": inputs.get("token_type_ids"),
        "mask_positions": np.tile(np.arange(mask.shape[1]), (len(mask), 1)),
        "encoder_token_ids": token_ids,
        "decoder_token_ids": inputs.get("decoder_input_ids"),
    }
    outputs = model.predict({tensor.name: every[tensor.name] for tensor in model.inputs}, verbose=0)
    if isinstance(outputs, dict):
        outputs = np.stack([outputs["start"], outputs["end"]], -1)
    return np.asarray(outputs)


def difference(outputs, expected, inputs, context):
    """Check the greatest difference and return it."""
    mask = inputs["attention_mask"] == 1
    if outputs.ndim == 1:  # a regressor
        outputs = outputs[:, None]
    if expected.ndim < 3:
        mask = np.ones(len(mask), bool)
    if "decoder_input_ids" in inputs:
        mask = np.ones(inputs["decoder_input_ids"].shape, bool)
    outputs, expected = outputs[mask], expected[mask]
    greatest = float(np.abs(outputs - expected).max())
    assert greatest <= 1e-4 * max(1.0, float(np.abs(expected).max())), (greatest, context)
    return greatest
