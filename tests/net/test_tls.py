"""HTTPS of a server of ours, and what each of its clients trusts and shows."""

import asyncio
import json
import socket
import ssl
import subprocess
import sys
import threading
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest
import trustme
from cryptography.hazmat.primitives import serialization

from cpdaemon import AsyncClient, Client, cpapi_alloc, cpapi_setup, parse_endpoint
from cpdaemon.errors import ConnectFailed, CreditPiggyError, EndpointError
from cpsim.daemon.client import BulkClient
from cpsim.daemon.spool import Spool
from cpsim.errors import CpsimError
from cpsim.evidence.journal import OperationOutcome
from cpsim.fake import ANY_PORT, Fake
from cpsim.fake.settings import load
from cpsim.net.http.client import CannotReach, fetch
from cpsim.net.http.shared import Limits
from cpsim.net.tls import ServerCertificate
from cpsim.replay.wires.keep_alive import KeepAlive
from cpsim.server.http import Api
from cpsim.server.service import AccountServer
from cpsim.server.serving import HttpServer

CREDENTIALS = ("p", "s")
CALL = ("alloc", {"slot": "a"})
LONG_AGO = datetime(2001, 1, 1, tzinfo=UTC)


class Authorities:
    """Authorities and certificates as files in the current folder, made at this test's beginning."""

    def __init__(self):
        self.own, self.other = trustme.CA(), trustme.CA()
        for name, authority in (("ca.pem", self.own), ("other-ca.pem", self.other)):
            authority.cert_pem.write_to_path(name)

    def issue(self, name, *identities, of=None, **options):
        """Write a certificate to NAME.pem, its key to NAME.key, and both to NAME-both.pem."""
        issued = (of or self.own).issue_cert(*identities, **options)
        chain = b"".join(blob.bytes() for blob in issued.cert_chain_pems)
        Path(f"{name}.pem").write_bytes(chain)
        issued.private_key_pem.write_to_path(f"{name}.key")
        issued.private_key_and_cert_chain_pem.write_to_path(f"{name}-both.pem")


@pytest.fixture
def authorities(here):
    found = Authorities()
    found.issue("server", "127.0.0.1")
    return found


@pytest.fixture
def served(authorities):
    """Return served(name) -> a fake with this certificate of the authorities."""
    fakes = []

    def start(name="server", **options):
        tls = ServerCertificate(Path(f"{name}.pem"), Path(f"{name}.key"))
        fakes.append(Fake({"p": "s"}, http=ANY_PORT, tls=tls, **options))
        fakes[-1].start()
        return fakes[-1], tls

    yield start
    for fake in fakes:
        fake.stop()


def slots(fake):
    with fake.accounts.reading() as ledger:
        return list(ledger.project("p").slots)


def by_client(url, **tls):
    with Client(url, CREDENTIALS, 60, **tls) as client:
        client.alloc("a")


def by_functions(url, **tls):
    cpapi_setup(url, CREDENTIALS, **tls)
    try:
        cpapi_alloc("a")
    finally:
        cpapi_setup("/none")


def by_async_client(url, **tls):
    async def send():
        async with AsyncClient(url, CREDENTIALS, 60, **tls) as client:
            await client.alloc("a")

    asyncio.run(send())


def by_courier(url, **tls):
    with closing(BulkClient(parse_endpoint(url).with_tls(**tls), CREDENTIALS, 60)) as client:
        assert client.knows_batches()
        client.post("batch", [CALL])


WAYS = [by_client, by_functions, by_async_client, by_courier]


@pytest.mark.parametrize("way", WAYS)
def test_a_server_of_a_trusted_authority(served, way):
    fake, _ = served()
    url = fake.addresses["http"]
    assert url.startswith("https://127.0.0.1:")
    way(url, ca="ca.pem")
    assert slots(fake) == ["a"]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("name", "ca", "said"),
    [
        ("server", None, "certificate verify failed: .*issuer"),
        ("server", "other-ca.pem", "certificate verify failed: .*issuer"),
        ("expired", "ca.pem", "certificate verify failed: certificate has expired"),
        (
            "elsewhere",
            "ca.pem",
            "certificate verify failed: IP address mismatch, certificate is not valid for '127.0.0.1'",
        ),
    ],
)
def test_a_certificate_that_does_not_hold_is_a_definite_failure(authorities, served, way, name, ca, said):
    authorities.issue("expired", "127.0.0.1", not_before=LONG_AGO, not_after=LONG_AGO.replace(month=2))
    authorities.issue("elsewhere", "credit.example.org")
    fake, _ = served(name)
    with pytest.raises(ConnectFailed, match=said) as caught:
        way(fake.addresses["http"], ca=ca)
    assert caught.value.definite
    assert slots(fake) == []


def answer_of(endpoint, payload):
    with closing(KeepAlive(endpoint, 60)) as wire:
        wire.send(payload)
        while True:
            for fd in wire.poll(1.0):
                if (answer := wire.receive(fd)) is not None:
                    return answer


def test_a_replay_refuses_it_too(served):
    fake, _ = served()
    endpoint = parse_endpoint(fake.addresses["http"])
    outcome, error = answer_of(endpoint.with_tls(ca="other-ca.pem"), b"GET /api HTTP/1.1\r\n\r\n")
    assert (outcome, "certificate verify failed" in error) == (OperationOutcome.REFUSED, True)
    outcome, error = answer_of(endpoint.with_tls(ca="ca.pem"), b"GET /api HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
    assert error.startswith("HTTP 404")
    with pytest.raises(CannotReach, match=r"certificate verify failed: .*issuer certificate$"):
        fetch(endpoint, "GET", "/", connect_s=60, timeout_s=60)
    assert fetch(endpoint.with_tls(ca="ca.pem"), "GET", "/", connect_s=60, timeout_s=60)[0] == 200


@pytest.mark.parametrize("way", WAYS)
def test_a_client_shows_its_certificate(authorities, served, way):
    authorities.issue("client", "site-7", of=authorities.other)
    fake, tls = served()
    tls.context.load_verify_locations("other-ca.pem")
    tls.context.verify_mode = ssl.CERT_REQUIRED
    way(fake.addresses["http"], ca="ca.pem", client_cert="client.pem", client_key="client.key")
    assert slots(fake) == ["a"]


def test_certificate_and_key_may_be_one_file(authorities, served):
    authorities.issue("client", "site-7", of=authorities.other)
    fake, tls = served()
    tls.context.load_verify_locations("other-ca.pem")
    tls.context.verify_mode = ssl.CERT_REQUIRED
    by_client(fake.addresses["http"], ca="ca.pem", client_cert="client-both.pem")
    assert slots(fake) == ["a"]


@pytest.fixture
def demanding(authorities):
    """The URL of a server that wants a certificate of the other authority, and whose alerts arrive."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain("server.pem", "server.key")
    context.load_verify_locations("other-ca.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    listening = socket.create_server(("127.0.0.1", 0))

    def serve():
        connection, _ = listening.accept()
        served = context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        with pytest.raises(ssl.SSLError):
            served.do_handshake()
        with socket.socket(fileno=served.detach()) as raw:  # to close it with the request unread would reset it
            raw.shutdown(socket.SHUT_WR)
            while raw.recv(65_536):
                pass

    thread = threading.Thread(target=serve)
    thread.start()
    yield f"https://127.0.0.1:{listening.getsockname()[1]}/api"
    thread.join()
    listening.close()


@pytest.mark.parametrize("way", WAYS)
def test_a_client_whose_certificate_is_refused_knows_that_nothing_was_applied(demanding, way):
    with pytest.raises(ConnectFailed, match="it does not accept the client's certificate") as caught:
        way(demanding, ca="ca.pem")
    assert caught.value.definite


def test_a_replay_whose_certificate_is_refused_counts_as_refused(authorities, demanding):
    authorities.issue("client", "site-7")
    endpoint = parse_endpoint(demanding).with_tls("ca.pem", "client.pem", "client.key")
    outcome, error = answer_of(endpoint, b"POST /api/batch/alloc HTTP/1.1\r\n\r\n")
    assert (outcome, "it does not accept the client's certificate" in error) == (OperationOutcome.REFUSED, True)


def spoil(authorities):
    """Write files that cannot be used."""
    authorities.issue("another", "127.0.0.1")
    Path("text").write_text("neither")
    label = "-----BEGIN CERTIFICATE-----\n"
    Path("cut.pem").write_text(label + "MIIB")
    key = serialization.load_pem_private_key(Path("server.key").read_bytes(), None)
    form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"hush")
    Path("hushed.key").write_bytes(key.private_bytes(*form))


UNUSABLE = [
    ("none", None, "the certificate none cannot be read: No such file or directory"),
    ("text", None, "the certificate text has no certificate in PEM format"),
    ("server.key", None, "the certificate server.key has no certificate in PEM format"),
    ("cut.pem", "server.key", "the certificate cut.pem or its private key server.key is damaged"),
    ("server.pem", None, "the private key server.pem has no private key in PEM format"),
    ("server.pem", "none", "the private key none cannot be read: No such file or directory"),
    ("server.pem", "another.key", "the private key another.key is not that of the certificate server.pem"),
    (
        "server.pem",
        "hushed.key",
        "the private key hushed.key is encrypted: decrypt it, as by `openssl pkey -in hushed.key",
    ),
]


@pytest.mark.parametrize(("certificate", "key", "said"), UNUSABLE)
def test_files_that_cannot_be_used(authorities, cpsim, certificate, key, said):
    spoil(authorities)
    with pytest.raises(CpsimError) as refused:
        ServerCertificate(Path(certificate), None if key is None else Path(key))
    assert str(refused.value).startswith(said)
    with pytest.raises(EndpointError) as refused:
        Client("https://127.0.0.1:1/api", CREDENTIALS, client_cert=certificate, client_key=key)
    assert str(refused.value).startswith(said)


def test_authorities_that_cannot_be_used(authorities):
    spoil(authorities)
    for ca, said in (
        ("none", "the CA file none cannot be read: No such file or directory"),
        ("server.key", "the CA file server.key has no certificate in PEM format"),
        ("cut.pem", "the CA file cut.pem is damaged"),
    ):
        with pytest.raises(EndpointError, match=said):
            Client("https://127.0.0.1:1/api", CREDENTIALS, ca=ca)
    with pytest.raises(EndpointError, match="http://x/api has no TLS"):
        Client("http://x/api", CREDENTIALS, ca="ca.pem")
    with pytest.raises(EndpointError, match=r"\./socket has no TLS"):
        Client("./socket", ca="ca.pem")
    with pytest.raises(EndpointError, match="private key without its certificate"):
        Client("https://x/api", CREDENTIALS, client_key="server.key")


def test_a_new_certificate_is_for_new_connections(authorities, served):
    fake, _ = served()
    with Client(fake.addresses["http"], CREDENTIALS, 60, ca="ca.pem") as client:
        client.alloc("a")
        # of another kind of key, so that a context with both would go on with the old one
        authorities.issue("server", "127.0.0.1", of=authorities.other, key_type=trustme.KeyType.RSA)
        fake.read_certificate()
        client.alloc("b")
    with Client(fake.addresses["http"], CREDENTIALS, 60, ca="other-ca.pem") as client:
        client.alloc("c")
    Path("server.key").write_text("damaged")
    with pytest.raises(CpsimError, match=r"the private key server.key has no private key"):
        fake.read_certificate()
    with Client(fake.addresses["http"], CREDENTIALS, 60, ca="other-ca.pem") as client:
        client.alloc("d")
    assert slots(fake) == ["a", "b", "c", "d"]


def test_a_daemon_reads_its_authorities_again(authorities, served):
    fake, _ = served()
    endpoint = parse_endpoint(fake.addresses["http"]).with_tls(ca="trusted.pem")
    Path("trusted.pem").write_bytes(Path("other-ca.pem").read_bytes())
    with closing(BulkClient(endpoint, CREDENTIALS, 60)) as client:
        with pytest.raises(ConnectFailed):
            client.knows_batches()
        Path("trusted.pem").write_bytes(Path("ca.pem").read_bytes())
        client.renew("s")
        assert client.knows_batches()
        Path("trusted.pem").write_text("")
        with pytest.raises(EndpointError, match=r"trusted.pem has no certificate"):
            client.renew("another")
        assert client.knows_batches()


def test_who_never_shakes_hands_does_not_hold_up_the_end(authorities):
    listening = socket.create_server(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    tls = ServerCertificate(Path("server.pem"), Path("server.key"))
    server = HttpServer(Api(AccountServer({"p": "s"})), [listening], limits=Limits(handshake_s=3_600), tls=tls)
    server.start()
    with socket.create_connection(("127.0.0.1", port)):
        by_client(f"https://127.0.0.1:{port}/api", ca="ca.pem")  # which came later, so the other has been accepted
        stopping = threading.Thread(target=server.stop, daemon=True)
        stopping.start()
        stopping.join(60)
        assert not stopping.is_alive()


def test_a_request_that_is_too_large_is_answered(served):
    fake, _ = served()
    context = ssl.create_default_context(cafile="ca.pem")
    with (
        socket.create_connection(("127.0.0.1", parse_endpoint(fake.addresses["http"]).port)) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as sock,
    ):
        sock.sendall(b"POST /api HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 99999999999\r\n\r\n" + b"x" * 100_000)
        assert sock.recv(100).startswith(b"HTTP/1.1 413 ")


def test_http_to_an_https_server_and_the_other_way(authorities, served):
    fake, _ = served()
    with pytest.raises(CreditPiggyError):
        by_client(fake.addresses["http"].replace("https", "http"))
    with Fake({"p": "s"}, http=ANY_PORT) as plain, pytest.raises(ConnectFailed, match=r"is it http:// there\?"):
        by_client(plain.addresses["http"].replace("http", "https"))


def test_the_commands_trust_and_show_what_they_are_told(authorities, served, cpsim):
    authorities.issue("client", "site-7", of=authorities.other)
    fake, tls = served()
    tls.context.load_verify_locations("other-ca.pem")
    tls.context.verify_mode = ssl.CERT_REQUIRED
    Path("secret").write_text("s")
    url = fake.addresses["http"]
    options = ("--project", "p", "--secret-file", "secret", "--ca", "ca.pem", "--client-cert", "client-both.pem")

    status, out, error = cpsim("run", "smoke", "--set", "arrivals.jobs=10", "--target", url, *options, "--json")
    document = json.loads(out)
    assert (status, document["verdict"]) == (0, "valid"), error
    assert "--ca ca.pem --client-cert client-both.pem" in document["repeat"]
    with closing(Spool(Path("spool"))) as spool:
        spool.put(["alloc,slot=drained"], {}, lambda _: None)
    status, _, error = cpsim("daemon", "--server", url, *options, "--spool", "spool", "--drain")
    assert status == 0, error
    assert "drained" in slots(fake)


@pytest.mark.thorough
def test_the_conformance_suite_trusts_what_it_is_told(served, cpsim):
    fake, _ = served()
    Path("secret").write_text("s")
    options = ("--project", "p", "--secret-file", "secret", "--max-rate", 1e6, "-k", "CLAIM-1", "-k", "HTTP-1")
    status, out, error = cpsim("verify", fake.addresses["http"], *options, "--ca", "ca.pem")
    assert status == 0, out + error
    status, _, error = cpsim("verify", fake.addresses["http"], *options, "--ca", "other-ca.pem")
    assert (status, "certificate verify failed: unable to get local issuer certificate" in error) == (2, True), error


def test_a_command_says_what_is_wrong_with_its_files(authorities, served, cpsim):
    fake, _ = served()
    url = fake.addresses["http"]
    Path("secret").write_text("s")
    options = ("--project", "p", "--secret-file", "secret")
    for command in (("run", "smoke", "--target", url), ("verify", url), ("load", "smoke", "--target", url)):
        status, out, error = cpsim(*command, *options, "--ca", "server.key")
        assert (status, "the CA file server.key has no certificate in PEM format" in error) == (64, True), (out, error)
    status, _, error = cpsim("run", "smoke", "--target", url, *options)
    assert status == 2
    assert "certificate verify failed: unable to get local issuer certificate" in error
    status, _, error = cpsim("run", "smoke", "--target", "127.0.0.1:1", "--ca", "ca.pem")
    assert (status, "--ca is for an https:// URL, and none is given" in error) == (64, True)
    Path("daemon.ini").write_text("[api]\napi_url=http://127.0.0.1:1/api\n")
    status, _, error = cpsim("daemon", "--config", "daemon.ini", "--ca", "ca.pem")
    assert (status, error.startswith("cpsim: http://127.0.0.1:1/api has no TLS")) == (2, True)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--tls-cert", "server.key"), "the certificate server.key has no certificate in PEM format"),
        (("--tls-cert", "server.pem"), "the private key server.pem has no private key in PEM format"),
        (
            ("--tls-key", "server.key"),
            "there is a private key server.key without its certificate: give --tls-cert, too",
        ),
        (
            ("--tls-cert", "server.pem", "--tls-key", "server.key", "--unix", "socket"),
            "there is a certificate server.pem, and no HTTP address to use it at: give --http",
        ),
    ],
)
def test_a_certificate_that_cannot_be_served(authorities, cpsim, options, said):
    assert cpsim("serve", *options) == (2, "", f"cpsim: {said}\n")


def test_a_file_of_settings_names_them(authorities):
    Path("folder").mkdir()
    Path("folder/serve.toml").write_text(
        'http = "127.0.0.1:0"\ntls_cert = "../server.pem"\ntls_key = "../server.key"\n'
    )
    with load(Path("folder/serve.toml")).fake() as fake:
        endpoint = parse_endpoint(fake.addresses["http"]).with_tls(ca="ca.pem")
        assert fetch(endpoint, "GET", "/", connect_s=60, timeout_s=60)[0] == 200


@pytest.mark.thorough
def test_locust_trusts_and_shows_them_too(authorities, served):
    authorities.issue("client", "site-7", of=authorities.other)
    fake, tls = served()
    tls.context.load_verify_locations("other-ca.pem")
    tls.context.verify_mode = ssl.CERT_REQUIRED
    Path("secret").write_text("s")
    command = [
        sys.executable,
        "-P",
        "-m",
        "cpsim",
        "load",
        "smoke",
        "--target",
        fake.addresses["http"],
        "--project",
        "p",
    ]
    options = ["--secret-file", "secret", "--ca", "ca.pem", "--client-cert", "client.pem", "--client-key", "client.key"]
    run = subprocess.run(
        [*command, *options, "--", "--headless"], capture_output=True, text=True, check=False, timeout=280
    )
    assert run.returncode == 0, run.stdout + run.stderr
