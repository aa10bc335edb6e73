"""Test that chat templates render like Hugging Face's library and run no code."""

import concurrent.futures
import datetime
import time

import pytest

from keras_llm import tokenizers
from keras_llm.errors import InputError
from keras_llm.tokenizers import template_process

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
        ([{"role": "user", "content": 3}], '"content" must be a str or a list of dicts, got 3'),
        (
            [{"role": "user", "content": None}],
            '"content" must be a str or a list of dicts, got None',
        ),
        ([{"role": "user", "content": ["a"]}], "list of dicts, got \\['a'\\]"),
        ([{"role": "user", "content": "a", "date": datetime.date(1, 1, 1)}], "must be JSON values"),
    ):
        with pytest.raises(InputError, match=error):
            template.render(messages)
    calls = [{"role": "assistant", "content": None, "tool_calls": []}]
    assert tokenizers.ChatTemplate("{{ messages[0].role }}").render(calls) == "assistant"


def test_content_in_parts_or_none():
    parts = [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]
    source = "{% for m in messages %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endfor %}"
    assert tokenizers.ChatTemplate(source).render(parts) == "Hi"
    for source in ("{{ messages[0].content }}", "{{ messages[0]['content'] | trim }}"):
        with pytest.raises(InputError, match=r"`messages` 0: .* does not support content in parts"):
            tokenizers.ChatTemplate(source).render(parts)
        with pytest.raises(InputError, match=r"`messages` 0: .* does not support content in parts"):
            tokenizers.ChatTemplate(source).render(
                [{**m, "content": (*m["content"],)} for m in parts]
            )
    thought = [*HELLO, {"role": "assistant", "content": None, "reasoning": "None!"}]
    source = "{{ messages[1].reasoning }}{{ messages[1].content or '' }}"
    assert tokenizers.ChatTemplate(source).render(thought) == "None!"
    with pytest.raises(InputError, match='does not support a "content" of None'):
        tokenizers.ChatTemplate("{{ messages[1].content }}").render(thought)


def test_variables_that_a_template_does_not_use_are_named():
    template = tokenizers.ChatTemplate(
        "{% if not tools is defined %}{% set tools = none %}{% endif %}"
        "{{ messages[0].content }}{{ tools }}{{ '' if enable_thinking else '<think></think>' }}"
    )
    assert {"tools", "enable_thinking"} <= set(template.variables)
    assert template.render(HELLO, enable_thinking=False, tools=[1]) == "Hello[1]<think></think>"
    assert template.render(HELLO, enable_thinking=True, documents=None) == "HelloNone"
    with pytest.raises(InputError, match=r"does not use the variable `thinking`; it uses: .*tools"):
        template.render(HELLO, thinking=False)
    source = (
        "{% macro show(text) %}{{ text }}{% endmacro %}{% set end = 1 %}"
        "{% for message in messages %}{{ show(message.content) }}{{ end }}{% endfor %}"
        "{% set tools = tools or [] %}{% for i in tools %}{{ i }}{% endfor %}"
    )
    template = tokenizers.ChatTemplate(source)
    assert template.variables == ("messages", "tools")
    assert template.render(HELLO, tools=[2]) == "Hello12"
    for name in ("message", "text", "end", "i"):  # only in the template itself
        with pytest.raises(InputError, match=f"does not use the variable `{name}`"):
            template.render(HELLO, **{name: 1})


HOSTILE = {
    "loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "long text": "{{ 'a' * 10**10 }}",
    "long text in pieces": "{{ ('a' * 10**7) ~ ('a' * 10**7) }}",
    "doubled text": "{% set n = namespace(s='aaaa') %}{% for i in range(99) %}"
    "{% set n.s = n.s + n.s %}{% endfor %}",
    "replaced text": "{{ 'a' | replace('a', 'b' * 10**6) | replace('b', 'c' * 10**6) }}",
    "power while compiling": "{{ 9 ** (9 ** 9) }}",
    "format": "{{ '%1000000000d' % 1 }}",
    "padding": "{{ 'a' | center(10**10) }}",
    "lorem ipsum": "{{ lipsum(n=10**9) }}",
    "indented JSON": "{{ messages | tojson(indent=10**10) }}",
    "recursive macro": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "recursive loop": "{% for m in messages recursive %}{{ loop(messages) }}{% endfor %}",
    "parentheses": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "blocks": "{% if 1 %}" * 3000 + "{% endif %}" * 3000,
    "attributes": "{{ x" + ".x" * 20000 + " }}",
    "filters": "{{ x" + " | upper" * 20000 + " }}",
    "surrogates": "{{ '\ud800' }}",
    "surrogate format": "{{ strftime_now('\ud800') }}",
    "long error": "{{ raise_exception('x' * 10**6) }}",
    "infinity": "{{ 1.0e400 | int }}",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_templates_raise_error(name, monkeypatch):
    limited = template_process.TemplateProcess(seconds=0.5)
    monkeypatch.setattr(template_process, "shared", limited)
    hello = tokenizers.ChatTemplate("{{ messages[0].content }}")
    start = time.process_time()
    with pytest.raises(InputError, match="chat template") as error:
        tokenizers.ChatTemplate(HOSTILE[name]).render(HELLO)
    assert len(str(error.value)) < 500 and "\n" not in str(error.value)
    assert time.process_time() - start < 2
    assert hello.render(HELLO) == "Hello"  # the next text is rendered as usual
    limited.close()


def test_limits_of_memory_and_time_hold(monkeypatch):
    large = "{{ ('a' * 300_000_000) | length }}"
    assert tokenizers.ChatTemplate(large).render(HELLO) == "300000000"
    small = template_process.TemplateProcess(size=200 * 2**20)
    monkeypatch.setattr(template_process, "shared", small)
    with pytest.raises(InputError, match="rejects the messages: it needs too much memory"):
        tokenizers.ChatTemplate(large).render(HELLO)
    small.close()
    short = template_process.TemplateProcess(seconds=0.2)
    monkeypatch.setattr(template_process, "shared", short)
    with pytest.raises(InputError, match=r"rejects the messages: it takes more than 0\.2 s"):
        tokenizers.ChatTemplate(HOSTILE["loops"]).render(HELLO)
    with pytest.raises(InputError, match=r"chat template: it takes more than 0\.2 s"):
        tokenizers.ChatTemplate("{% set a = 1 %}" * 50_000)
    assert tokenizers.ChatTemplate("{{ 1 }}").render(HELLO) == "1"
    short.close()


def test_threads_render_their_own_texts():
    template = tokenizers.ChatTemplate("{{ messages[0].content }}{{ mood }}")

    def render(i):
        return template.render([{"role": "user", "content": str(i)}], mood="!" * i)

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert list(pool.map(render, range(200))) == [f"{i}{'!' * i}" for i in range(200)]
