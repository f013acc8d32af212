"""``malora merge-export --push-to-hub``, against a hub of this test's own."""

from __future__ import annotations

import base64
import json
import logging
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from malora_cli.cli import main
from malora_cli.export import hub
from malora_cli.results import RunRecord
from train_runs import train_run, workplace

TOKEN = "hf_secretOfThisTest"


class Hub(ThreadingHTTPServer):
    """What of the hub's interface a push takes: who one is, a new repository, and one commit."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.created: list[dict[str, Any]] = []
        self.files: dict[str, bytes] = {}
        self.deleted: list[str] = []
        self.status, self.role = 200, "write"
        #: What lies in the repository, and whether everybody sees it; None where there is none.
        self.there: list[str] | None = None
        self.private = True


class _Answer(BaseHTTPRequestHandler):
    server: Hub

    def do_GET(self) -> None:
        if self.path == "/api/whoami-v2":
            self._answer({"name": "someone", "type": "user", "auth": {"accessToken": {"role": self.server.role}}})
        elif "/tree/" in self.path:
            self._answer([{"type": "file", "path": name, "size": 1, "oid": "0"} for name in self.server.there or ()])
        elif self.server.there is None and not self.server.created:
            self._answer({"error": "Repository not found"}, 404)
        else:
            files = [{"rfilename": name} for name in self.server.there or ()]
            self._answer({"id": "someone/sums", "private": self._private(), "siblings": files})

    def _private(self) -> bool:
        created = self.server.created
        return created[0]["visibility"] == "private" if created else self.server.private

    def do_POST(self) -> None:
        length = self.headers["Content-Length"]
        body = self.rfile.read(int(length)) if length else self._chunks()
        if self.path == "/api/repos/create":
            self.server.created.append(json.loads(body))
            self._answer({"url": "https://huggingface.co/someone/sums", "name": "someone/sums"})
        elif "/preupload/" in self.path:
            files = [
                {"path": it["path"], "uploadMode": "regular", "shouldIgnore": False} for it in json.loads(body)["files"]
            ]
            self._answer({"files": files})
        elif "/commit/" in self.path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "deletedFile":
                    self.server.deleted.append(line["value"]["path"])
                elif line["key"] == "file":
                    self.server.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self._answer(
                {"commitUrl": "https://huggingface.co/someone/sums/commit/0", "commitOid": "0" * 40, "hookOutput": ""}
            )
        else:  # the card is checked
            self._answer({"errors": [], "warnings": []})

    def _chunks(self) -> bytes:
        found = b""
        while size := int(self.rfile.readline(), 16):
            found += self.rfile.read(size)
            self.rfile.readline()
        return found

    def _answer(self, found: dict[str, Any] | list[dict[str, Any]], status: int | None = None) -> None:
        body = json.dumps(found).encode()
        known = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        self.send_response((status or self.server.status) if known else 401)
        if status == 404:
            self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_arguments: object) -> None:
        """Print nothing."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> RunRecord:
    return train_run(workplace(tmp_path_factory.mktemp("push"), tiny_model), "train.steps=2", "output.name=sums")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub() as found:
        threading.Thread(target=found.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{found.server_address[1]}"
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr(hub, "HfApi", lambda api=hub.HfApi: api(endpoint=address))
        yield found
        found.shutdown()


def push(run: RunRecord, folder: Path, *arguments: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(["merge-export", str(run.path), "--out", str(folder), "--push-to-hub", *arguments])
    return int(str(caught.value.code))


@pytest.mark.parametrize("public", [False, True])
def test_an_export_is_pushed_whole(
    public: bool, run: RunRecord, server: Hub, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "out"
    logging.disable(logging.NOTSET)  # phases are told
    assert push(run, folder, "someone/sums", "--base", "someone/tiny", *(["--public"] if public else [])) == 0
    logging.disable(logging.INFO)
    [created] = server.created
    visibility = "public" if public else "private"
    assert (created["name"], created["organization"], created["visibility"]) == ("sums", "someone", visibility)
    assert server.files == {path.name: path.read_bytes() for path in folder.iterdir()}
    out, err = capfd.readouterr()
    assert out.splitlines()[-1].startswith("pushed: ")
    assert all(f"uploading {path.name} (" in err for path in folder.iterdir())
    assert TOKEN not in out + err


def test_what_lay_there_is_replaced_by_force(run: RunRecord, server: Hub, tmp_path: Path) -> None:
    server.there = [".gitattributes", "model.safetensors", "README.md"]
    assert push(run, tmp_path / "out", "someone/sums", "--base", "someone/tiny", "--force") == 0
    assert server.deleted == ["model.safetensors"], "or two exports would be mixed"


def test_what_cannot_be_pushed_is_said_first(
    run: RunRecord, server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, good = tmp_path / "out", ("someone/sums", "--base", "someone/tiny")

    def told(*arguments: str) -> str:
        assert push(run, out, *arguments) == 2
        assert not out.exists()
        return capsys.readouterr().err.splitlines()[-1]

    for name in ("sums", "me/a--b", "me/x.git", "a/b/c"):
        assert told(name, "--base", "someone/tiny") == f"error: --push-to-hub: got '{name}', expected OWNER/NAME"
    assert "others cannot find the base model by the name that this machine has" in told("someone/sums")
    assert "Name it as the hub does: --base OWNER/MODEL." in told("someone/sums", "--base", "/gone/model")
    server.there = ["model.safetensors", ".gitattributes"]
    assert "someone/sums has files already. Name another, or add --force to replace all of its files." in told(*good)
    server.there, server.private = [".gitattributes"], False
    assert "someone/sums is there, and public. Add --public if that is meant, or name another." in told(*good)
    server.there, server.role = None, "read"
    assert "the token may only read. Make one that may write." in told(*good)
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    assert told(*good) == "error: --push-to-hub: the hub does not know the token"
    monkeypatch.delenv("HF_TOKEN")
    assert told(*good) == "error: --push-to-hub: there is no token. Log in first: hf auth login."
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set. Unset it, or leave out --push-to-hub." in told(*good)


def test_an_export_that_the_hub_refuses_stays(
    run: RunRecord, server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    check = hub.check_push

    def refuse(*arguments: Any) -> None:
        check(*arguments)
        server.status = 403

    monkeypatch.setattr("malora_cli.export.run.check_push", refuse)
    assert push(run, tmp_path / "out", "someone/sums", "--base", "someone/tiny") == 2
    assert f"the token may not write there. The export lies in {tmp_path}/out." in capsys.readouterr().err
    assert (tmp_path / "out" / "adapter_config.json").is_file()
