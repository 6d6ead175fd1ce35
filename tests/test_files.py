"""Single files: written whole or not at all, read without trust."""

import io
import os

import numpy as np
import pytest

from clamp3.errors import WAS_STANDARD
from clamp3.io.files import atomic_write, load_array, read_text, save_array
from clamp3.io.folders import Plan, Tally, report
from clamp3.io.reports import FileIssue


def test_writing_is_all_or_nothing(tmp_path):
    path = tmp_path / "new" / "a.npy"
    save_array(path, np.arange(3))
    with pytest.raises(KeyboardInterrupt), atomic_write(path) as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert np.load(path).tolist() == [0, 1, 2] and os.listdir(path.parent) == ["a.npy"]
    assert path.stat().st_mode & 0o777 == 0o666 & ~current_umask()


def current_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_text_is_read_with_newlines_alone_or_refused(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes("Für\r\nElise\r".encode())
    assert read_text(path) == "Für\nElise\n"
    path.write_bytes("Für".encode("latin-1"))
    with pytest.raises(ValueError, match="not UTF-8: byte 0xfc at position 1"):
        read_text(path)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="empty file"):
        read_text(path)


def npy(array, **options) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "empty file"),
        (b"PK\x03\x04 an archive", "not a .npy file"),
        (npy(np.array([{"a": 1}], dtype=object), allow_pickle=True), "pickled Python objects"),
        (npy(np.zeros((100, 8)))[:-10], "not a whole .npy file"),
        (npy(np.zeros((100, 8)))[:40], "not a whole .npy file"),
        (npy(np.zeros(3)).replace(b"(3,)", b"(9" + b"9" * 20), "not a whole .npy file"),
    ],
    ids=["empty", "other", "pickle", "cut", "cut in its header", "absurd header"],
)
def test_arrays_are_read_without_pickle_or_refused(tmp_path, content, complaint):
    path = tmp_path / "a.npy"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=complaint):
        load_array(path)


def test_byte_order_marks_are_no_text(tmp_path):
    path = tmp_path / "a.txt"
    for encoding in ("utf-8-sig", "utf-16"):
        path.write_bytes("Für\r\nElise".encode(encoding))
        assert read_text(path) == "Für\nElise"
    path.write_bytes(b"\xff\xfea")
    with pytest.raises(ValueError, match="not UTF-16"):
        read_text(path)


def test_summaries_count_what_was_interleaved(tmp_path, capsys):
    warnings = [FileIssue(name, WAS_STANDARD) for name in "abc"] + [FileIssue("d", "torn")]
    report(tmp_path, Plan(), Tally(4, warnings=warnings), 1.0)
    said = capsys.readouterr().out
    assert "3 files were standard ABC and interleaved first" in said and "torn" in said and WAS_STANDARD not in said
