import socket
import ssl

import pytest

from easq import errors
from easq.net.failures import Unconnected, unconnected

URL = "https://user:secret@h:1/q?a=b"


def verification() -> ssl.SSLCertVerificationError:
    error = ssl.SSLCertVerificationError(1, "x")
    error.verify_message = "certificate has expired"
    return error


@pytest.mark.parametrize(
    ("cause", "message", "lasting"),
    [
        (ConnectionRefusedError(), "connection to https://h:1/q refused", False),
        (verification(), "TLS with https://h:1/q failed: certificate has expired", True),
        (socket.gaierror(socket.EAI_NONAME, "x"), "the name h of https://h:1/q does not resolve", True),
        (socket.gaierror(socket.EAI_AGAIN, "x"), "the name h of https://h:1/q does not resolve", False),
        (TimeoutError(), "cannot connect to https://h:1/q: no answer in time", False),
        (
            OSError(101, "Network is unreachable"),
            "cannot connect to https://h:1/q: network is unreachable",
            False,
        ),
        (RuntimeError(), "cannot connect to https://h:1/q: no answer in time", False),
    ],
)
def test_the_innermost_cause_gives_the_reason(cause: Exception, message: str, lasting: bool) -> None:
    outer = RuntimeError("outer")
    outer.__cause__ = RuntimeError("middle")
    outer.__cause__.__context__ = cause
    found = unconnected(outer, URL)
    assert (found.message, found.lasting) == (message, lasting)
    assert found.hint or "unreachable" in message


@pytest.mark.parametrize(
    ("cause", "message"),
    [
        (ConnectionRefusedError(), "connection to the proxy http://p:3 on the way to https://h:1/q refused"),
        (verification(), "TLS with https://h:1/q through http://p:3 failed: certificate has expired"),
        (
            socket.gaierror(socket.EAI_NONAME, "x"),
            "the name p of the proxy http://p:3 on the way to https://h:1/q does not resolve",
        ),
        (
            TimeoutError(),
            "cannot connect to the proxy http://p:3 on the way to https://h:1/q: no answer in time",
        ),
        (
            OSError(101, "Network is unreachable"),
            "cannot connect to the proxy http://p:3 on the way to https://h:1/q: network is unreachable",
        ),
    ],
)
def test_a_missing_proxy_is_named(cause: Exception, message: str) -> None:
    assert unconnected(cause, URL, "http://user:secret@p:3").message == message


def test_an_unconnected_error_is_unreachable() -> None:
    assert isinstance(Unconnected("x"), errors.Unreachable)
    assert Unconnected("x").kind == errors.Unreachable.kind
