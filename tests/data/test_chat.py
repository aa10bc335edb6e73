"""Test reading of conversations, and that only the assistant's tokens count in the loss."""

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
CONVERSATION = [
    {"role": "user", "content": "What is up?"},
    {"role": "assistant", "content": "\nNot  much."},
    {"role": "user", "content": "Where is the cat"},
    {"role": "assistant", "content": "In the hat, you see: the cat."},
    {"role": "user", "content": "Bye"},
]
TRAINING_TEXTS = [
    " ".join(m["content"] for m in CONVERSATION),
    "[INST] of the [/INST]\n\nassistant user system:",
] * 9


@pytest.fixture(scope="module")
def byte_pair():
    special = ("<|im_start|>", "<|im_end|>")
    return tokenizers.BytePair.train(TRAINING_TEXTS, 330, special_tokens=special)


def target_spans(example, tokenizer):
    """Return the end tokens and the texts of the spans that count in the loss."""
    spans, previous = [], 0
    for index, flag in zip(*example, strict=True):
        if flag:
            if not previous:
                spans.append([])
            spans[-1].append(index)
        previous = flag
    return ["".join(map(tokenizer.token, ids[-1:])) for ids in spans], [
        tokenizer.decode(ids) for ids in spans
    ]


def test_only_answers_and_end_tokens_are_targets(byte_pair):
    template = tokenizers.ChatTemplate(CHATML)
    end = byte_pair.special_tokens["<|im_end|>"]
    (example,), dropped = data.chat_examples([CONVERSATION], template, byte_pair, 500, [end])
    ends, texts = target_spans(example, byte_pair)
    assert ends == ["<|im_end|>"] * 2 and dropped == {}
    assert [text.removesuffix("<|im_end|>") for text in texts] == [
        "\nNot  much.",
        "In the hat, you see: the cat.",
    ]
    assert example.token_ids[-1] == end and example.learned[-1] == 1
    prompt = byte_pair.encode(template.render(CONVERSATION[:3]), parse_special=True)
    first = example.learned.index(1)
    assert prompt[:first] == example.token_ids[:first]
    begin = len(example.learned) - example.learned[::-1].index(0)
    assert byte_pair.decode(example.token_ids[:begin]) == byte_pair.decode(prompt)


def test_sentencepiece_with_instruct_template():
    tokenizer = tokenizers.SentencePiece.train(TRAINING_TEXTS, 300, "bpe")
    template = tokenizers.ChatTemplate(INSTRUCT, "<s>", "</s>")
    (example,), _ = data.chat_examples([CONVERSATION], template, tokenizer, 500, [tokenizer.eos_id])
    ends, texts = target_spans(example, tokenizer)
    assert ends == ["</s>"] * 2
    assert texts == [" Not  much.", " In the hat, you see: the cat."]
    (without,), _ = data.chat_examples([CONVERSATION], template, tokenizer, 500)
    assert without == example  # the template writes nothing after the end token


def test_generation_marks_with_rewritten_earlier_turns(byte_pair):
    conversation = [dict(m) for m in CONVERSATION]
    conversation[1]["content"] = "hm</think>Not much."
    template = tokenizers.ChatTemplate(MARKED)
    parts = template.parts(conversation)
    assert "".join(text for text, _ in parts) == template.render(conversation, False)
    answers = [text for text, is_answer in parts if is_answer]
    assert answers == ["Not much.|", "In the hat, you see: the cat.|"]
    (example,), _ = data.chat_examples([conversation], template, byte_pair, 500)
    assert target_spans(example, byte_pair)[1] == answers
    source = MARKED.replace("{% generation %}", "").replace("{%- endgeneration %}", "")
    with pytest.raises(InputError, match=r"conversation 2: .*message 1.*generation"):
        data.chat_examples(
            [CONVERSATION, conversation], tokenizers.ChatTemplate(source), byte_pair, 500
        )


def test_messages_with_weight_0_are_only_context(byte_pair, tmp_path):
    end = byte_pair.special_tokens["<|im_end|>"]
    for number, field in enumerate(({"weight": 0}, {"train": False}, {"training": 0}, {})):
        talk = [dict(message) for message in CONVERSATION]
        talk[1] |= field
        talk[3] |= {"weight": 1}
        path = tmp_path / f"{number}.jsonl"
        path.write_text(json.dumps({"messages": talk}))
        read = data.read_conversations(path)
        assert [m.get("weight") for m in read[0]] == [None, 0 if field else None, None, None, None]
        for source in (CHATML, MARKED):
            template = tokenizers.ChatTemplate(source)
            (example,), _ = data.chat_examples(read, template, byte_pair, 500, [end])
            (plain,), _ = data.chat_examples([CONVERSATION], template, byte_pair, 500, [end])
            assert example.token_ids == plain.token_ids
            _, texts = target_spans(example, byte_pair)
            _, both = target_spans(plain, byte_pair)
            assert len(both) == 2 and texts == both[1 if field else 0 :]
    talk[1]["weight"] = talk[3]["weight"] = 0
    examples, dropped = data.chat_examples([talk], template, byte_pair, 500, [end])
    assert examples == [] and dropped == {"nothing to learn": 1}


def test_empty_unsupported_fields_are_ignored(tmp_path):
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    path = tmp_path / "a.jsonl"
    for empty in (None, False, 0, "", " ", "[]", "{}", "null", [], {}):
        marked = [talk[0], {**talk[1], "thinking": empty, "tool_calls": empty}]
        path.write_text(json.dumps({"messages": marked, "tools": empty}))
        assert data.read_conversations(path) == [talk]


def test_dropped_and_cut_conversations_are_counted(byte_pair):
    template, end = tokenizers.ChatTemplate(CHATML), byte_pair.special_tokens["<|im_end|>"]
    (full,), _ = data.chat_examples([CONVERSATION], template, byte_pair, 500, [end])
    with_special_token = [CONVERSATION[0], {"role": "assistant", "content": "a <|im_end|> b"}]
    length = len(full.token_ids)
    kept, dropped = data.chat_examples(
        [CONVERSATION, with_special_token], template, byte_pair, length, [end]
    )
    assert kept == [full] and dropped == {"spells a special token": 1}
    (cut,), dropped = data.chat_examples([CONVERSATION], template, byte_pair, length - 1, [end])
    assert dropped == {"later turns cut": 1}
    assert cut.token_ids == full.token_ids[: len(cut.token_ids)] and cut.learned[-1] == 1
    kept, dropped = data.chat_examples([CONVERSATION], template, byte_pair, 9, [end])
    assert kept == [] and dropped == {"longer than 9 tokens": 1}


def test_loss_of_batches_counts_only_answers(byte_pair):
    template, end = tokenizers.ChatTemplate(CHATML), byte_pair.special_tokens["<|im_end|>"]
    conversations = [CONVERSATION, CONVERSATION[:2], CONVERSATION[2:4]]
    examples, _ = data.chat_examples(conversations, template, byte_pair, 500, [end])
    (batch,) = data.chat_dataset(examples, 3, byte_pair.pad_id)
    model = models.causal_lm(
        models.preset("llama-tiny", vocabulary_size=330, initializer_range=0.3)
    )
    trainer = training.LanguageModelTrainer(model)
    trainer.compile("adamw", jit_compile=False)
    loss, accuracy = trainer.evaluate(data.chat_dataset(examples, 3, byte_pair.pad_id), verbose=0)
    total_nats, right, count, log_p = 0.0, 0, 0, []
    for ids, flags in examples:
        logits = np.asarray(model(np.array([ids])), "float64")[0]
        logs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        log_p.append(0.0)
        for position in range(1, len(ids)):
            if flags[position]:
                total_nats -= logs[position - 1, ids[position]]
                log_p[-1] += logs[position - 1, ids[position]]
                right += logs[position - 1].argmax() == ids[position]
                count += 1
    assert batch[0].shape == batch[1].shape == batch[2].shape and float(sum(batch[2][0])) > 0
    assert loss == pytest.approx(total_nats / count, rel=1e-4)
    assert accuracy == pytest.approx(right / count, rel=1e-5)
    measured = training.evaluate_examples(model, examples, batch_size=2)
    assert measured["tokens"] == count
    assert measured["nats_per_token"] == pytest.approx(total_nats / count, rel=1e-4)
    assert measured["accuracy"] == pytest.approx(right / count)
    np.testing.assert_allclose(
        training.log_probabilities(model, examples, batch_size=2), log_p, rtol=1e-4
    )
    with pytest.raises(InputError, match="no target"):
        training.evaluate_examples(model, [data.ChatExample([1, 2], [1, 0])])


def test_preference_pairs_differ_only_in_last_answer(byte_pair):
    template, end = tokenizers.ChatTemplate(CHATML), byte_pair.special_tokens["<|im_end|>"]
    preferences = [
        data.Preference(CONVERSATION[:3], "In the hat.", "Out"),
        data.Preference(CONVERSATION[:1], "Not much", "x" * 99),
        data.Preference(CONVERSATION[:1], "Much.", "You see: the cat."),
    ]
    pairs, dropped = data.preference_examples(preferences, template, byte_pair, 90, [end])
    assert dropped == {"longer than 90 tokens": 1}
    texts = [[target_spans(example, byte_pair)[1] for example in pair] for pair in pairs]
    plain = [[text.removesuffix("<|im_end|>") for (text,) in pair] for pair in texts]
    assert plain == [["In the hat.", "Out"], ["Much.", "You see: the cat."]]
    reference = np.array([[-1.0, -2.0], [-3.0, -4.0]])
    batches_by_reference = {}
    for inputs, targets, weights in data.preference_dataset(pairs, 1, 0, reference, 2, seed=3):
        assert targets.shape == weights.shape == inputs["token_ids"].shape
        (key,) = map(tuple, inputs["reference"].numpy())
        batches_by_reference.setdefault(key, []).append(inputs["token_ids"].numpy()[0])
    assert (
        sorted(batches_by_reference) == [(-3.0, -4.0), (-1.0, -2.0)]
        and len(batches_by_reference[-1.0, -2.0]) == 2
    )
    for (chosen, rejected), key in zip(pairs, map(tuple, reference), strict=True):
        rows = batches_by_reference[key][0]
        assert rows[0, : len(chosen.token_ids) - 1].tolist() == chosen.token_ids[:-1]
        assert rows[1, : len(rejected.token_ids) - 1].tolist() == rejected.token_ids[:-1]


def test_common_conversation_formats(tmp_path):
    rows = [
        {"messages": CONVERSATION[:2]},
        {
            "system": "Be brief.",
            "conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}],
        },
        {"instruction": "Add.", "input": "1 2", "output": "3", "history": [["q", "a"]]},
    ]
    expected = [
        CONVERSATION[:2],
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
    system = {"role": "system", "content": "Be brief."}
    row = {"system": "Be brief.", "messages": CONVERSATION[:2]}
    assert data.conversation(row, "row") == [system, *CONVERSATION[:2]]
    row = {"instruction": "Hi", "chosen": {"from": "gpt", "value": "Hello"}, "rejected": "No"}
    (tmp_path / "pairs.jsonl").write_text(json.dumps(row), "utf-8")
    (preference,) = data.read_preferences(tmp_path / "pairs.jsonl")
    assert preference == ([{"role": "user", "content": "Hi"}], "Hello", "No")


VALID_LINE = '{"instruction": "a", "output": "b", "tools": "[]", "id": 1}\n'


@pytest.mark.parametrize(
    "line, message",
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
        (
            '{"system": "a", "messages": [{"role": "system", "content": "b"}]}',
            "'system' and a first message with the role system",
        ),
        ('{"conversations": {}}', "not a list"),
        ('{"messages": [], "tools": [{"type": "function"}]}', "'tools' is not supported"),
        ('{"instruction": "a", "output": "b", "tools": "[{}]"}', "'tools' is not supported"),
        ('{"messages": [], "functions": [{}]}', "'functions' is not supported"),
        (
            '{"messages": [{"role": "user", "content": "a", "tool_calls": [{}]}]}',
            "message 1: 'tool_calls' is not supported",
        ),
        (
            '{"messages": [{"role": "user", "content": "a", "reasoning_content": "b"}]}',
            "message 1: 'reasoning_content' is not supported",
        ),
        (
            '{"messages": [{"role": "user", "content": "a", "weight": 0.5}]}',
            "message 1: 'weight' must be 0 or 1, got 0.5",
        ),
        (
            '{"messages": [{"role": "user", "content": "a"},'
            ' {"role": "assistant", "content": "b", "weight": 0}]}',
            "all assistant messages have the weight 0",
        ),
        ('{"instruction": "a", "output": "b", "history": ["a"]}', "history"),
    ],
)
def test_invalid_line_raises_error(tmp_path, line, message):
    path = tmp_path / "talks.jsonl"
    path.write_text(VALID_LINE + "\n" + line + "\n", "utf-8")
    with pytest.raises(InputError, match=f"talks.jsonl, line 3: .*{message}"):
        data.read_conversations(path)


def test_invalid_file_raises_error(tmp_path):
    for name, text, message in (
        ("a.json", '[\n{"instruction": ]', "line 2: not JSON"),
        ("b.json", "{}", "not a list"),
        ("c.json", '[{"instruction": "a", "output": "b"}, {}]', "record 2: expected"),
        ("d.jsonl", "\n", "no conversation"),
        ("e.txt", "a", "must end in"),
    ):
        (tmp_path / name).write_text(text, "utf-8")
        with pytest.raises(InputError, match=f"{name}.*{message}"):
            data.read_conversations(tmp_path / name)
    for text, message in (
        ('{"instruction": "a", "chosen": "b"}', "no text in 'rejected'"),
        ('{"instruction": "a", "chosen": "b", "rejected": "b"}', "are equal"),
        (
            VALID_LINE.replace('"b"', '"b", "chosen": "b", "rejected": "c"'),
            "ends with the assistant",
        ),
    ):
        (tmp_path / "pairs.jsonl").write_text(text, "utf-8")
        with pytest.raises(InputError, match=f"pairs.jsonl, line 1: .*{message}"):
            data.read_preferences(tmp_path / "pairs.jsonl")
