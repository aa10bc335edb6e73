"""Read texts and rows from Debian packages of corpora; `registry` loads them by name."""

import functools
import gettext
import html
import io
import random
import re
import struct
import subprocess
import tarfile
import tempfile
import zlib

from keras_llm.errors import InputError
from keras_llm.recipes.corpora.readers import ALTERNATIVE

_PAGE = re.compile(r"/help/[^/]+/text/(.*\.html)$")
_SHORTCUT = re.compile(r"(?<!\w)_(?=\w)|&(?=\w)(?!#?\w+;)")
_PARAGRAPH = re.compile(r'<(p|h\d)\b[^>]*\bid="([^"]+)"[^>]*>(.*?)</\1>', re.S)
_WORDS_OF_A_TEXT = 5  # definitions per text; the question is about one of them


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
