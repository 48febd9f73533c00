"""Downloads against a server on this machine that breaks in all the ways servers do."""

from __future__ import annotations

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingTCPServer  # HTTPServer asks the name service for its own name

import pytest

from eqadapt.datasets.fetch import Patience, check_file, download
from eqadapt.datasets.source import Checksum, RemoteFile
from eqadapt.errors import UserError

DATA = bytes(range(256)) * 4096  # 1 MiB
HASTY = Patience(tries=3, timeout=2.0, pause=0.0)


class Server:
    """Serves DATA; ``mode`` says how it fails, ``seen`` holds the Range headers received."""

    def __init__(self) -> None:
        self.mode, self.data, self.tag = "ok", DATA, '"one"'
        self.seen: list[str | None] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.answer(self)

            def log_message(self, *args: object) -> None:
                pass

        self.http = ThreadingTCPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}/data.bin"

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        wanted = request.headers.get("Range")
        self.seen.append(wanted)
        if self.mode == "404":
            request.send_error(404)
            return
        if self.mode == "503 once" and len(self.seen) == 1:
            request.send_error(503)
            return
        start = 0
        if wanted and request.headers.get("If-Range") == self.tag and self.mode != "no ranges":
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
        if start >= len(self.data):
            request.send_error(416)
            return
        body = self.data[start:]
        request.send_response(206 if start else 200)
        request.send_header("Content-Length", str(len(body)))
        request.send_header("ETag", self.tag)
        if start:
            request.send_header(
                "Content-Range", f"bytes {start}-{len(self.data) - 1}/{len(self.data)}"
            )
        request.end_headers()
        if self.mode == "always cut":
            body = b""
        elif self.mode in ("cut", "no ranges"):
            body = body[: len(body) // 2] if len(self.seen) < 3 else body
        request.wfile.write(body)


@pytest.fixture
def server():
    one = Server()
    yield one
    one.http.shutdown()
    one.http.server_close()


def remote(server: Server, data: bytes = DATA) -> RemoteFile:
    checksum = Checksum("md5", hashlib.md5(data).hexdigest(), "the test")
    return RemoteFile("data.bin", (server.url,), checksum, len(data))


def test_whole_file_arrives_and_is_not_fetched_twice(server, tmp_path):
    path, url = download(remote(server), tmp_path, HASTY)
    assert path.read_bytes() == DATA and url == server.url
    download(remote(server), tmp_path, HASTY)
    assert len(server.seen) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["data.bin"]


def test_word_is_given_once_before_a_new_file_takes_its_place(server, tmp_path):
    """And none where the download fails, or the file that is there is kept."""
    (tmp_path / "data.bin").write_bytes(b"old")
    seen: list[bytes] = []

    def before() -> None:
        seen.append((tmp_path / "data.bin").read_bytes())

    server.mode = "404"
    with pytest.raises(UserError):
        download(remote(server), tmp_path, HASTY, before=before)
    server.mode, server.data = "ok", DATA[:-1]
    with pytest.raises(UserError):
        download(remote(server), tmp_path, HASTY, before=before)
    assert seen == []
    server.data = DATA
    for _ in range(2):
        download(remote(server), tmp_path, HASTY, before=before)
    assert seen == [b"old"] and (tmp_path / "data.bin").read_bytes() == DATA


def test_broken_connection_is_resumed_where_it_broke(server, tmp_path):
    server.mode = "cut"
    path, _ = download(remote(server), tmp_path, HASTY)
    assert path.read_bytes() == DATA
    assert server.seen == [None, f"bytes={len(DATA) // 2}-", f"bytes={len(DATA) * 3 // 4}-"]


def test_interrupted_download_is_resumed_by_the_next_run(server, tmp_path):
    server.mode = "cut"
    with pytest.raises(UserError, match="could not be downloaded"):
        download(remote(server), tmp_path, Patience(tries=1, timeout=2.0, pause=0.0))
    kept = (tmp_path / "data.bin.part").stat().st_size
    assert 0 < kept < len(DATA) and not (tmp_path / "data.bin").exists()
    server.mode = "ok"
    path, _ = download(remote(server), tmp_path, HASTY)
    assert path.read_bytes() == DATA and server.seen[-1] == f"bytes={kept}-"


def test_part_that_is_longer_than_the_file_is_dropped(server, tmp_path):
    (tmp_path / "data.bin.part").write_bytes(DATA + b"more")
    (tmp_path / "data.bin.part.json").write_text(json.dumps([server.url, server.tag]))
    path, _ = download(remote(server), tmp_path, HASTY)
    assert path.read_bytes() == DATA and server.seen == [f"bytes={len(DATA) + 4}-", None]


def test_server_without_ranges_starts_over(server, tmp_path):
    server.mode = "no ranges"
    path, _ = download(remote(server), tmp_path, HASTY)
    assert path.read_bytes() == DATA


def test_two_versions_of_a_file_are_never_joined(server, tmp_path):
    server.mode = "cut"
    with pytest.raises(UserError):
        download(remote(server), tmp_path, Patience(tries=1, timeout=2.0, pause=0.0))
    server.mode, server.tag, server.data = "ok", '"two"', DATA[::-1]
    path, _ = download(remote(server, DATA[::-1]), tmp_path, HASTY)
    assert path.read_bytes() == DATA[::-1]


def test_connection_that_never_brings_a_byte_is_given_up(server, tmp_path):
    server.mode = "always cut"
    with pytest.raises(UserError, match="0 of 1048576 bytes"):
        download(remote(server), tmp_path, HASTY)
    assert len(server.seen) == HASTY.tries


@pytest.mark.parametrize("wrong", [DATA[:-1], DATA[:-1] + b"?", b""])
def test_wrong_bytes_are_named_with_both_checksums_and_removed(server, tmp_path, wrong):
    server.data = wrong or b"x"
    with pytest.raises(UserError) as error:
        download(remote(server), tmp_path, HASTY)
    text = str(error.value)
    assert hashlib.md5(DATA).hexdigest() in text
    assert hashlib.md5(server.data).hexdigest() in text
    assert not (tmp_path / "data.bin").exists() and not (tmp_path / "data.bin.part").exists()


def test_missing_file_is_not_tried_again_and_names_the_mirror(server, tmp_path):
    server.mode = "404"
    with pytest.raises(UserError) as error:
        download(remote(server), tmp_path, HASTY)
    assert "404" in str(error.value) and "EQADAPT_MIRROR" in str(error.value)
    assert len(server.seen) == 1


def test_busy_server_is_tried_again(server, tmp_path):
    server.mode = "503 once"
    path, _ = download(remote(server), tmp_path, HASTY)
    assert path.read_bytes() == DATA


def test_second_address_is_used_when_the_first_fails(server, tmp_path):
    file = remote(server)
    both = RemoteFile(file.name, ("http://127.0.0.1:9/data.bin", server.url), file.checksum)
    path, url = download(both, tmp_path, HASTY)
    assert path.read_bytes() == DATA and url == server.url


def test_no_network_names_the_mirror_setting(tmp_path):
    file = RemoteFile("data.bin", ("http://127.0.0.1:9/data.bin",))
    with pytest.raises(UserError, match="could not be downloaded") as error:
        download(file, tmp_path, HASTY)
    assert "EQADAPT_MIRROR" in error.value.fix and "data.bin" in error.value.fix


def test_a_corrupt_file_that_lies_there_is_fetched_again(server, tmp_path):
    (tmp_path / "data.bin").write_bytes(b"rubbish")
    path, _ = download(remote(server), tmp_path, HASTY)
    assert path.read_bytes() == DATA


def test_check_file_keeps_the_right_and_removes_the_wrong(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    check_file(path, Checksum("sha256", hashlib.sha256(b"abc").hexdigest(), "me"))
    with pytest.raises(UserError, match="expected"):
        check_file(path, Checksum("sha1", "0" * 40, "me"))
    assert not path.exists()
