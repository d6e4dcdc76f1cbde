"""One request over the network: redirects, credentials, and what a refusal or a fault means.

The token goes to the hub alone, nothing comes from ~/.netrc, and no address behind a redirect is
ever printed: it is signed. Proxies (HTTPS_PROXY, NO_PROXY) and REQUESTS_CA_BUNDLE are requests'.
"""

import base64
import contextlib
import email.utils
import math
import re
import time
from urllib.parse import unquote, urljoin, urlsplit

import requests

HUB = "https://huggingface.co"
CONNECT, SILENCE = 10, 30  # seconds until a server that does not answer, or stalls, is given up
MAX_REDIRECTS = 10
FINAL = math.inf  # tries that a fault counts as if asking again is in vain


class Fault(Exception):
    """One request has failed; wait: seconds the server asks for; tries: how many it counts as."""

    def __init__(self, reason, wait=0.0, tries=1):
        super().__init__(printable(reason))
        self.wait, self.tries = wait, tries


class Refused(Fault):
    """The hub's own word on what was asked for; code: its X-Error-Code, "" if it gives none."""

    def __init__(self, reason, status, code, tries=FINAL):
        super().__init__(reason, tries=tries)
        self.status, self.code = status, code


def printable(text):
    """What a server says, as it may be shown in a terminal: one line, without escapes, short."""
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return text if len(text) <= 300 else text[:300] + "..."


def address(text):
    """An address that may hold a name and a password -> the address without, Authorization."""
    try:
        parts = urlsplit(text.strip().rstrip("/"))
    except ValueError as error:
        raise ValueError(f"no address of a server: {error}") from None
    user, _, host = parts.netloc.rpartition("@")
    basic = base64.b64encode(unquote(user).encode()).decode()
    return parts._replace(netloc=host).geturl(), f"Basic {basic}" if user else ""


@contextlib.contextmanager
def ask(url, headers, authorization=""):
    """-> the answers to a GET: of the hub, of whom it redirects to; the last one is to be read."""
    home, answers = url, []
    with requests.Session() as session:
        while True:
            try:
                own = authorization and is_hub(url, home)
                answer = session.get(
                    url,
                    headers=headers | ({"Authorization": authorization} if own else {}),
                    auth=lambda request: request,  # else requests looks into ~/.netrc
                    stream=True,
                    allow_redirects=False,
                    timeout=(CONNECT, SILENCE),
                )
                answers.append(answer)
                if not (target := session.get_redirect_target(answer)):
                    break
                url = urljoin(url, target)
            except (ValueError, TypeError) as error:
                raise no_address(error, url, redirected=bool(answers)) from None
            except OSError as error:
                raise describe(error, url) from None
            if len(answers) > MAX_REDIRECTS:
                raise Fault("it is redirected in a circle", tries=3)
        yield answers


def is_hub(url, home):
    """Does the server that was asked, or the hub itself, answer here?"""
    return origin(url) in (origin(home), origin(home.replace("http:", "https:", 1)), origin(HUB))


def origin(url):
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def check_status(answers, plain):
    """Fault unless the last answer carries a file; Refused where the hub itself says why.

    plain: it is a mirror that only has files, so that there is nobody to say X-Error-Code.
    """
    answer, home = answers[-1], answers[0].url
    status, code = answer.status_code, answer.headers.get("X-Error-Code", "")
    if status in (200, 206):
        return
    reason = f"{status} {answer.headers.get('X-Error-Message') or answer.reason or ''}".strip()
    if not is_hub(answer.url, home):  # the link has expired: the hub gives another
        raise Fault(f"{status} from the host that the hub redirects to", seconds_to_wait(answer))
    if status == 407:
        raise Fault(proxy_line(answer.url, "wants a name and a password"), tries=FINAL)
    if status in (408, 416, 425, 429) or status >= 500:
        wait = seconds_to_wait(answer)
        raise Fault(reason + f", not before {wait:.0f} s have passed" * (wait > 0), wait)
    if status == 404 and not code and plain:  # of a mirror, it takes three
        raise Refused(reason, status, "EntryNotFound", tries=2)
    if status in (403, 404) and not code and "X-Error-Message" not in answer.headers:
        raise Fault(f"{reason}, and not by the hub", tries=2)  # but by whatever is in between
    raise Refused(reason, status, code)


def seconds_to_wait(answer):
    """What RateLimit says where it is used up, else Retry-After: seconds or a date."""
    limits = re.findall(r"\br=0\s*;\s*t=(\d{1,9})", answer.headers.get("RateLimit", ""))
    if limits and answer.status_code == 429:
        return max(map(float, limits))
    text = answer.headers.get("Retry-After", "").strip()
    if re.fullmatch(r"\d{1,9}", text):
        return float(text)
    with contextlib.suppress(ValueError, TypeError, OverflowError):
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    return 0.0


def describe(error, url):
    """An exception that requests raises, over several lines -> Fault; no address is in it."""
    host, text = urlsplit(url).hostname, str(error)
    if isinstance(error, requests.exceptions.ProxyError):
        refused = re.search("Tunnel connection failed: ([^'\"]*)", text)
        says = f"answers {refused[1]}" if refused else "cannot be reached"
        return Fault(proxy_line(url, says), tries=FINAL if refused else 2)
    if "TLS CA certificate bundle" in text:  # that REQUESTS_CA_BUNDLE names is not there
        return Fault(f"REQUESTS_CA_BUNDLE: {error}", tries=FINAL)
    if "CERTIFICATE" in text.upper():
        return Fault(
            f"the certificate of {host} is not known here: where a network has one of its own, set "
            "REQUESTS_CA_BUNDLE to the file that holds it",
            tries=FINAL,
        )
    connecting = isinstance(error, requests.ConnectTimeout)
    unreached = re.search("NewConnection|NameResolution", text)
    if (connecting or unreached) and proxy_of(url):
        return Fault(proxy_line(url, "cannot be reached"), tries=2)
    if "timed out" in text:
        return Fault(f"silent for {CONNECT if connecting else SILENCE} s", tries=1 + connecting)
    if unreached:
        return Fault(f"{host} cannot be reached", tries=2)
    return Fault(f"broken off ({type(error).__name__})")


def no_address(error, url, redirected):
    """What requests raises for an address that is none: the server's, the proxy's, a redirect's."""
    fine = re.match(r"https?://\w[\w-]{0,62}(\.\w[\w-]{0,62})*(:\d{1,5})?/", url)
    if redirected or (fine and not proxy_of(url)):
        return Fault("it redirects to what is no address", tries=3)
    if fine:
        needs = f" ({error})" if "SOCKS" in str(error) else ""
        return Fault(proxy_line(url, f"cannot be used{needs}"), tries=FINAL)
    return Fault("no address: it begins with https:// and the name of a server", tries=FINAL)


def proxy_of(url):
    """-> the proxy's address that the environment gives for this one, without its password."""
    found = requests.utils.select_proxy(url, requests.utils.get_environ_proxies(url, None)) or ""
    with contextlib.suppress(ValueError):
        return found and address(found if "//" in found else f"http://{found}")[0]
    return "that is set"


def proxy_line(url, says):
    variable = f"{urlsplit(url).scheme.upper()}_PROXY"
    return f"the proxy {proxy_of(url)} {says}: see {variable}, or NO_PROXY to do without it"
