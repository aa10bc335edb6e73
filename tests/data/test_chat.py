"""Conversations: what is read, and that the loss sees what the assistant says and nothing else."""

import gzip
import json

import numpy as np
import pytest

from keras_llm import data, models, tokenizers, training
from keras_llm.errors import InputError

CHATML = """{% if messages[0].role != 'system' %}<|im_start|>system
Help.<|im_end|>
{% endif %}{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{{ m.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""
INSTRUCT = """{{ bos_token }}{% for m in messages %}{% if m.role == 'user' -%}
[INST] {{ m.content | trim }} [/INST]{% elif m.role == 'assistant' %} {{ m.content | trim }}
{{- eos_token }}{% endif %}{% endfor %}"""
MARKED = """{% for m in messages %}{{ m.role }}: {% if m.role == 'assistant' %}
{% generation %}{{ m.content.split('</think>')[-1] if not loop.last else m.content }}|
{%- endgeneration %}{% else %}{{ m.content }}{% endif %};{% endfor %}"""
TALK = [
    {"role": "user", "content": "What is up?"},
    {"role": "assistant", "content": "\nNot  much."},
    {"role": "user", "content": "Where is the cat"},
    {"role": "assistant", "content": "In the hat, you see: the cat."},
    {"role": "user", "content": "Bye"},
]
TEXTS = [
    " ".join(m["content"] for m in TALK),
    "[INST] of the [/INST]\n\nassistant user system:",
] * 9


@pytest.fixture(scope="module")
def byte_pair():
    special = ("<|im_start|>", "<|im_end|>")
    return tokenizers.BytePair.train(TEXTS, 330, special_tokens=special)


def learned(example, tokenizer):
    """The texts of the stretches that are learned."""
    stretches, before = [], 0
    for index, flag in zip(*example, strict=True):
        if flag:
            if not before:
                stretches.append([])
            stretches[-1].append(index)
        before = flag
    return ["".join(map(tokenizer.token, ids[-1:])) for ids in stretches], [
        tokenizer.decode(ids) for ids in stretches
    ]


def test_only_answers_and_what_ends_them_are_learned(byte_pair):
    template = tokenizers.ChatTemplate(CHATML)
    end = byte_pair.special_tokens["<|im_end|>"]
    (example,), dropped = data.chat_examples([TALK], template, byte_pair, 500, [end])
    ends, texts = learned(example, byte_pair)
    assert ends == ["<|im_end|>"] * 2 and dropped == {}
    assert [text.removesuffix("<|im_end|>") for text in texts] == [
        "\nNot  much.",
        "In the hat, you see: the cat.",
    ]
    assert example.token_ids[-1] == end and example.learned[-1] == 1
    prompt = byte_pair.encode(template.render(TALK[:3]), parse_special=True)
    first = example.learned.index(1)
    assert prompt[:first] == example.token_ids[:first]
    begin = len(example.learned) - example.learned[::-1].index(0)
    assert byte_pair.decode(example.token_ids[:begin]) == byte_pair.decode(prompt)


def test_a_sentencepiece_model_and_text_that_the_template_adds():
    tokenizer = tokenizers.SentencePiece.train(TEXTS, 300, "bpe")
    template = tokenizers.ChatTemplate(INSTRUCT, "<s>", "</s>")
    (example,), _ = data.chat_examples([TALK], template, tokenizer, 500, [tokenizer.eos_id])
    ends, texts = learned(example, tokenizer)
    assert ends == ["</s>"] * 2
    assert texts == [" Not  much.", " In the hat, you see: the cat."]
    (without,), _ = data.chat_examples([TALK], template, tokenizer, 500)
    assert without == example  # the template writes nothing after the end token


def test_marks_tell_where_earlier_turns_are_written_anew(byte_pair):
    talk = [dict(m) for m in TALK]
    talk[1]["content"] = "hm</think>Not much."
    template = tokenizers.ChatTemplate(MARKED)
    parts = template.parts(talk)
    assert "".join(text for text, _ in parts) == template.render(talk, False)
    said = [text for text, is_said in parts if is_said]
    assert said == ["Not much.|", "In the hat, you see: the cat.|"]
    (example,), _ = data.chat_examples([talk], template, byte_pair, 500)
    assert learned(example, byte_pair)[1] == said
    source = MARKED.replace("{% generation %}", "").replace("{%- endgeneration %}", "")
    with pytest.raises(InputError, match=r"conversation 2: .*message 1.*generation"):
        data.chat_examples([TALK, talk], tokenizers.ChatTemplate(source), byte_pair, 500)


def test_what_does_not_fit_is_counted(byte_pair):
    template, end = tokenizers.ChatTemplate(CHATML), byte_pair.special_tokens["<|im_end|>"]
    (whole,), _ = data.chat_examples([TALK], template, byte_pair, 500, [end])
    spelled = [TALK[0], {"role": "assistant", "content": "a <|im_end|> b"}]
    length = len(whole.token_ids)
    kept, dropped = data.chat_examples([TALK, spelled], template, byte_pair, length, [end])
    assert kept == [whole] and dropped == {"spells a special token": 1}
    (cut,), dropped = data.chat_examples([TALK], template, byte_pair, length - 1, [end])
    assert dropped == {"later turns cut": 1}
    assert cut.token_ids == whole.token_ids[: len(cut.token_ids)] and cut.learned[-1] == 1
    kept, dropped = data.chat_examples([TALK], template, byte_pair, 9, [end])
    assert kept == [] and dropped == {"longer than 9 tokens": 1}


def test_batches_give_the_loss_of_the_answers_alone(byte_pair):
    template, end = tokenizers.ChatTemplate(CHATML), byte_pair.special_tokens["<|im_end|>"]
    talks = [TALK, TALK[:2], TALK[2:4]]
    examples, _ = data.chat_examples(talks, template, byte_pair, 500, [end])
    (batch,) = data.chat_dataset(examples, 3, byte_pair.pad_id)
    model = models.causal_lm(
        models.preset("llama-tiny", vocabulary_size=330, initializer_range=0.3)
    )
    trainer = training.LanguageModelTrainer(model)
    trainer.compile("adamw", jit_compile=False)
    found, accuracy = trainer.evaluate(data.chat_dataset(examples, 3, byte_pair.pad_id), verbose=0)
    nats, right, count, log_p = 0.0, 0, 0, []
    for ids, flags in examples:
        logits = np.asarray(model(np.array([ids])), "float64")[0]
        logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        log_p.append(0.0)
        for place in range(1, len(ids)):
            if flags[place]:
                nats -= logs[place - 1, ids[place]]
                log_p[-1] += logs[place - 1, ids[place]]
                right += logs[place - 1].argmax() == ids[place]
                count += 1
    assert batch[0].shape == batch[1].shape == batch[2].shape and float(sum(batch[2][0])) > 0
    assert found == pytest.approx(nats / count, rel=1e-4)
    assert accuracy == pytest.approx(right / count, rel=1e-5)
    measured = training.evaluate_examples(model, examples, batch_size=2)
    assert measured["tokens"] == count
    assert measured["nats_per_token"] == pytest.approx(nats / count, rel=1e-4)
    assert measured["accuracy"] == pytest.approx(right / count)
    np.testing.assert_allclose(
        training.log_probabilities(model, examples, batch_size=2), log_p, rtol=1e-4
    )
    with pytest.raises(InputError, match="no target"):
        training.evaluate_examples(model, [data.ChatExample([1, 2], [1, 0])])


def test_pairs_differ_in_the_last_answer_alone(byte_pair):
    template, end = tokenizers.ChatTemplate(CHATML), byte_pair.special_tokens["<|im_end|>"]
    preferences = [
        data.Preference(TALK[:3], "In the hat.", "Out"),
        data.Preference(TALK[:1], "Not much", "x" * 99),
        data.Preference(TALK[:1], "Much.", "You see: the cat."),
    ]
    pairs, dropped = data.preference_examples(preferences, template, byte_pair, 90, [end])
    assert dropped == {"longer than 90 tokens": 1}
    texts = [[learned(example, byte_pair)[1] for example in pair] for pair in pairs]
    plain = [[text.removesuffix("<|im_end|>") for (text,) in pair] for pair in texts]
    assert plain == [["In the hat.", "Out"], ["Much.", "You see: the cat."]]
    reference = np.array([[-1.0, -2.0], [-3.0, -4.0]])
    found = {}
    for inputs, targets, weights in data.preference_dataset(pairs, 1, 0, reference, 2, seed=3):
        assert targets.shape == weights.shape == inputs["token_ids"].shape
        (key,) = map(tuple, inputs["reference"].numpy())
        found.setdefault(key, []).append(inputs["token_ids"].numpy()[0])
    assert sorted(found) == [(-3.0, -4.0), (-1.0, -2.0)] and len(found[-1.0, -2.0]) == 2
    for (chosen, rejected), key in zip(pairs, map(tuple, reference), strict=True):
        rows = found[key][0]
        assert rows[0, : len(chosen.token_ids) - 1].tolist() == chosen.token_ids[:-1]
        assert rows[1, : len(rejected.token_ids) - 1].tolist() == rejected.token_ids[:-1]


def test_the_shapes_of_others_are_read(tmp_path):
    rows = [
        {"messages": TALK[:2]},
        {
            "system": "Be brief.",
            "conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}],
        },
        {"instruction": "Add.", "input": "1 2", "output": "3", "history": [["q", "a"]]},
    ]
    expected = [
        TALK[:2],
        [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "b"},
        ],
        [
            {"role": "user", "content": "q"},
            {"role": "assistant", "content": "a"},
            {"role": "user", "content": "Add.\n1 2"},
            {"role": "assistant", "content": "3"},
        ],
    ]
    (tmp_path / "talks.json").write_text(json.dumps(rows), "utf-8")
    lines = "\n\n".join(map(json.dumps, rows))
    (tmp_path / "talks.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    assert data.read_conversations(tmp_path / "talks.json") == expected
    assert data.read_conversations(tmp_path / "talks.jsonl.gz") == expected
    row = {"instruction": "Hi", "chosen": {"from": "gpt", "value": "Hello"}, "rejected": "No"}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(row), "utf-8")
    (found,) = data.read_preferences(tmp_path / "pairs.jsonl")
    assert found == ([{"role": "user", "content": "Hi"}], "Hello", "No")


GOOD = '{"instruction": "a", "output": "b"}\n'


@pytest.mark.parametrize(
    "line, words",
    [
        ('{"messages": [', "not JSON"),
        ("[1]", "not a JSON object"),
        ('{"text": "a"}', "expected 'messages'.*'text'"),
        ('{"messages": []}', "the conversation is empty"),
        ('{"messages": [{"role": "system", "content": "a"}]}', "the conversation is empty"),
        ('{"messages": [{"role": "bot", "content": "a"}]}', "message 1 has the unknown role 'bot'"),
        ('{"messages": [{"role": "user", "content": " "}]}', "'content of message 1' is empty"),
        ('{"messages": [{"role": "user"}]}', "no text in 'content of message 1'"),
        ('{"messages": [{"role": "user", "content": "a"}]}', "there is no assistant message"),
        (
            '{"messages": [{"role": "assistant", "content": "a"}]}',
            "the first message has the role 'assistant'",
        ),
        ('{"messages": ["a"]}', "message 1 is not a JSON object"),
        ('{"conversations": {}}', "not a list"),
        ('{"instruction": "a", "output": "b", "history": ["a"]}', "history"),
    ],
)
def test_a_wrong_line_is_named(tmp_path, line, words):
    path = tmp_path / "talks.jsonl"
    path.write_text(GOOD + "\n" + line + "\n", "utf-8")
    with pytest.raises(InputError, match=f"talks.jsonl, line 3: .*{words}"):
        data.read_conversations(path)


def test_a_wrong_file_is_named(tmp_path):
    for name, text, words in (
        ("a.json", '[\n{"instruction": ]', "line 2: not JSON"),
        ("b.json", "{}", "not a list"),
        ("c.json", '[{"instruction": "a", "output": "b"}, {}]', "record 2: expected"),
        ("d.jsonl", "\n", "no conversation"),
        ("e.txt", "a", "must end in"),
    ):
        (tmp_path / name).write_text(text, "utf-8")
        with pytest.raises(InputError, match=f"{name}.*{words}"):
            data.read_conversations(tmp_path / name)
    for text, words in (
        ('{"instruction": "a", "chosen": "b"}', "no text in 'rejected'"),
        ('{"instruction": "a", "chosen": "b", "rejected": "b"}', "are equal"),
        (GOOD.replace('"b"', '"b", "chosen": "b", "rejected": "c"'), "ends with the assistant"),
    ):
        (tmp_path / "pairs.jsonl").write_text(text, "utf-8")
        with pytest.raises(InputError, match=f"pairs.jsonl, line 1: .*{words}"):
            data.read_preferences(tmp_path / "pairs.jsonl")
