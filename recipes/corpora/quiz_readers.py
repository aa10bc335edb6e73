"""Questions with answers, and questions made of a dictionary."""

import random
import re
import zipfile

from keras_llm.recipes.corpora.readers import Split, debian_files

ALTERNATIVE = " | "  # between several right answers
_LISTS = "/trivia/data/lists/"
_HELD_OUT = 8  # every so many-th list
_WORDS_OF_A_TEXT = 5  # that a text explains of which one is asked for


def trivia(path):
    """Rows (question, answers) of quiz lists, some of which are held out whole; questions about
    pictures are left out."""
    import yaml

    sides = [], []
    with zipfile.ZipFile(path) as archive:
        names = sorted(n for n in archive.namelist() if _LISTS in n and n.endswith(".yaml"))
        for number, name in enumerate(names):
            for question, answers in yaml.safe_load(archive.read(name)).items():
                if isinstance(answers, list) and "http" not in str(question):
                    known = dict.fromkeys(str(one).replace("|", "/").strip() for one in answers)
                    row = (str(question).strip(), ALTERNATIVE.join(filter(None, known)))
                    sides[number % _HELD_OUT == _HELD_OUT - 1].append(row)
    return Split(*sides)


def wordnet(path):
    """Rows (question, answers) that ask for the word of a definition of WordNet."""
    return [(_asked(gloss), ALTERNATIVE.join(words)) for words, gloss in _entries(path)]


def wordnet_reading(path):
    """Rows (question, text, answer): texts of five of WordNet's definitions, of which one is asked
    for by another name of it, or the word by its definition."""
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
            rows.append((_asked(gloss), text, words[0].capitalize()))
    return rows


def _asked(gloss):
    return f"Which word means: {gloss}?"


def _entries(path):
    """Words and definition of each entry in Debian's package of WordNet."""
    found = []
    for _, content in debian_files(path, r"/wordnet/data\.(noun|verb|adj|adv)$"):
        lines = content.decode("latin-1").splitlines()
        found += [_entry(line) for line in lines if not line.startswith(" ")]
    return found


def _entry(line):
    head, gloss = line.split(" | ", 1)
    fields = head.split()
    words = fields[4 : 4 + 2 * int(fields[3], 16) : 2]
    words = [re.sub(r"\(.*\)$", "", word).replace("_", " ") for word in words]
    return list(dict.fromkeys(words)), gloss.split('; "')[0].strip().rstrip(";")
