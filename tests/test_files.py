"""Files written completely or not at all."""

import pytest

from mesa_lib import store
from mesa_lib.store import files


def test_a_text_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    file = tmp_path / "result.json"
    store.write_atomic(file, "first")
    monkeypatch.setattr(files.os, "replace", lambda *a: (_ for _ in ()).throw(OSError("stopped")))
    with pytest.raises(OSError, match="stopped"):
        store.write_atomic(file, "second")
    assert file.read_text() == "first"
    monkeypatch.undo()
    store.write_atomic(file, "third")
    with pytest.raises(OSError, match="cannot write .*inside: "):
        store.write_atomic(file / "inside", "fourth")
    assert file.read_text() == "third" and list(tmp_path.iterdir()) == [file]


def test_a_digest_is_the_sha256_of_the_content(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    assert store.digest(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
