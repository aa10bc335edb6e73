"""A server of the protocol of Hugging Face's hub on loopback, for the real `huggingface_hub`.

A repository is a folder `<root>/<owner>/<name>`. Large files (`.safetensors` and `.gguf`) are
answered with a redirect, as the hub redirects to its storage. `Server.rules` changes the answers.
"""

import contextlib
import hashlib
import http.server
import json
import pathlib
import threading
import urllib.parse

COMMIT = "c0ffee" + "0" * 34
_LARGE = (".safetensors", ".gguf")


class Server(http.server.ThreadingHTTPServer):
    """The server of the repositories in a folder.

    Attributes:
        rules: dict from a repository to "gated" or "failing"; or from a repository and file to
            "cut", to end its first download early, or "damaged".
        requests: list of the method and path of each request.
    """

    def __init__(self, root):
        super().__init__(("127.0.0.1", 0), Handler)
        self.root, self.rules, self.requests = pathlib.Path(root), {}, []
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        self.server.requests.append((self.command, self.path))
        parts = urllib.parse.urlsplit(self.path).path.strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            self._api("/".join(parts[2:4]), parts[4:])
        elif parts[0] == "storage":
            self._content("/".join(parts[1:3]), "/".join(parts[3:]))
        elif parts[2:3] != ["resolve"]:
            self._error(404, "")
        else:  # OWNER/NAME/resolve/REVISION/FILE
            self._resolve("/".join(parts[:2]), parts[3], "/".join(parts[4:]))

    def _refused(self, repository, revision=None):
        if not (self.server.root / repository).is_dir():
            return self._error(401, "RepoNotFound")
        rule = self.server.rules.get(repository)
        if rule == "gated" and self.headers.get("Authorization") != "Bearer right":
            return self._error(403, "GatedRepo")
        if rule == "failing":
            return self._error(503, "")
        if revision not in (None, "main", "v1", COMMIT):
            return self._error(404, "RevisionNotFound")
        return False

    def _api(self, repository, rest):
        revision = rest[1] if len(rest) > 1 else None
        if self._refused(repository, revision):
            return
        folder = self.server.root / repository
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        names = [str(path.relative_to(folder)) for path in files]
        if rest[:1] == ["tree"]:
            rows = [self._row(path, name) for path, name in zip(files, names, strict=True)]
            self._json(rows)
        else:
            siblings = [{"rfilename": name} for name in names]
            self._json({"id": repository, "sha": COMMIT, "siblings": siblings, "private": False})

    @staticmethod
    def _row(path, name):
        content = path.read_bytes()
        row = {"type": "file", "path": name, "size": len(content), "oid": "0" * 40}
        if name.endswith(_LARGE):
            digest = hashlib.sha256(content).hexdigest()
            row["lfs"] = {"oid": digest, "size": len(content), "pointerSize": 134}
        return row

    def _resolve(self, repository, revision, name):
        if self._refused(repository, revision):
            return
        path = self.server.root / repository / name
        if not path.is_file():
            self._error(404, "EntryNotFound")
            return
        content = path.read_bytes()
        headers = {"X-Repo-Commit": COMMIT}
        if name.endswith(_LARGE):
            headers["X-Linked-Etag"] = f'"{hashlib.sha256(content).hexdigest()}"'
            headers["X-Linked-Size"] = str(len(content))
            host = f"localhost:{self.server.server_port}"  # another one, as the hub's storage
            headers["Location"] = f"http://{host}/storage/{repository}/{name}"
            self._answer(302, b"", headers)
        else:
            headers["ETag"] = f'"{hashlib.sha1(content).hexdigest()}"'
            self._answer(200, content, headers)

    def _content(self, repository, name):
        content = (self.server.root / repository / name).read_bytes()
        rule, begin = self.server.rules.get((repository, name)), 0
        headers = {"ETag": '"storage"', "Accept-Ranges": "bytes"}
        status, requested = 200, self.headers.get("Range")
        if requested:
            begin = int(requested.removeprefix("bytes=").split("-")[0])
            headers["Content-Range"] = f"bytes {begin}-{len(content) - 1}/{len(content)}"
            status = 206
        if rule == "damaged":
            content = content[:-1] + bytes([content[-1] ^ 1])
        if rule == "cut" and self.command == "GET":
            del self.server.rules[repository, name]
            self._answer(status, content[begin:], headers, cut=len(content) // 2)
        else:
            self._answer(status, content[begin:], headers)

    def _error(self, status, code):
        self._answer(status, b"{}", {"X-Error-Code": code, "X-Error-Message": code})
        return True

    def _json(self, value):
        self._answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _answer(self, status, content, headers, cut=None):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[:cut])
        if cut is not None:
            self.wfile.flush()
            self.close_connection = True


@contextlib.contextmanager
def serving(root):
    """Run a `Server` in a thread."""
    server = Server(root)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
