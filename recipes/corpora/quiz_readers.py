"""Read quiz questions, and generate questions from a dictionary."""

import random
import re
import zipfile

from keras_llm.recipes.corpora.readers import Split, debian_files

ALTERNATIVE = " | "  # separates several correct answers
_LISTS = "/trivia/data/lists/"
_HELD_OUT = 8  # every eighth list is held out
_WORDS_OF_A_TEXT = 5  # definitions per text; the question is about one of them


def trivia(path):
    """Read rows (question, answers) of quiz lists.

    Whole lists are held out; questions about pictures are dropped.
    """
    import yaml

    sides = [], []
    with zipfile.ZipFile(path) as archive:
        names = sorted(n for n in archive.namelist() if _LISTS in n and n.endswith(".yaml"))
        for number, name in enumerate(names):
            for question, answers in yaml.safe_load(archive.read(name)).items():
                if isinstance(answers, list) and "http" not in str(question):
                    texts = dict.fromkeys(str(one).replace("|", "/").strip() for one in answers)
                    row = (str(question).strip(), ALTERNATIVE.join(filter(None, texts)))
                    sides[number % _HELD_OUT == _HELD_OUT - 1].append(row)
    return Split(*sides)


def wordnet(path):
    """Return rows (question, answers) that ask for the word of a WordNet definition."""
    return [(_question(gloss), ALTERNATIVE.join(words)) for words, gloss in _entries(path)]


def wordnet_reading(path):
    """Return rows (question, text, answer) about texts of five WordNet definitions.

    A question asks for the definition of a synonym, or for the word of a definition.
    """
    entries = _entries(path)
    random.Random(0).shuffle(entries)
    draw, rows = random.Random(1), []
    for begin in range(0, len(entries) - _WORDS_OF_A_TEXT + 1, _WORDS_OF_A_TEXT):
        part = entries[begin : begin + _WORDS_OF_A_TEXT]
        text = " ".join(f"{words[0].capitalize()} is {gloss}." for words, gloss in part)
        words, gloss = draw.choice(part)
        if len(words) > 1:
            rows.append((f"What is {words[1]}, also called {words[0]}?", text, gloss))
        else:
            rows.append((_question(gloss), text, words[0].capitalize()))
    return rows


def _question(gloss):
    return f"Which word means: {gloss}?"


def _entries(path):
    """Return words and definition of each entry in Debian's WordNet package."""
    entries = []
    for _, content in debian_files(path, r"/wordnet/data\.(noun|verb|adj|adv)$"):
        lines = content.decode("latin-1").splitlines()
        entries += [_entry(line) for line in lines if not line.startswith(" ")]
    return entries


def _entry(line):
    head, gloss = line.split(" | ", 1)
    fields = head.split()
    words = fields[4 : 4 + 2 * int(fields[3], 16) : 2]
    words = [re.sub(r"\(.*\)$", "", word).replace("_", " ") for word in words]
    return list(dict.fromkeys(words)), gloss.split('; "')[0].strip().rstrip(";")
