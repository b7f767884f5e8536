"""A local server that speaks the protocol of Vault's key-value store, version 2, as its documentation has it.

Of the API: read, create or update with check-and-set, destroy versions; tokens; a mount at `secret`.
"""

import contextlib
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN = "hvs.test"


class FakeVault:
    """What the server holds.

    Attributes:
      secrets: by path, versions from 1: data, or None where it was destroyed.
      url: of the server.
    """

    def __init__(self):
        self.secrets: dict[str, list[dict | None]] = {}
        self.url = ""
        self.sealed = False
        self._lock = threading.Lock()

    def answer(self, method: str, path: str, token: str, body: dict) -> tuple[int, dict]:
        if self.sealed:
            return 503, {"errors": ["Vault is sealed"]}
        if token != TOKEN:
            return 403, {"errors": ["permission denied"]}
        found = re.fullmatch(r"/v1/secret/(data|destroy)/(.+?)(\?.*)?", path)
        if not found:
            return 404, {"errors": []}
        kind, name = found[1], found[2]
        with self._lock:
            versions = self.secrets.get(name, [])
            if kind == "destroy" and method in ("POST", "PUT"):
                for version in body["versions"]:
                    if 0 < version <= len(versions):
                        versions[version - 1] = None
                return 204, {}
            if kind == "data" and method == "GET":
                if not versions:
                    return 404, {"errors": []}
                metadata = {"version": len(versions), "destroyed": versions[-1] is None}
                answer = {"data": {"data": versions[-1], "metadata": metadata}}
                return (404 if versions[-1] is None else 200), answer
            if kind == "data" and method in ("POST", "PUT"):
                wanted = body.get("options", {}).get("cas")
                if wanted is not None and wanted != len(versions):
                    return 400, {"errors": ["check-and-set parameter did not match the current version"]}
                self.secrets.setdefault(name, []).append(body["data"])
                return 200, {"data": {"version": len(self.secrets[name])}}
        return 405, {"errors": ["unsupported operation"]}


@contextlib.contextmanager
def fake_vault() -> Iterator[FakeVault]:
    """While entered it listens on this machine."""
    vault = FakeVault()

    class Handler(BaseHTTPRequestHandler):
        def handle_one(self):
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length) or b"{}")
            token = self.headers.get("X-Vault-Token", "")
            status, answer = vault.answer(self.command, self.path, token, body)
            data = b"" if status == 204 else json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PUT = handle_one

        def log_message(self, *_):
            pass

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=listening.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    vault.url = f"http://127.0.0.1:{listening.server_port}"
    try:
        yield vault
    finally:
        listening.shutdown()
        listening.server_close()
        thread.join()
