"""Every text that an automaton leads to matches, and every match can be reached."""

import datetime
import functools
import itertools
import json
import random
import re
import uuid

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_llm import tokenizers
from keras_llm.errors import InputError
from keras_llm.tokenizers import sentencepiece_model
from keras_llm.tokenizers.constraint import constrain_json_schema, constrain_regex
from keras_llm.tokenizers.json_schema import json_schema_regex

TEXTS = [
    'On 2024-02-29 at 12:30:15 she wrote to jane.doe@example.org: "yes", no, true, false, null.',
    '{"name": "Zoë", "age": 42, "tags": ["red", "green"], "nested": {"x": -1.5e3}}',
    "春眠不觉晓 处处闻啼鸟 Où est-il ? Straße 🙂🙃 \u2581 \ue000a हिन्दी abcabc aaaa  \n  the end",
] * 4


@functools.cache
def byte_pair():
    return tokenizers.BytePair.train(TEXTS, 420, special_tokens=["<|im_end|>"])


@functools.cache
def sentence_piece():
    return tokenizers.SentencePiece.train(TEXTS, 330)


@functools.cache
@functools.cache
def foreign(remove_extra_whitespaces):
    """A model that puts a space before a text, as Llama 2's and T5's do."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    types = [2, 3, 3, *[6] * 256]
    words = ["\u2581", "\u2581yes", "yes", "\u2581no", "no", "\u2581\u2581", "\u2581or", "o", "n"]
    words += list("abcdefghijklm0123456789-")
    return tokenizers.SentencePiece(
        sentencepiece_model.from_pieces(
            pieces + words,
            [0.0] * len(pieces) + [-float(i) for i in range(len(words))],
            types + [1] * len(words),
            {"bos": 1, "eos": 2, "unk": 0, "pad": -1},
            add_dummy_prefix=True,
            remove_extra_whitespaces=remove_extra_whitespaces,
        ),
        escape=False,
    )


TOKENIZERS = {
    "byte_pair": byte_pair,
    "sentence_piece": sentence_piece,
    "foreign": functools.partial(foreign, False),
    "foreign_one_space": functools.partial(foreign, True),
}
every_tokenizer = pytest.mark.parametrize("name", TOKENIZERS)
PATTERNS = {
    "alternation": "yes|no|(?:y|yes|yesno)+maybe",
    "date": r"(?:19|20)[0-9]{2}-(?:0[1-9]|1[0-2])-[0-9]{2}",
    "email": r"[a-z0-9._%+-]+@[a-z0-9-]+(?:\.[a-z0-9-]+)*\.[a-z]{2,4}",
    "digits": r"\d{2,3} \d",
    "words": r"\w+(?: \w+)?[.!?]",
    "lazy": "a*?b??c{0,2}?",
    "can be empty": "(?:ab|(?:c|^)d*)*",
    "chinese": "[一-龥]{1,3}🙂?[^ -~]",
    "any": ".{0,9}",
    "sentence": "[^.]{1,40}[.]",
    "anchors": "^(?:no$|yes)(?: or)?$",
    "ignoring case": "(?i:straße|k)[äöü]?",
    "escapes": " ?[\u2580-\u2582\udfff-\ue001 ab]{1,4}[\ue001\u2581]?",
    "escape only": "\u2581b|\ue000b?",
    "dot all": "(?s:.){2}\\S",
    "groups": r"(?P<a>a|b)(?:(c)|d){2}(?#no)\.?",
}


def walk(automaton, tok, rng):
    """Random tokens until the end token, preferring to end; their ids."""
    ids, state = [], automaton.start
    while True:
        allowed = automaton.allowed(state)
        assert allowed[tok.eos_id] == automaton.accepting[state]
        choices = np.flatnonzero(allowed)
        assert len(choices), "a dead end"
        token = int(rng.choice(choices))
        if allowed[tok.eos_id] and rng.random() < 0.3:
            token = tok.eos_id
        before, state = state, automaton.advance(state, token)
        assert state >= 0
        if token == tok.eos_id:
            assert state == before
            return ids
        ids.append(token)
        if len(ids) > 200:
            return None


def walks(automaton, tok, number):
    rng = random.Random(0)
    for _ in range(number):
        ids = walk(automaton, tok, rng)
        if ids is not None:
            yield tok.decode(ids)


def accepts(automaton, ids):
    state = automaton.start
    for token in ids:
        state = automaton.advance(state, token)
        if state < 0:
            return False
    return bool(automaton.accepting[state])


@every_tokenizer
@pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS)
def test_walks_match(pattern, name):
    tok = TOKENIZERS[name]()
    texts = set(walks(constrain_regex(pattern, tok), tok, 60))
    assert texts
    for text in texts:
        assert re.fullmatch(pattern, text), text


SPELLED = {
    "alternation": ["yes", "no", "yesnomaybe", "yyesmaybe"],
    "date": ["2024-02-29"],
    "email": ["jane.doe@example.org", "a@b.cd"],
    "digits": ["42 7", "٤٢ 7", "१२३ ٤"],
    "words": ["abc.", "Où Straße!", "हन ab?"],
    "lazy": ["", "aaab", "bcc", "c"],
    "can be empty": ["", "ab", "dabcdd", "cc"],
    "chinese": ["春é", "不觉晓🙂\u2581"],
    "any": ["", "🙂🙃", " \u2581 \ue000a"],
    "sentence": ["Où est-il ?\nNo."],
    "anchors": ["no", "yes", "yes or"],
    "ignoring case": ["STRAßE", "straẞe", "\u212aä"],
    "escapes": [" \u2581a\ue000b", "b\ue000", "\u2580\u2581\u2582", "\ue001\ue001"],
    "escape only": ["\u2581b", "\ue000", "\ue000b"],
    "dot all": ["\n\n.", "a\n🙂"],
    "groups": ["acd.", "bdd"],
}


@every_tokenizer
@pytest.mark.parametrize("pattern, texts", [(PATTERNS[n], SPELLED[n]) for n in PATTERNS])
def test_the_encoding_of_a_match_is_accepted(pattern, texts, name):
    tok = TOKENIZERS[name]()
    automaton = constrain_regex(pattern, tok)
    for text in texts:
        assert re.fullmatch(pattern, text), text
        ids = tok.encode(text)
        # The models from elsewhere do not keep every space and U+2581.
        spells = tok.decode(ids) == text
        assert spells or (name.startswith("foreign") and re.search("[ \u2581]", text))
        if spells:
            assert accepts(automaton, ids), text
        assert not accepts(automaton, tok.encode(text + "\n#"))


# Patterns without the parts that no automaton has, over few characters, so that they meet.
ATOMS = st.sampled_from(
    ["a", "b", "é", "[ab]", "[^a]", ".", "\u2581", r"\w", "^", "$", "[é-\uffff]"]
)
REGEX = st.recursive(
    ATOMS,
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map("".join),
        st.lists(inner, min_size=1, max_size=3).map(lambda parts: f"(?:{'|'.join(parts)})"),
        st.tuples(inner, st.sampled_from(["*", "+", "?", "{2}", "{0,2}", "*?", "{1,}?"])).map(
            lambda pair: f"(?:{pair[0]}){pair[1]}"
        ),
    ),
    max_leaves=6,
)


@given(pattern=REGEX, text=st.text("abé\u2581\ue000 🙂", max_size=4))
@settings(max_examples=300, deadline=None)
def test_the_automaton_agrees_with_re(pattern, text):
    for tok in (byte_pair(), sentence_piece()):
        try:
            automaton = constrain_regex(pattern, tok)
        except InputError as error:
            assert "no token sequence" in str(error)
            assert not re.fullmatch(pattern, text)
        else:
            assert accepts(automaton, tok.encode(text)) == bool(re.fullmatch(pattern, text))
            assert all(re.fullmatch(pattern, walked) for walked in walks(automaton, tok, 3))


SCHEMA = {
    "$defs": {"tag": {"enum": ["red", "gr.een", 'a"b', None, 3]}},
    "type": "object",
    "title": "a person",
    "properties": {
        "id": {"const": 7},
        "name": {"type": "string", "minLength": 1, "maxLength": 5},
        "age": {"type": "integer", "minimum": 0, "maximum": 130},
        "tags": {"type": "array", "items": {"$ref": "#/$defs/tag"}, "minItems": 1, "maxItems": 3},
        "place": {
            "type": ["object", "null"],
            "properties": {"x": {"type": "number"}, "y": {"type": "number"}},
            "required": [],
            "additionalProperties": False,
        },
        "ok": {"type": "boolean"},
        "more": {"anyOf": [{"type": "null"}, {"type": "array", "items": {"type": "integer"}}]},
    },
    "required": ["name", "tags", "ok"],
}


def fulfils(value):
    assert set(value) <= set(SCHEMA["properties"])
    assert value.get("id", 7) == 7
    assert type(value["name"]) is str and 1 <= len(value["name"]) <= 5
    assert type(value.get("age", 0)) is int and 0 <= value.get("age", 0) <= 130
    assert 1 <= len(value["tags"]) <= 3
    assert all(tag in SCHEMA["$defs"]["tag"]["enum"] for tag in value["tags"])
    place = value.get("place") or {}
    assert set(place) <= {"x", "y"} and all(type(v) in (int, float) for v in place.values())
    assert type(value["ok"]) is bool
    assert all(type(item) is int for item in value.get("more") or [])


@pytest.mark.parametrize("name", ["byte_pair", "sentence_piece"])
def test_json_fulfils_its_schema(name):
    tok = TOKENIZERS[name]()
    automaton = constrain_json_schema(SCHEMA, tok)
    assert constrain_json_schema(json.dumps(SCHEMA), tok) is automaton
    texts = set(walks(automaton, tok, 150))
    assert len(texts) > 20
    for text in texts:
        fulfils(json.loads(text))
    example = {
        "name": "Zoë🙂\n",
        "age": 42,
        "tags": ['a"b', None],
        "place": {"y": -1.5e-9},
        "ok": True,
    }
    for separators in ((", ", ": "), (",", ":")):
        text = json.dumps(example, ensure_ascii=False, separators=separators)
        assert accepts(automaton, tok.encode(text))
    for wrong in (
        {"age": 131},
        {"tags": []},
        {"name": ""},
        {"ok": 1},
        {"id": 8},
        {"place": {"z": 1}},
    ):
        text = json.dumps({**example, **wrong}, ensure_ascii=False)
        assert not accepts(automaton, tok.encode(text))
    assert not accepts(automaton, tok.encode(json.dumps({"name": "a", "ok": True})))


@given(
    bounds=st.tuples(*[st.none() | st.integers(-1200, 1200) | st.floats(-99, 99)] * 2),
    exclusive=st.tuples(st.booleans(), st.booleans()),
    values=st.lists(st.integers(-1500, 1500) | st.integers(), max_size=40),
)
@settings(deadline=None)
def test_integers_within_bounds(bounds, exclusive, values):
    names = [("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")]
    names = [pair[flag] for pair, flag in zip(names, exclusive, strict=True)]
    schema = {n: b for n, b in zip(names, bounds, strict=True) if b is not None}

    def within(value):
        checks = {
            "minimum": lambda bound: value >= bound,
            "exclusiveMinimum": lambda bound: value > bound,
            "maximum": lambda bound: value <= bound,
            "exclusiveMaximum": lambda bound: value < bound,
        }
        return all(checks[name](bound) for name, bound in schema.items())

    near = [int(b) + d for b in bounds if b is not None for d in (-2, -1, 0, 1, 2)]
    try:
        pattern = json_schema_regex({"type": "integer", **schema})
    except InputError as error:
        assert "no integer" in str(error)
        assert not any(map(within, range(-1500, 1500)))
        return
    for value in (*values, *near):
        assert bool(re.fullmatch(pattern, str(value))) == within(value), (schema, value)
    assert not re.fullmatch(pattern, "007") and not re.fullmatch(pattern, "")


@pytest.mark.parametrize(
    "kind, parse",
    [
        ("date", datetime.date.fromisoformat),
        ("time", datetime.time.fromisoformat),
        ("date-time", datetime.datetime.fromisoformat),
        ("uuid", uuid.UUID),
    ],
)
def test_formats(kind, parse):
    tok = byte_pair()
    automaton = constrain_json_schema({"type": "string", "format": kind}, tok)
    for text in walks(automaton, tok, 60):
        parse(json.loads(text))


def test_dates_are_those_of_the_calendar():
    pattern = json_schema_regex({"type": "string", "format": "date"})
    for year in (1000, 1100, 1200, 1900, 1904, 2000, 2023, 2024, 2100, 2800, 2999):
        for month in range(14):
            for day in range(33):
                try:
                    datetime.date(year, month, day)
                    exists = True
                except ValueError:
                    exists = False
                text = f'"{year}-{month:02}-{day:02}"'
                assert bool(re.fullmatch(pattern, text)) == exists, text


@pytest.mark.parametrize("required", [[], ["a"], ["b"], ["c"], ["a", "c"], ["a", "b", "c"]])
def test_every_choice_of_members(required):
    schema = {
        "type": "object",
        "properties": {name: {"type": "null"} for name in "abc"},
        "required": required,
    }
    pattern = json_schema_regex(schema)
    for names in ("", "a", "b", "c", "ab", "ac", "bc", "abc", "ba", "aa"):
        text = "{" + ",".join(f'"{name}":null' for name in names) + "}"
        fits = list(names) == sorted(set(names)) and set(required) <= set(names)
        assert bool(re.fullmatch(pattern, text)) == fits, text


@every_tokenizer
def test_special_tokens_are_never_allowed(name):
    tok = TOKENIZERS[name]()
    automaton = constrain_regex("(?s:.)*", tok)
    never = {tok.pad_id, tok.bos_id, tok.unk_id} - {-1, tok.eos_id}
    never |= {i for i in getattr(tok, "special_tokens", {}).values() if i != tok.eos_id}
    assert never
    allowed = np.stack([automaton.allowed(s) for s in range(len(automaton.accepting))])
    assert not allowed[:, sorted(never)].any()
    assert (allowed[:, tok.eos_id] == automaton.accepting).all()
    assert allowed.any(axis=1).all()
    others = set(range(tok.vocabulary_size)) - never
    # Bytes that no UTF-8 text has.
    unspelled = [i for i in others if not allowed[:, i].any()]
    assert all(not tok.decode([i]).isprintable() or "\ufffd" in tok.decode([i]) for i in unspelled)


@pytest.mark.parametrize("name", ["foreign", "foreign_one_space", "sentence_piece"])
@pytest.mark.parametrize("text", ["no", " no", "  no", "\u2581no", "\ue000a"])
def test_the_beginning_is_as_decoding_has_it(name, text):
    tok = TOKENIZERS[name]()
    automaton = constrain_regex(text, tok)
    spelled = {tok.token(i): i for i in range(tok.vocabulary_size)}
    pieces = ["\u2581", "\u2581\u2581", "\u2581no", "no", "<0x20>", "n", "o", "a", "b", "\ue000"]
    ids = [spelled[piece] for piece in pieces if piece in spelled]
    found = 0
    for count in range(1, 5):
        for sequence in itertools.product(ids, repeat=count):
            matches = tok.decode(sequence) == text
            assert accepts(automaton, sequence) == matches, sequence
            found += matches
    assert found or text[0] in "\u2581\ue000"


def test_a_token_can_end_inside_a_character():
    tok = byte_pair()
    automaton = constrain_regex("🙊", tok)  # not in the training text: spelled in bytes
    ids = tok.encode("🙊")
    assert len(ids) > 1
    assert accepts(automaton, ids)
    assert not any(accepts(automaton, ids[:count]) for count in range(len(ids)))


def test_rows_and_a_small_frozen_table():
    tok = byte_pair()
    automaton = constrain_regex("[0-9]{4}-[0-9]{2}", tok)
    states, classes = automaton.next_state.shape
    assert automaton.accepting.shape == (states,)
    assert automaton.token_class.shape == (tok.vocabulary_size,)
    assert automaton.next_state.dtype == automaton.token_class.dtype == np.int32
    assert states == 8 and classes < 12
    columns = {tuple(column) for column in automaton.next_state.T}
    assert len(columns) == classes
    two = np.array([automaton.start, automaton.advance(automaton.start, tok.encode("2")[0])])
    assert automaton.allowed(two).shape == (2, tok.vocabulary_size)
    after = automaton.advance(two, np.array([tok.encode("7")[0], tok.eos_id]))
    assert after[0] == two[1] and after[1] == -1
    with pytest.raises(InputError, match="-1"):
        automaton.allowed(after)
    with pytest.raises(ValueError):
        automaton.next_state[0, 0] = 1
    assert constrain_regex("[0-9]{4}-[0-9]{2}", tok) is automaton


def test_states_that_lead_nowhere_are_pruned():
    """Without the byte of "z" nothing that needs it is begun."""
    full = byte_pair()
    spelled = [token for token in full.vocabulary if "z" not in token]
    merges = [merge for merge in full.merges if "z" not in merge]
    tok = tokenizers.BytePair(
        {token: index for index, token in enumerate(spelled)},
        merges,
        special_tokens=["<|eos|>"],
        eos="<|eos|>",
    )
    automaton = constrain_regex("abc|az|xyz", tok)
    assert {tok.decode([i]) for i in np.flatnonzero(automaton.allowed(automaton.start))} <= {
        *("a", "ab", "abc")
    }
    assert set(walks(automaton, tok, 20)) == {"abc"}
    with pytest.raises(InputError, match="no token sequence"):
        constrain_regex("z+", tok)


@pytest.mark.parametrize(
    "pattern, words",
    [
        ("a(b", "unterminated"),
        ("a)|(?:b", "unbalanced"),
        ("*", "nothing to repeat"),
        ("(?=a)b", "look-around"),
        (r"(a)\1", "back reference"),
        (r"\bword", "word boundary"),
        ("a++b", "possessive"),
        ("(?>a)b", "atomic"),
        ("(?m)^a", "multiline"),
        ("a$b", "no token sequence"),
        ("a^b", "no token sequence"),
        (r"[^\s\S]", "no token sequence"),
        ("\ud800", "no token sequence"),
        ("(?:a{900}){900}", "20000 parts"),
        ("(?:a|b)*a(?:a|b){20}", "20000 states"),
        (7, "int"),
    ],
)
def test_patterns_that_cannot_be(pattern, words):
    with pytest.raises(InputError, match="`pattern`.*" + re.escape(words)):
        constrain_regex(pattern, byte_pair())


def test_tokenizers_that_cannot_be():
    pieces = tokenizers.WordPiece(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a"])
    with pytest.raises(InputError, match="`tokenizer` is a WordPiece"):
        constrain_regex("a", pieces)
    endless = tokenizers.BytePair({"a": 0, "b": 1}, [])
    with pytest.raises(InputError, match="end token"):
        constrain_regex("a", endless)


TYPED = {"type": "object", "properties": {"a": {"type": "string"}}}


@pytest.mark.parametrize(
    "schema, words",
    [
        ("{'a'", "not JSON"),
        (True, "#: a schema must be an object"),
        ({}, "`type` must be one or more"),
        ({"type": "text"}, "`type` must be one or more"),
        ({"type": "number", "minimum": 0}, "`minimum` is not supported"),
        ({"type": "string", "pattern": "a"}, "`pattern` is not supported"),
        ({"type": "string", "format": "email"}, "`format` must be one of"),
        ({"type": "string", "format": "date", "maxLength": 3}, "together with a length"),
        ({"type": "string", "minLength": 3, "maxLength": 2}, "greater than"),
        ({"type": "string", "minLength": -1}, "`minLength` must be an int >= 0"),
        ({"type": "array"}, "needs `items`"),
        ({"type": "array", "items": {"type": "null"}, "uniqueItems": True}, "`uniqueItems`"),
        ({"type": "object"}, "needs `properties`"),
        ({**TYPED, "required": ["b"]}, "'b'"),
        ({**TYPED, "required": "a"}, "`required` must list"),
        ({**TYPED, "additionalProperties": {}}, "`additionalProperties`"),
        ({"type": "object", "properties": {"a": {"not": {}}}}, "#/properties/a: `type`"),
        ({"type": "integer", "minimum": 3, "exclusiveMaximum": 3}, "no integer"),
        ({"type": "integer", "minimum": True}, "`minimum` must be a number"),
        ({"type": "integer", "minimum": float("nan")}, "`minimum` must be a number"),
        ({"enum": []}, "no value"),
        ({"enum": ["a"], "type": "integer"}, "no value"),
        ({"enum": ["a"], "minLength": 1}, "`minLength` is not supported"),
        ({"const": float("inf")}, "not JSON"),
        ({"oneOf": [TYPED, TYPED]}, "`oneOf` with more than one"),
        ({"anyOf": []}, "`anyOf` must list"),
        ({"$ref": "#/$defs/a"}, "does not exist"),
        ({"$ref": "other.json"}, "must begin with '#/'"),
        ({"$ref": "#"}, "contains itself"),
        (
            {
                "$ref": "#/$defs/a",
                "$defs": {"a": {"type": "array", "items": {"$ref": "#/$defs/a"}}},
            },
            "contains itself",
        ),
    ],
)
def test_schemas_that_cannot_be(schema, words):
    with pytest.raises(InputError, match="`schema`.*" + re.escape(words)):
        constrain_json_schema(schema, byte_pair())
