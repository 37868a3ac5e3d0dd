"""Addresses."""

import pickle
import sys

import pytest

from cpdaemon import EndpointError, TcpEndpoint, UnixEndpoint, UrlEndpoint, parse_endpoint


@pytest.mark.parametrize(
    ("text", "endpoint", "canonical"),
    [
        ("/var/run/creditapi.socket", UnixEndpoint("/var/run/creditapi.socket"), "/var/run/creditapi.socket"),
        ("./cp.sock", UnixEndpoint("./cp.sock"), "./cp.sock"),
        ("../cp.sock", UnixEndpoint("../cp.sock"), "../cp.sock"),
        ("run/cp.sock", UnixEndpoint("run/cp.sock"), "run/cp.sock"),
        ("/odd/a:b", UnixEndpoint("/odd/a:b"), "/odd/a:b"),
        ("unix:cp.sock", UnixEndpoint("cp.sock"), "unix:cp.sock"),
        ("unix:/run/cp.sock", UnixEndpoint("/run/cp.sock"), "/run/cp.sock"),
        ("unix:///run/cp.sock", UnixEndpoint("/run/cp.sock"), "/run/cp.sock"),
        ("1.2.3.4:5667", TcpEndpoint("1.2.3.4", 5667), "1.2.3.4:5667"),
        ("localhost:1", TcpEndpoint("localhost", 1), "localhost:1"),
        ("[::1]:5667", TcpEndpoint("::1", 5667), "[::1]:5667"),
        ("[fe80::1%eth0]:65535", TcpEndpoint("fe80::1%eth0", 65535), "[fe80::1%eth0]:65535"),
        ("https://cp.org/api", UrlEndpoint("https", "cp.org", 443, "/api"), "https://cp.org/api"),
        ("HTTP://CP.org:8080/API//", UrlEndpoint("http", "cp.org", 8080, "/API"), "http://cp.org:8080/API"),
        ("http://cp.org:80", UrlEndpoint("http", "cp.org", 80, ""), "http://cp.org"),
        ("https://[::1]:8443/a/b", UrlEndpoint("https", "::1", 8443, "/a/b"), "https://[::1]:8443/a/b"),
    ],
)
def test_addresses(text, endpoint, canonical):
    assert parse_endpoint(text) == endpoint
    assert str(endpoint) == canonical
    assert parse_endpoint(canonical) == endpoint
    assert pickle.loads(pickle.dumps(endpoint)) == endpoint
    assert len({endpoint, parse_endpoint(text)}) == 1


def test_home_directories(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert parse_endpoint("~/cp.sock") == UnixEndpoint("/home/me/cp.sock")
    with pytest.raises(EndpointError, match="no such home directory"):
        parse_endpoint("~nobody-of-that-name/cp.sock")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "empty"),
        (5, "not int"),
        (" /x", "white space"),
        ("/x\n", "white space"),
        ("/x\x00y", "unprintable"),
        ("localhost", "no port"),
        ("localhost:", "no port"),
        (":5667", "not a host name"),
        ("a b:1", "not a host name"),
        ("x" * 64 + ".org:1", "not a host name"),
        ("localhost:0", "port '0' is not a number from 1 to 65535"),
        ("localhost:65536", "port '65536'"),
        ("localhost:-1", "port '-1'"),
        ("localhost:http", "port 'http'"),
        ("localhost:٣", "port '٣'"),
        ("localhost:8080/api", "write http://"),
        ("::1:5667", r"write an IPv6 address in brackets, as \[::1\]:5667"),
        ("[::1]", "no port"),
        ("[::1", r"write \[::1\]:5667"),
        ("[::1]5667", r"write \[::1\]:5667"),
        ("[localhost]:5667", "not an IPv6 address"),
        ("unix:", "no path after 'unix:'"),
        ("ftp://cp.org/api", "unknown scheme 'ftp'"),
        ("://cp.org", "unknown scheme ''"),
        ("https://", "not a host name"),
        ("https://cp.org:0/api", "port '0'"),
        ("https://cp.org:/api", "no port"),
        ("https://cp.org/a b", "percent-encode"),
        ("https://cp.org/é", "percent-encode"),
        ("https://p:hush@cp.org/api", "must not hold credentials"),
        ("p:hush@cp.org:5667", "must not hold credentials"),
        ("https://cp.org/api?auth=hush", "no query"),
        ("https://cp.org/api#hush", "no fragment"),
    ],
)
def test_mistakes(text, said):
    with pytest.raises(EndpointError, match=said) as caught:
        parse_endpoint(text)
    assert isinstance(caught.value, ValueError)
    assert "hush" not in str(caught.value)


def test_socket_paths_have_a_limit():
    limit = 103 if sys.platform == "darwin" else 107
    parse_endpoint("/" + "x" * (limit - 1))
    with pytest.raises(EndpointError, match=f"at most {limit}"):
        parse_endpoint("/" + "x" * limit)
    with pytest.raises(EndpointError, match=f"at most {limit}"):
        parse_endpoint("/" + "é" * (limit // 2 + 1))
