"""A Hugging Face hub for tests: a server with the hub's addresses, headers and answers, and a cache of its own."""

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

# What the hub answers where it gives no file: repository -> status and X-Error-Code.
REFUSALS = {"someone/gated": (403, "GatedRepo"), "someone/nothing": (401, "RepoNotFound")}


class Hub(BaseHTTPRequestHandler):
    """Serves `/OWNER/NAME/resolve/REVISION/FILE` from the folder ROOT/OWNER/NAME/REVISION."""

    root: Path

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def log_message(self, format: str, *args: object) -> None:
        """Keep quiet."""

    def _answer(self, *, body: bool) -> None:
        repository, _, rest = self.path.lstrip("/").partition("/resolve/")
        revision, _, name = rest.partition("/")
        if repository in REFUSALS:
            return self._refuse(*REFUSALS[repository])
        if not (self.root / repository).is_dir():
            return self._refuse(404, "RepoNotFound")
        if not (self.root / repository / revision).is_dir():
            return self._refuse(404, "RevisionNotFound")
        if not (self.root / repository / revision / name).is_file():
            return self._refuse(404, "EntryNotFound")
        content = (self.root / repository / revision / name).read_bytes()
        self.send_response(200)
        self.send_header("X-Repo-Commit", hashlib.sha1(f"{repository}{revision}".encode()).hexdigest())
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content)
        return None

    def _refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()


@contextmanager
def hub_at(root: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadingHTTPServer]:
    """Let huggingface_hub speak to a hub with the repositories under `root`, and keep what it fetches in `cache`."""
    from huggingface_hub import constants

    handler = type("HubOfATest", (Hub,), {"root": root})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        address = f"http://127.0.0.1:{server.server_address[1]}"
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
