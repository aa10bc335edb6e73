"""Test that chat templates render like Hugging Face's library and run no code."""

import datetime

import pytest

from keras_llm import tokenizers
from keras_llm.errors import InputError

HELLO = [{"role": "user", "content": "Hello"}]
CONVERSATION = [
    {"role": "system", "content": "Be brief."},
    *HELLO,
    {"role": "assistant", "content": "Hi <b>\u00e9</b>"},
    {"role": "user", "content": "  Bye "},
]
CHATML = """{% for message in messages %}
    {% if loop.first and messages[0]['role'] != 'system' %}
{{- '<|im_start|>system\nHelp.<|im_end|>\n' }}
    {%- endif %}
{{- '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}
{%- endfor %}
{% if add_generation_prompt %}
{{- '<|im_start|>assistant\n' }}
{%- endif %}"""
MISTRAL = """{{ bos_token }}{% for message in messages %}
{% if message.role == 'system' %}{% continue %}{% endif %}
{% if message['role'] == 'user' %}
{{- '[INST] ' + message['content'] | trim + ' [/INST]' }}
{%- elif message['role'] == 'assistant' %}
{% generation %}{{ ' ' + message['content'] + eos_token }}{% endgeneration %}
{%- else %}
{{- raise_exception('Only user and assistant speak') }}
{%- endif %}{% endfor %}"""


def test_chatml():
    template = tokenizers.ChatTemplate(CHATML)
    assert template.render(HELLO) == (
        "<|im_start|>system\nHelp.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    text = template.render(CONVERSATION, add_generation_prompt=False)
    assert text.endswith("<|im_start|>user\n  Bye <|im_end|>\n") and "Help" not in text


def test_continue_generation_and_tokens():
    template = tokenizers.ChatTemplate(MISTRAL, bos="<s>", eos="</s>")
    assert template.render(CONVERSATION) == (
        "<s>[INST] Hello [/INST] Hi <b>\u00e9</b></s>[INST] Bye [/INST]"
    )
    with pytest.raises(InputError, match="Only user and assistant speak"):
        template.render([{"role": "tool", "content": "3"}])


def test_tools_tojson_and_strftime():
    source = "{% if tools %}{{ tools | tojson }}{% endif %}{{ strftime_now('%Y') }}{{ mood }}"
    template = tokenizers.ChatTemplate(source)
    year = str(datetime.datetime.now().year)
    text = template.render(HELLO, tools=[{"name": "<\u00e9>"}], mood="!")
    assert text == f'[{{"name": "<\u00e9>"}}]{year}!'
    assert template.render(HELLO) == year


def test_chat_template_token_ids():
    tok = tokenizers.BytePair.train([CHATML], 300, special_tokens=["<|im_start|>", "<|im_end|>"])
    ids = tok.encode(tokenizers.ChatTemplate(CHATML).render(HELLO), parse_special=True)
    assert ids.count(3) == 3 and ids.count(4) == 2 and ids[0] == 3


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.popen('true').read() }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(role='x') }}",
        "{{ '{0.__class__.__init__.__globals__}'.format(raise_exception) }}",
        "{{ strftime_now.__globals__.json }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}",
        "{% for i in range(999999999) %}{% endfor %}",
        "{{ messages.nothing.here }}",
        "{{ 1 + 'a' }}",
    ],
)
def test_unsafe_templates_raise_error(source):
    with pytest.raises(InputError, match="the chat template rejects"):
        tokenizers.ChatTemplate(source).render([dict(HELLO[0])])


def test_invalid_templates_and_messages_raise_error():
    with pytest.raises(InputError, match=r"line 2: .*endfor"):
        tokenizers.ChatTemplate("\n{% for m in messages %}")
    with pytest.raises(InputError, match="`source` must be a str, got NoneType"):
        tokenizers.ChatTemplate(None)
    template = tokenizers.ChatTemplate(CHATML)
    for messages, error in (
        ([], "non-empty list"),
        ("Hello", "non-empty list"),
        (["Hello"], "`messages` 0 must be a dict, got str"),
        ([*HELLO, {"content": "x"}], '`messages` 1: "role" must be a str, got None'),
        ([{"role": "user", "content": 3}], '"content" must be a str, got 3'),
    ):
        with pytest.raises(InputError, match=error):
            template.render(messages)
    calls = [{"role": "assistant", "content": None, "tool_calls": []}]
    assert tokenizers.ChatTemplate("{{ messages[0].role }}").render(calls) == "assistant"
