import base64
from urllib.parse import quote, quote_plus

import pytest

from easq.net.trace import Tracer, secrets_of
from easq.protocol.replies import Reply


def b64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


TOKEN = "c2VjcmV0LWNhbmFyeS90b2tlbisx=="


def test_secrets_are_masked_in_every_line() -> None:
    lines: list[tuple[int, str]] = []
    headers = {"Authorization": TOKEN, "X-Auth-Token": "other-canary", "Cookie": "canary=1", "X-A": "plain"}
    tracer = Tracer(lambda level, line: lines.append((level, line)), secrets_of(headers))
    url = f"http://user:pw-canary@h/{quote(TOKEN, safe='')}"
    tracer.sent("POST", url, [("a", TOKEN), ("api_token", "t-canary")], headers)
    tracer.headers("<", {"Set-Cookie": "s-canary", "X-Echo": f"you sent {TOKEN} and other-canary"})
    tracer.body("<", f"error: bad token {TOKEN} {quote_plus(TOKEN)}".encode())
    tracer.answer(f"401 {TOKEN}", 0.1234)

    shown = "\n".join(line for _, line in lines)
    assert "canary" not in shown.replace("canary=1", "")
    assert TOKEN not in shown
    assert TOKEN[:8] not in shown
    assert "> X-A: plain" in shown
    assert f"> Authorization: ****{TOKEN[-4:]}" in shown
    assert lines[-1] == (1, "< 401 **** in 123 ms")


def test_the_levels_are_request_headers_body() -> None:
    lines: list[tuple[int, str]] = []
    tracer = Tracer(lambda level, line: lines.append((level, line)))
    tracer.sent("GET", "http://h/q", [("_index_", "1"), ("k", "a b")], {"A": "b"}, b"x" * 2000)
    tracer.received(Reply(204, {"C": "d"}), 0.005)
    assert lines == [
        (1, "> GET http://h/q?_index_=1&k=a+b"),
        (2, "> A: b"),
        (3, f"> {'x' * 1024} ... (2000 bytes)"),
        (1, "< 204, 0 bytes in 5 ms"),
        (2, "< C: d"),
    ]


def test_a_signature_and_the_token_behind_bearer_are_secrets() -> None:
    assert secrets_of({"authorization": "Bearer abcdef", "Content-Type": "a/b"}) == [
        "Bearer abcdef",
        "abcdef",
    ]


def test_a_secret_across_the_cut_of_a_body_is_masked_too() -> None:
    lines: list[str] = []
    Tracer(lambda _, line: lines.append(line), [TOKEN]).body("<", b"x" * 1010 + TOKEN.encode())
    assert TOKEN[:4] not in lines[0]


def test_a_tracer_without_a_trace_does_nothing() -> None:
    tracer = Tracer(None)
    tracer.sent("GET", "http://h", [], {})
    tracer.body("<", b"x")


@pytest.mark.parametrize(
    ("user", "secrets"),
    [
        ("u:p%40ss", {"p@ss", "p%40ss", b64("u:p@ss")}),
        ("only-a-token", {"only-a-token", b64("only-a-token:")}),
        ("u:", {"u", b64("u:")}),
    ],
)
def test_the_credentials_of_a_proxy_are_secret_encoded_and_decoded(user: str, secrets: set[str]) -> None:
    assert set(secrets_of({}, f"http://{user}@p:1")) == secrets


def test_of_a_user_and_password_not_even_the_last_characters_are_shown() -> None:
    """They would be three characters of the password."""
    lines: list[str] = []
    headers = {"Authorization": f"Basic {b64('user:a-long-password-canary')}"}
    Tracer(lambda _, line: lines.append(line), secrets_of(headers)).headers(">", headers)
    assert lines == ["> Authorization: ****"]
