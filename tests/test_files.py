"""Single files: written whole or not at all, read without trust."""

import errno
import io
import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from clamp3.cli.output import print_report, save_json
from clamp3.errors import WAS_STANDARD, UserError
from clamp3.io.files import ORPHAN_AGE, atomic_write, load_array, read_text, remove_orphans, save_array
from clamp3.io.folders import Plan, Tally, save_report
from clamp3.io.reports import FileIssue
from conftest import CODE


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


# ---------- what cannot be replaced, and links ----------


def read_fifo(path: Path, write: Callable[[], None]) -> bytes:
    """What `write` sends through a new FIFO at `path`."""
    os.mkfifo(path)
    received = []
    reader = threading.Thread(target=lambda: received.append(path.read_bytes()))
    reader.start()
    write()
    reader.join(timeout=30)
    return received[0]


def test_a_fifo_gets_the_content_and_stays_one(tmp_path):
    path, array = tmp_path / "a.npy", np.arange(100_000)  # more than a pipe holds
    content = read_fifo(path, lambda: save_array(path, array))
    assert np.load(io.BytesIO(content)).tolist() == array.tolist()
    assert stat.S_ISFIFO(path.stat().st_mode) and os.listdir(tmp_path) == ["a.npy"]
    path.unlink()
    (tmp_path / "link").symlink_to("a.npy")
    assert read_fifo(path, lambda: save_json(tmp_path / "link", [{"a": 1}])) == b'{"a": 1}\n'
    assert (tmp_path / "link").is_symlink()


def device(path: Path, minor: int) -> Path:
    """A node of the kernel's memory devices: 3 takes everything, 7 is always full."""
    try:
        os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(1, minor))
        path.read_bytes() if minor == 3 else None
    except OSError as error:
        pytest.skip(f"device nodes are not allowed here: {error.strerror}")
    return path


def test_a_device_is_written_to_and_stays_one(tmp_path):
    node = device(tmp_path / "null", 3)
    save_json(node, [{"a": 1}])
    assert stat.S_ISCHR(node.stat().st_mode)
    full = device(tmp_path / "full", 7)
    with pytest.raises(UserError, match="full cannot be written: No space left"):
        save_json(full, [{"a": 1}])
    assert stat.S_ISCHR(full.stat().st_mode) and sorted(os.listdir(tmp_path)) == ["full", "null"]


def test_a_folder_or_a_link_to_itself_is_refused(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    for name, complaint in (("folder", "Is a directory"), ("loop", "Too many levels")):
        with pytest.raises(UserError, match=f"{name} cannot be written: {complaint}"):
            save_json(tmp_path / name, [{}])
    assert (tmp_path / "loop").is_symlink() and sorted(os.listdir(tmp_path)) == ["folder", "loop"]


@pytest.mark.parametrize("there", [True, False], ids=["to a file", "to nothing yet"])
def test_a_link_stays_and_its_target_is_replaced(tmp_path, there):
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    target, links = tmp_path / "there" / "a", [tmp_path / "here" / "link", tmp_path / "here" / "second"]
    links[0].symlink_to("../there/a")
    links[1].symlink_to("link")
    if there:
        target.write_text("old")
    left = tmp_path / "there" / f".{'0' * 16}.partial"
    left.write_text("of a killed run")
    with atomic_write(links[1]) as file:
        file.write(b"new")
    assert target.read_text() == links[1].read_text() == "new" and all(link.is_symlink() for link in links)
    assert os.listdir(tmp_path / "there") == ["a"]  # its leftovers are looked for nowhere else


PRINT = (
    "import sys; sys.path.insert(0, {code!r}); from pathlib import Path; from clamp3.cli.output import save_json; "
    "print('before'); save_json(Path({target!r}), [{{'a': 1}}, {{'b': 2}}]); print('after')"
)


STREAMS = ["-", "/dev/stdout", "/proc/self/fd/1"]


@pytest.mark.parametrize(
    ("target", "into"),
    [*((name, into) for name in STREAMS for into in ("a pipe", "a file")), ("printed.txt", "a file")],
)
def test_standard_output_gets_the_answers_in_their_place(tmp_path, target, into):
    """Also by its other names; a file that takes the output of a run is not taken from it."""
    if target.startswith("/") and not os.path.exists(target):
        pytest.skip(f"there is no {target} here")
    command = [sys.executable, "-c", PRINT.format(code=str(CODE), target=target)]
    with open(tmp_path / "printed.txt", "wb") as file:
        stdout = subprocess.PIPE if into == "a pipe" else file
        done = subprocess.run(command, stdout=stdout, cwd=tmp_path, check=True, timeout=60)
    printed = done.stdout if into == "a pipe" else (tmp_path / "printed.txt").read_bytes()
    assert printed.decode().splitlines() == ["before", '{"a": 1}', '{"b": 2}', "after"]
    assert os.listdir(tmp_path) == ["printed.txt"]


# ---------- partial files ----------

# A writer that believes to have the process id 7 on a host "box", as processes of containers may.
WRITER = """
import os, socket, sys
from pathlib import Path
import numpy as np
sys.path.insert(0, {code!r})
os.getpid = lambda: 7
socket.gethostname = lambda: "box"
from clamp3.io.files import remove_orphans, save_array
folder, own = Path(sys.argv[1]), int(sys.argv[2])
for number in range(300):
    save_array(folder / f"{{own}}-{{number}}.npy", np.full(2000, own * 1000 + number))
    save_array(folder / f"both-{{number}}.npy", np.full(2000, number))
    if number % 10 == 0:
        remove_orphans(folder)
"""


@pytest.mark.parametrize("namespaces", [False, True], ids=["same names", "two PID namespaces"])
def test_writers_of_one_name_neither_swap_nor_delete_what_the_others_write(tmp_path, namespaces):
    wrapper = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child"] if namespaces else []
    if wrapper and (not shutil.which("unshare") or subprocess.run([*wrapper, "true"], capture_output=True).returncode):
        pytest.skip("PID namespaces are not allowed here")
    command = [*wrapper, sys.executable, "-c", WRITER.format(code=str(CODE)), tmp_path]
    writers = [subprocess.Popen([*command, str(own)], stderr=subprocess.PIPE, text=True) for own in (1, 2)]
    while any(writer.poll() is None for writer in writers):
        remove_orphans(tmp_path)  # a third one only looks
    assert [(writer.returncode, writer.stderr.read()) for writer in writers] == [(0, "")] * 2
    expected = {f"{own}-{number}.npy": own * 1000 + number for own in (1, 2) for number in range(300)}
    expected |= {f"both-{number}.npy": number for number in range(300)}
    assert sorted(os.listdir(tmp_path)) == sorted(expected)
    for name, value in expected.items():
        assert np.load(tmp_path / name).tolist() == [value] * 2000


KILLED = """
import sys, time
from pathlib import Path
sys.path.insert(0, {code!r})
from clamp3.io.files import atomic_write
with atomic_write(Path(sys.argv[1])) as file:
    file.write(b"half")
    file.flush()
    print("writing", flush=True)
    time.sleep(60)
"""


def test_a_partial_file_is_removed_once_its_writer_is_killed_and_no_sooner(tmp_path):
    command = [sys.executable, "-c", KILLED.format(code=str(CODE)), tmp_path / "a"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout.readline() == "writing\n"
        (partial,) = tmp_path.iterdir()
        os.utime(partial, (0, 0))
        remove_orphans(tmp_path)
        assert partial.exists()
        writer.send_signal(signal.SIGKILL)
        writer.wait()
    remove_orphans(tmp_path)
    assert not list(tmp_path.iterdir())


def test_where_there_are_no_locks_age_decides(tmp_path, monkeypatch):
    def unsupported(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", unsupported)
    old, new = (tmp_path / f".{digit * 16}.partial" for digit in "01")
    for path, age in ((old, ORPHAN_AGE + 60), (new, ORPHAN_AGE - 60)):
        path.touch()
        os.utime(path, (time.time() - age,) * 2)
    save_array(tmp_path / "a.npy", np.arange(3))
    remove_orphans(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [new.name, "a.npy"]


def test_what_takes_a_new_file_for_an_orphan_costs_another_name(tmp_path, monkeypatch):
    """Between its creation and its lock it looks like one."""
    import fcntl

    real, calls = fcntl.flock, []

    def seized(file, operation):
        if not calls:
            calls.append(file.name)
            remove_orphans(tmp_path)
        return real(file, operation)

    monkeypatch.setattr("fcntl.flock", seized)
    save_array(tmp_path / "a.npy", np.arange(3))
    assert calls and os.listdir(tmp_path) == ["a.npy"] and np.load(tmp_path / "a.npy").tolist() == [0, 1, 2]


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
    print_report(save_report(tmp_path, Plan(), Tally(4, warnings=warnings), 1.0))
    said = capsys.readouterr().out
    assert "3 files were standard ABC and interleaved first" in said and "torn" in said and WAS_STANDARD not in said
