"""Sockets that listen, and addresses where none can."""

import errno
import socket
import threading
from pathlib import Path

import pytest

from cpsim.net.addresses import listen_tcp, listen_unix


def test_a_path_that_is_free(here):
    with listen_unix(here / "cp.sock"), socket.socket(socket.AF_UNIX) as client:
        client.connect("cp.sock")


def test_the_file_of_a_server_that_is_gone_is_replaced(here):
    listen_unix(here / "cp.sock").close()
    assert (here / "cp.sock").is_socket()
    with listen_unix(here / "cp.sock"), socket.socket(socket.AF_UNIX) as client:
        client.connect("cp.sock")


@pytest.mark.parametrize("behind", [False, True])
def test_a_live_socket_is_left_alone(here, behind):
    with listen_unix(here / "cp.sock") as live, socket.socket(socket.AF_UNIX) as waiting:
        if behind:  # its backlog is full: who connects has to wait
            live.listen(0)
            waiting.connect("cp.sock")
        raised = []

        def attempt():
            with pytest.raises(OSError, match=r"cannot listen at cp\.sock: another process is serving") as caught:
                listen_unix(here / "cp.sock")
            raised.append(caught.value.errno)

        thread = threading.Thread(target=attempt, daemon=True)
        thread.start()
        thread.join(5)
        assert raised == [errno.EADDRINUSE]
    assert (here / "cp.sock").is_socket()


def test_another_file_is_left_alone(here):
    (here / "cp.sock").write_text("precious")
    with pytest.raises(
        FileExistsError, match=r"cannot listen at cp\.sock: a file of that name exists and is not a socket"
    ) as caught:
        listen_unix(here / "cp.sock")
    assert caught.value.errno == errno.EEXIST
    assert (here / "cp.sock").read_text() == "precious"
    (here / "folder").mkdir()
    with pytest.raises(FileExistsError):
        listen_unix(here / "folder")


def test_a_link_to_nothing_is_left_alone(here):
    (here / "cp.sock").symlink_to("nowhere")
    with pytest.raises(
        FileNotFoundError, match=r"cannot listen at cp\.sock: it is a link to nowhere, which does not exist"
    ):
        listen_unix(here / "cp.sock")
    assert (here / "cp.sock").is_symlink()


@pytest.mark.parametrize(
    ("path", "said"),
    [("nowhere/cp.sock", "No such file or directory"), ("x" * 200, "path too long")],
)
def test_paths_that_cannot_be(here, path, said):
    with pytest.raises(OSError, match=rf"cannot listen at {path}: .*{said}") as caught:
        listen_unix(here / path)
    assert "None" not in str(caught.value)


def test_a_port_that_is_free():
    for host in ("127.0.0.1", "localhost"):
        with listen_tcp(host, 0) as listening, socket.create_connection(listening.getsockname()[:2]):
            pass


def test_a_port_that_is_taken():
    with listen_tcp("127.0.0.1", 0) as listening:
        port = listening.getsockname()[1]
        with pytest.raises(OSError, match=rf"cannot listen at 127\.0\.0\.1:{port}: Address already in use") as caught:
            listen_tcp("127.0.0.1", port)
        assert caught.value.errno == errno.EADDRINUSE


@pytest.mark.parametrize("host", ["a..b", "x" * 70])
def test_hosts_that_cannot_be(host):
    with pytest.raises(OSError, match=f"cannot listen at {host}:0: "):
        listen_tcp(host, 0)


def test_paths_are_as_given(here):
    with listen_unix(Path("cp.sock")) as listening:
        assert listening.getsockname() == "cp.sock"
