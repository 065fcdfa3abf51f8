"""Small files with a table of their own stand for the set; a server on this machine stands for the world."""

import gzip
import hashlib
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from iar_study.config import DataConfig
from iar_study.data import fashion_mnist
from iar_study.data.images import load_images
from iar_study.errors import InputError

CONFIG = DataConfig(name="fashion-mnist")
REAL_SOURCES, REAL_SYSTEM_FOLDER = fashion_mnist.SOURCES, fashion_mnist.SYSTEM_FOLDER


def idx(array):
    header = bytes([0, 0, 8, array.ndim]) + b"".join(length.to_bytes(4, "big") for length in array.shape)
    return header + array.tobytes()


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def put(files, folder, level=9):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(gzip.compress(content, level, mtime=0))


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    parts = {}
    for part, n in (("train", 30), ("test", 20)):
        parts[part] = rng.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        parts[f"{part}_labels"] = (np.arange(n) % 10).astype(np.uint8)
    return parts


@pytest.fixture
def files(arrays, monkeypatch, tmp_path):
    """The set's decompressed files by name; no network, no package, no system folder unless a test sets it up."""
    contents = {part: idx(array) for part, array in arrays.items()}
    table = {
        part: fashion_mnist.Source(REAL_SOURCES[part].name, sha256(gzip.compress(content, 9, mtime=0)), sha256(content))
        for part, content in contents.items()
    }
    monkeypatch.setattr(fashion_mnist, "SOURCES", table)
    monkeypatch.setattr(fashion_mnist, "SYSTEM_FOLDER", tmp_path / "system")
    monkeypatch.setattr(fashion_mnist, "BASE_URL", "http://127.0.0.1:9/")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return {table[part].name: content for part, content in contents.items()}


@pytest.fixture
def home(data_home):
    return data_home / "fashion-mnist"


@pytest.fixture
def check(files, arrays):
    """A function that loads the set and compares it with what it was made of."""

    def load_and_compare():
        images = load_images(CONFIG)
        for part, array in arrays.items():
            got = getattr(images, part)
            np.testing.assert_array_equal(got[..., 0] if got.ndim == 4 else got, array)
            assert got.flags.writeable  # torch.from_numpy complains otherwise
        assert len(images.class_names) == 10
        assert (images.class_names[0], images.class_names[9]) == ("T-shirt/top", "Ankle boot")

    return load_and_compare


class Server(ThreadingHTTPServer):
    def __init__(self, folder):
        self.folder, self.asked = folder, []
        super().__init__(("127.0.0.1", 0), partial(Handler, directory=folder))


class Handler(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        self.server.asked.append(self.path)


@pytest.fixture
def server(files, tmp_path, monkeypatch):
    """A web server that has the files."""
    put(files, tmp_path / "web")
    with Server(tmp_path / "web") as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setattr(fashion_mnist, "BASE_URL", f"http://127.0.0.1:{server.server_port}/")
        yield server
        server.shutdown()


@pytest.fixture
def debian(tmp_path):
    """A function that puts an apt-get and a dpkg on the PATH: the script of one, the package's files for the other."""

    def install(apt_get, files):
        put(files, tmp_path / "packed", level=1)
        inside = f"package{tmp_path / 'system'}"
        unpack = f"[ -e $2 ] && mkdir -p {inside} && cp {tmp_path / 'packed'}/* {inside}/"
        (tmp_path / "bin").mkdir()
        for name, script in (("apt-get", apt_get), ("dpkg", unpack)):
            (tmp_path / "bin" / name).write_text(f"#!/bin/sh\nPATH=/usr/bin:/bin\n{script}\n")
            (tmp_path / "bin" / name).chmod(0o755)

    return install


def test_files_are_found_in_the_data_folder_and_in_the_systems(files, check, home, tmp_path):
    (first, content), *others = files.items()
    put({first: content}, home)
    put(dict(others), tmp_path / "system", level=1)  # Debian's compression differs, the content does not
    check()
    assert [path.name for path in home.iterdir()] == [first]


def test_missing_files_are_downloaded_once(files, check, home, server, capsys):
    (first, content), *_ = files.items()
    put({first: content}, home)
    check()
    assert len(server.asked) == 3, "only what is missing is asked for"
    assert sorted(path.name for path in home.iterdir()) == sorted(files), "nothing temporary stays behind"
    assert len([line for line in capsys.readouterr().err.splitlines() if line]) == 2
    check()
    assert len(server.asked) == 3


def test_a_terminal_sees_the_progress(check, server, monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    check()
    assert "t10k-labels-idx1-ubyte.gz" in capsys.readouterr().err


@pytest.mark.parametrize(("damage", "reason"), [("altered", "another SHA-256"), ("absent", "HTTPError")])
def test_a_bad_download_leaves_nothing_behind(files, home, server, damage, reason):
    last = server.folder / list(files)[-1]
    if damage == "altered":
        last.write_bytes(last.read_bytes() + b"x")
    else:
        last.unlink()
    with pytest.raises(InputError, match=reason) as caught:
        load_images(CONFIG)
    message = str(caught.value)
    assert "\n" not in message
    assert "apt-get is not on this machine" in message
    assert f"into {home} by hand" in message
    assert "--data digits" in message
    assert list(home.iterdir()) == []


APT_GET = """
case "$*" in
  *Dir::State::Lists*update*) : > lists/fetched; exit {update_code} ;;
  *Dir::State::Lists*download*) [ -d cache/archives/partial ] && [ -e lists/fetched ] && : > set_1.deb && exit 0 ;;
  *download*) [ -n "{has_lists}" ] && : > set_1.deb && exit 0 ;;
esac
echo "E: Unable to locate package" >&2
exit 100
"""


@pytest.mark.parametrize("lists", ["present", "absent", "absent and one source dead"])
def test_debians_package_is_the_second_source(files, check, debian, capsys, lists):
    present, dead = lists == "present", "dead" in lists
    debian(APT_GET.format(has_lists="yes" if present else "", update_code=100 if dead else 0), files)
    check()
    said = capsys.readouterr().err
    assert "ConnectionError" in said
    assert "set_1.deb are now in" in said
    assert ("fetching lists" in said) == (not present)
    assert ("going on with the lists" in said) == dead


def test_when_every_source_fails_the_message_names_them_all(files, home, debian):
    debian("echo reading >&2; echo 'E: no such package' >&2; exit 100", files)
    with pytest.raises(InputError) as caught:
        load_images(CONFIG)
    message = str(caught.value)
    assert "http://127.0.0.1:9/train-images-idx3-ubyte.gz (ConnectionError)" in message
    assert "apt-get download dataset-fashion-mnist (E: no such package)" in message
    assert list(home.iterdir()) == []


def test_a_package_with_other_content_is_refused(files, home, debian):
    debian(": > set_1.deb", dict.fromkeys(files, b"something else"))
    with pytest.raises(InputError, match="is not the published file"):
        load_images(CONFIG)
    assert list(home.iterdir()) == []


@pytest.mark.parametrize("damage", ["truncated", "altered", "not gzip", "empty"])
def test_a_damaged_file_is_named(files, home, damage):
    put(files, home)
    path = home / "train-labels-idx1-ubyte.gz"
    packed = path.read_bytes()
    path.write_bytes(
        {
            "truncated": packed[:-9],
            "altered": gzip.compress(files[path.name][:-1] + b"\7"),
            "not gzip": b"<html>404</html>",
            "empty": b"",
        }[damage]
    )
    with pytest.raises(InputError, match=f"^{path} .*; delete it and run again$"):
        load_images(CONFIG)


def test_a_data_folder_that_cannot_be_made_is_named(files, data_home):
    data_home.write_text("a file in the way")
    with pytest.raises(InputError, match=f"cannot write {data_home}"):
        load_images(CONFIG)
