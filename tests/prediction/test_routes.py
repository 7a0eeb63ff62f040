"""Routes of a prediction: options that go with them, credentials, and failures that the model reports."""

from __future__ import annotations

import pytest

from easq.errors import AuthFailed, EasqError, Refused, ServerError, UsageError
from easq.model import Frame
from easq.prediction.routes import GOES_WITH, Credentials, check_options, failure_of


def test_an_option_of_another_route_is_refused_with_its_routes() -> None:
    check_options("queue", ["tags", "priority"])
    with pytest.raises(UsageError, match="--sign is only for --via gateway and direct"):
        check_options("queue", ["tags", "sign"])
    with pytest.raises(UsageError, match=r"--project is only for --via modelarts$"):
        check_options("direct", ["endpoint", "project"])
    assert all(routes for routes in GOES_WITH.values())


@pytest.mark.parametrize(
    ("code", "kind"),
    [("", None), ("200", None), ("400", Refused), ("500", ServerError), ("x", ServerError)],
)
def test_the_status_of_the_model_is_its_failure(code: str, kind: type[EasqError] | None) -> None:
    failure = failure_of(Frame(1, tags={"lastCode": code} if code else {}))
    assert (type(failure) if failure else None) is kind


def test_a_token_is_sent_as_the_route_prefers_or_the_user_says() -> None:
    credentials = Credentials(lambda: "secret")
    assert credentials.signer("token")[0] == "token"
    assert credentials.signer("hmac")[0] == "hmac"
    assert credentials.signer("token")[1](b"x", "text/plain", "/p") == {
        "Content-Type": "text/plain",
        "Authorization": "secret",
    }
    assert "secret" not in str(credentials.signer("hmac")[1](b"x", "", "/p"))
    assert Credentials(lambda: "secret", "none").signer("token")[1](b"x", "", "/p") == {}


def test_signing_without_a_token_is_refused_where_it_was_asked_for() -> None:
    assert Credentials(lambda: "").signer("hmac")[1](b"x", "", "/p") == {}
    with pytest.raises(AuthFailed, match="--sign hmac needs a token"):
        Credentials(lambda: "", "hmac").signer("token")


def test_headers_with_credentials_are_found_whatever_their_case() -> None:
    credentials = Credentials(lambda: "", headers=[("X-Auth-Token", "t"), ("X-Other", "o")])
    assert credentials.given == ["X-Auth-Token"]
    with pytest.raises(UsageError, match="X-Auth-Token cannot be used with --via modelarts"):
        credentials.refuse_headers()
