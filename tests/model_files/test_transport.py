"""Credentials, proxies, certificates, waits: what a request carries, and what a fault means."""

import http.server
import socket
import ssl
import subprocess
import threading
import time
from types import SimpleNamespace

import pytest
import requests
from conftest import check_fetched

from model_files import download, fetch, transport
from utils import load_encoder_hparams_and_params as load


def fails(name, place):
    with pytest.raises((OSError, ValueError)) as error:
        load(name, place)
    line = str(error.value)
    assert "\n" not in line and line.isprintable(), line
    return line


def authorizations(servers):
    """{role: the Authorization headers that it has seen}"""
    hosts = {getattr(servers, r).removeprefix("http://"): r for r in ("hub", "content", "store")}
    seen = {}
    for *_, headers in servers.log:
        seen.setdefault(hosts[headers["Host"]], set()).add(headers.get("Authorization"))
    return seen


@pytest.mark.parametrize("netrc", [False, True])
def test_the_token_goes_to_the_hub_alone_and_nothing_comes_from_netrc(
    netrc, place, servers, monkeypatch, tmp_path
):
    if netrc:
        (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password secret\n")
        monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    load("owner/name", place)
    assert authorizations(servers) == {"hub": {None}, "content": {None}}
    servers.tokens, servers.log[:] = {"hf_secret": set()}, []
    monkeypatch.setenv("HF_TOKEN", " hf_secret\n")
    load("owner/name@v1", place)
    assert authorizations(servers) == {"hub": {"Bearer hf_secret"}, "content": {None}}


def test_the_token_file_of_a_login_is_read_unless_there_is_a_variable(
    place, servers, monkeypatch, tmp_path
):
    servers.tokens = {"hf_file": set(), "hf_variable": set(), "hf_path": set()}
    (tmp_path / "hf_home").mkdir()
    (tmp_path / "hf_home" / "token").write_text("hf_file\n")
    (tmp_path / "elsewhere").write_text("hf_path")
    for revision, variables, token in (
        ("main", {}, "hf_file"),
        ("v1", {"HF_TOKEN_PATH": f"{tmp_path}/elsewhere"}, "hf_path"),
        ("refs/pr/1", {"HF_TOKEN": "hf_variable"}, "hf_variable"),
    ):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        servers.log.clear()
        load(f"owner/name@{revision}", place)
        assert authorizations(servers) == {"hub": {f"Bearer {token}"}, "content": {None}}


@pytest.mark.parametrize("token", ["hf_\u201cquoted\u201d", "hf_two\nlines", "hf_two words"])
@pytest.mark.parametrize("where", ["HF_TOKEN", "file"])
def test_a_token_that_is_none_costs_nothing(token, where, place, servers, monkeypatch, tmp_path):
    servers.at = {"model.safetensors": [("break", 0.5)] + [("reset", 0)] * download.TRIES}
    assert "are kept" in fails("owner/name", place)
    kept = sorted((place / "owner--name" / "incomplete").rglob("*"))
    if where == "HF_TOKEN":
        monkeypatch.setenv("HF_TOKEN", token)
    else:
        (tmp_path / "hf_home").mkdir()
        (tmp_path / "hf_home" / "token").write_text(token, encoding="utf-8")
    line = fails("owner/name", place)
    assert " holds more than the plain letters" in line and "hf_two" not in line
    assert kept == sorted((place / "owner--name" / "incomplete").rglob("*"))


def test_a_password_in_the_address_goes_to_its_host_and_is_not_printed(
    place, servers, monkeypatch, capfd
):
    monkeypatch.setenv("HF_ENDPOINT", servers.hub.replace("//", "//me:geheim@"))
    servers.plain = True
    load("owner/name", place)
    assert authorizations(servers) == {"hub": {"Basic bWU6Z2VoZWlt"}}
    servers.faults = [("503", 0)] * 40
    assert "geheim" not in fails("owner/name@v1", place) + capfd.readouterr().err
    servers.tokens, servers.log[:], servers.faults = {"hf_secret": set()}, [], []
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    load("owner/name@v1", place)
    assert authorizations(servers) == {"hub": {"Bearer hf_secret"}}


def test_what_a_server_says_reaches_the_terminal_without_escapes(place, servers, capfd):
    servers.faults = [("hostile", 0)] * 40
    assert "500 Nope [2J ]0;owned" in fails("owner/name", place)
    assert "\x1b" not in capfd.readouterr().err


@pytest.mark.parametrize("kind", ["expired", "gone"])
def test_a_signed_address_is_renewed_and_never_printed(kind, place, model, servers, capfd):
    servers.at = {"model.safetensors": [(kind, 0)] * 2}
    check_fetched(load("owner/name", place)[2], model, place / "owner--name")
    servers.at = {"model.safetensors": [(kind, 0)] * 40}
    line = fails("owner/name@v1", place)
    assert "from the host that the hub redirects to" in line and "HF_TOKEN" not in line
    assert "pickle" not in line and "goes on from there" in line
    assert "Signature" not in line + capfd.readouterr().err


def test_a_redirect_in_a_circle_ends(place, servers):
    servers.faults = [("circle", 0)] * 99
    assert "redirected in a circle" in fails("owner/name", place)


@pytest.fixture
def waits(monkeypatch):
    waits = []
    monkeypatch.setattr(download, "time", SimpleNamespace(sleep=waits.append))
    monkeypatch.setattr(download, "WAIT", 1.0)
    monkeypatch.setattr(download.random, "uniform", lambda a, b: b)
    return waits


def test_waits_get_longer(place, servers, waits):
    servers.faults = [("503", 0)] * 4
    load("owner/name", place)
    assert waits == [1, 2, 4, 8]


def test_a_limit_is_waited_for_as_the_hub_says(place, servers, waits, monkeypatch):
    monkeypatch.setattr(transport, "seconds_to_wait", lambda answer: 51.0)
    servers.faults = [("429 limit", 0)] * 4
    load("owner/name", place)
    assert waits == [51] * 4
    monkeypatch.setattr(transport, "seconds_to_wait", lambda answer: 3600.0)
    servers.faults, servers.log[:] = [("429 limit", 0)], []
    assert "429 Too Many Requests, not before 3600 s have passed" in fails("owner/name@v1", place)
    assert len(servers.log) == 1


@pytest.mark.parametrize(
    "status,headers,seconds",
    [
        (429, {"RateLimit": '"resolvers";r=0;t=51'}, 51),
        (429, {"RateLimit": '"resolvers";r=0;t=51', "Retry-After": "7"}, 51),
        (429, {"RateLimit": '"api";r=9;t=200, "resolvers"; r=0; t=55'}, 55),
        (429, {"RateLimit": '"api";r=0;t=200, "resolvers"; r=0; t=55'}, 200),
        (429, {"RateLimit": '"resolvers";r=10;t=51', "Retry-After": "7"}, 7),
        (503, {"RateLimit": '"resolvers";r=0;t=51', "Retry-After": " 7 "}, 7),
        (429, {}, 0),
        (503, {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0),
        (503, {"Retry-After": "soon"}, 0),
        (503, {"Retry-After": "-1"}, 0),
    ],
)
def test_rate_limit_comes_before_retry_after(status, headers, seconds):
    answer = SimpleNamespace(status_code=status, headers=headers)
    assert transport.seconds_to_wait(answer) == seconds


def test_retry_after_may_be_a_date():
    date = transport.email.utils.formatdate(time.time() + 60)
    answer = SimpleNamespace(status_code=503, headers={"Retry-After": date})
    assert 50 < transport.seconds_to_wait(answer) < 61


def test_a_dead_proxy_is_named_as_the_proxy(place, servers, monkeypatch):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    monkeypatch.setenv("HTTP_PROXY", f"http://me:geheim@127.0.0.1:{port}")
    line = fails("owner/name", place)
    assert f"the proxy http://127.0.0.1:{port} cannot be reached: see HTTP_PROXY" in line
    assert "geheim" not in line and not servers.log
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    load("owner/name", place)


@pytest.mark.parametrize(
    "proxy", ["http://[", "http://me:pw@", "me:pw@host:9x", "socks5://me:pw@host"]
)
def test_a_proxy_that_is_none_is_said_in_one_line(proxy, place, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", proxy)
    line = fails("owner/name", place)
    assert "cannot be used" in line and "see HTTP_PROXY" in line and "pw" not in line


def test_a_proxy_is_used_and_may_want_a_password(place, model, servers, monkeypatch):
    class Proxy(http.server.BaseHTTPRequestHandler):
        def log_message(self, *args):
            pass

        def do_GET(self):
            asked.append(self.headers.get("Proxy-Authorization"))
            if not asked[-1]:
                return self.send_error(407)
            got = requests.get(
                self.path,
                headers=dict(self.headers),
                proxies={"http": ""},
                allow_redirects=False,
                stream=True,
            )
            self.send_response(got.status_code)
            for name, value in got.headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(got.raw.read())

        def do_CONNECT(self):
            self.send_error(407)

    asked, proxy = [], http.server.ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    threading.Thread(target=proxy.serve_forever, args=(0.02,), daemon=True).start()
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{proxy.server_port}")
    monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{proxy.server_port}")
    assert "wants a name and a password: see HTTP_PROXY" in fails("owner/name", place)
    monkeypatch.setenv("HTTP_PROXY", f"http://me:pass@127.0.0.1:{proxy.server_port}")
    check_fetched(load("owner/name", place)[2], model, place / "owner--name")
    monkeypatch.setenv("HF_ENDPOINT", servers.hub.replace("http:", "https:"))
    assert "answers 407 Proxy Authentication Required: see HTTPS_PROXY" in fails("a/b", place)
    proxy.shutdown()
    proxy.server_close()


@pytest.fixture
def encrypted(servers, tmp_path):
    """The hub behind TLS, with a certificate of its own -> address, path of the certificate."""
    made = subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-keyout", tmp_path / "key.pem", "-out", tmp_path / "cert.pem"),
            *("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"),
        ],
        capture_output=True,
    )
    if made.returncode:
        pytest.skip("openssl makes no certificate")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    hub = servers.servers[0]
    hub.socket = context.wrap_socket(hub.socket, server_side=True)
    return f"https://localhost:{hub.server_port}", tmp_path / "cert.pem"


def test_a_certificate_that_is_not_known_is_said_at_once(
    encrypted, place, model, servers, monkeypatch, tmp_path
):
    base, certificate = encrypted
    monkeypatch.setenv("HF_ENDPOINT", base)
    monkeypatch.setattr(download, "TRIES", 99)
    line = fails("owner/name", place)
    assert "the certificate of localhost is not known" in line and "REQUESTS_CA_BUNDLE" in line
    for wrong in "nowhere.pem", "key.pem":
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / wrong))
        assert "REQUESTS_CA_BUNDLE" in fails("owner/name", place)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
    check_fetched(load("owner/name", place)[2], model, place / "owner--name")


@pytest.mark.parametrize(
    "target", ["http://host:abc/", "http://[", "ftp://x/", "http://\xff:99999/"]
)
def test_a_redirect_to_what_is_no_address_ends_in_one_line(target, place, servers, monkeypatch):
    monkeypatch.setattr(requests.Session, "get_redirect_target", lambda *args: target)
    assert "redirects to what is no address" in fails("owner/name", place)


@pytest.mark.parametrize("base", ["hub.example", "ftp://hub.example", "http://[", "://"])
def test_what_is_no_address_is_said_in_one_line(base, place, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", base)
    assert "no address" in fails("owner/name", place)
    assert not place.exists() or not list(place.iterdir())


def test_blanks_around_an_address_do_not_count(place, model, servers, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", f"  {servers.hub}/ \n")
    check_fetched(load("owner/name", place)[2], model, place / "owner--name")


def test_no_address_at_all_is_the_hub(place, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", " ")
    monkeypatch.setattr(fetch, "from_hub", lambda base, *rest: pytest.fail(base))
    with pytest.raises(pytest.fail.Exception, match="^https://huggingface.co$"):
        load("owner/name", place)


def test_a_host_that_is_not_there_is_said(place, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://hub.invalid")
    line = fails("owner/name", place)
    assert "hub.invalid cannot be reached" in line and "goes on" not in line
    monkeypatch.setenv("HF_ENDPOINT", f"http://{'x' * 70}.com")
    fails("owner/name", place)
