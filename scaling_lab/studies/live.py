"""A page that is served while its runs still run: it follows the record file.

The standard library's server is enough: one reader, one file that grows, a page that
asks once a second whether there is more. Nothing is written but lines that cannot be
read, set aside as ever, and nothing but the page and the records is given out.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
import sys
import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from scaling_lab.record import FILE_NAME, digest, file_of
from scaling_lab.studies.document import document
from scaling_lab.studies.markup import Markup
from scaling_lab.studies.report import main, title_of, waiting
from scaling_lab.studies.rows import runs_of
from scaling_lab.studies.source import Source, lines_of

LOOPBACK = "127.0.0.1"


class Records:
    """The page of a record file, made again when the file has changed.

    Args:
      path: a folder that a sweep writes to, or a record file. The file itself need not
        be there yet.

    Raises:
      FileNotFoundError: there is no such folder.
    """

    def __init__(self, path: str | Path) -> None:
        self.file = file_of(path)
        if not self.file.parent.is_dir():
            raise FileNotFoundError(
                f"no folder at {self.file.parent}; a sweep makes it: "
                f"scaling-lab sweep --family llama --size toy --out {self.file.parent}"
            )
        self.name = self.file.parent.resolve().name
        self._lock = threading.Lock()
        self._state, self._main = "", Markup("")

    def state(self) -> str:
        """A word that changes whenever the file does."""
        try:
            told = self.file.stat()
        except FileNotFoundError:
            return "none"
        return digest([told.st_ino, told.st_size, told.st_mtime_ns])

    def main(self) -> Markup:
        """The ``main`` element of the page as the file is now."""
        with self._lock:
            state = self.state()
            if state != self._state:
                self._main, self._state = self._made(state), state
            return self._main

    def document(self) -> str:
        """The whole page."""
        return document(title_of(self.name), self.main(), follow=True)

    def _made(self, state: str) -> Markup:
        if state == "none" or not self.file.stat().st_size:
            return waiting(self.name, state)
        runs = runs_of(self.file)
        source = Source(FILE_NAME, self.file.name, lines_of(self.file))
        return main(runs, self.name, source, state)


def server_of(
    records: Records, host: str = LOOPBACK, port: int | None = None
) -> ThreadingHTTPServer:
    """A server that listens and does not serve yet; `url_of` says where.

    Args:
      port: which; ``None`` for one that is free.

    Raises:
      ValueError: the port is taken, or host or port cannot be.
    """
    if port is not None and not 0 < port < 65536:
        raise ValueError(f"port {port} is none; they go from 1 to 65535")
    kind = _V6 if ":" in host else _Server
    try:
        return kind((host, port or 0), partial(_Handler, records))
    except PermissionError as error:
        raise ValueError(
            f"port {port} is not for everyone; take 1024 or above"
        ) from error
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            free = _free_port(host)
            raise ValueError(
                f"port {port} of {host} is taken; {free} is free, and without --port "
                "a free one is found"
            ) from error
        raise ValueError(
            f"host {host!r} is none of this machine's ({error}); leave it out for "
            f"{LOOPBACK}"
        ) from error


def url_of(server: ThreadingHTTPServer) -> str:
    """Where a browser finds a server's page."""
    host, port = server.server_address[:2]
    name = f"[{host}]" if ":" in str(host) else host
    return f"http://{name}:{port}/"


def is_open(server: ThreadingHTTPServer) -> bool:
    """Whether other machines may reach it."""
    return not ipaddress.ip_address(str(server.server_address[0])).is_loopback


class _Server(ThreadingHTTPServer):
    """Threads end with the process; a browser that went away is no error."""

    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _V6(_Server):
    address_family = socket.AF_INET6


class _Handler(BaseHTTPRequestHandler):
    """Answers for the page, its ``main`` element, and the records."""

    def __init__(self, records: Records, *args: Any) -> None:
        self.records = records
        super().__init__(*args)

    def do_GET(self) -> None:
        """One question of a browser."""
        asked = urlsplit(self.path)
        if not self._meant_for_us():
            self._say(403, "this server answers to its own address alone")
            return
        try:
            if asked.path == "/":
                self._say(200, self.records.document(), "text/html")
            elif asked.path == "/main":
                self._main(parse_qs(asked.query).get("after", [""])[0])
            elif asked.path == f"/{FILE_NAME}" and self.records.file.exists():
                self._say(200, self.records.file.read_bytes(), "text/plain")
            else:
                self._say(404, f"nothing at {asked.path}; the page is at /")
        except ConnectionError:
            raise
        except Exception as error:  # whatever a record holds, the reader is told
            self._say(500, f"the records cannot be read: {error}")

    do_HEAD = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing: the page asks every second."""

    def _main(self, after: str) -> None:
        if after == self.records.state():
            self._say(304, "")
        else:
            self._say(200, self.records.main(), "text/html")

    def _meant_for_us(self) -> bool:
        """Whether the name asked for is ours, while only this machine may ask.

        A page elsewhere can have its name lead here, and would then read the records.
        """
        server = self.server
        assert isinstance(server, ThreadingHTTPServer)
        if is_open(server):
            return True
        try:
            name = urlsplit(f"//{self.headers.get('Host', '')}").hostname
            return name == "localhost" or ipaddress.ip_address(name or "").is_loopback
        except ValueError:
            return False

    def _say(self, status: int, content: str | bytes, kind: str = "text/plain") -> None:
        data = content.encode() if isinstance(content, str) else content
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        if self.command != "HEAD" and status != 304:
            self.wfile.write(data)


def _free_port(host: str) -> int:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.bind((host, 0))
        return probe.getsockname()[1]
