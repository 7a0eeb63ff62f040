"""The official Python SDK's PredictClient gets its answers from a served model, by gateway and directly."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.conftest import OpenCloud
from tests.sdk.conftest import RunSdk
from tests.support.waiting import eventually

TOKEN = "dG9rZW4="

_PREDICT = """
import json, sys
from eas_prediction import PredictClient, StringRequest, TFRequest
from eas_prediction.predict_client import ENDPOINT_TYPE_DIRECT

origin, route, token, count, bodies = sys.argv[1:6]
client = PredictClient(origin, "model")
if token:
    client.set_token(token)
if route == "direct":
    client.set_endpoint_type(ENDPOINT_TYPE_DIRECT)
client.init()

def tensor(n):
    request = TFRequest("predict_images")
    request.add_feed("images", [1, 4], TFRequest.DT_FLOAT, [n, 0.5, 1.25, -3.75])
    request.add_feed("labels", [2], TFRequest.DT_STRING, [b"\\x00\\xff", b"x" * n])
    request.add_fetch("scores")
    return request

same, sent = [], []
for n in range(int(count)):
    request = tensor(n) if bodies == "tensor" else StringRequest('[{"n": %d, "text": "gr\u00fc\u00dfe"}]' % n)
    request.parse_response = lambda data: data
    body = request.to_string()
    body = body.encode() if isinstance(body, str) else body
    same.append(client.predict(request) == body)
    sent.append(body.hex())
client.destroy()
print(json.dumps({"same": sum(same), "distinct": len(set(sent))}))
"""

_REFUSED = """
import json, sys
from eas_prediction import PredictClient, StringRequest
from eas_prediction.exception import PredictException

client = PredictClient(sys.argv[1], "model")
client.set_token(sys.argv[2])
client.init()
try:
    client.predict(StringRequest("x"))
except PredictException as error:
    print(json.dumps([error.code, str(error.message)]))
"""


def run(run_sdk: RunSdk, script: str, *arguments: object) -> Any:
    return json.loads(run_sdk(script, *map(str, arguments)).stdout.splitlines()[-1])


@pytest.mark.parametrize("bodies", ["string", "tensor"])
@pytest.mark.parametrize("token", ["", TOKEN], ids=["no token", "a token"])
@pytest.mark.parametrize("route", ["gateway", "direct"])
def test_the_sdks_predict_is_answered(
    cloud: OpenCloud, run_sdk: RunSdk, route: str, token: str, bodies: str
) -> None:
    """Every body arrives as it was serialized, signed where there is a token, and all instances have their part."""
    made = cloud(weights=(2, 1, 1), token=token)
    assert run(run_sdk, _PREDICT, made.origin, route, token, 40, bodies) == {"same": 40, "distinct": 40}
    assert made.counts() == [20, 10, 10]
    assert made.asked("gateway") == (40 if route == "gateway" else 0)
    assert (made.asked("discovery") > 0) == (route == "direct")


def test_the_sdk_is_told_that_its_token_is_wrong(cloud: OpenCloud, run_sdk: RunSdk) -> None:
    """401, which it does not try again."""
    made = cloud(token=TOKEN)
    code, message = run(run_sdk, _REFUSED, made.origin, "wrong")
    assert (code, "the signature is wrong" in message) == (401, True)
    eventually(lambda: made.answers != [])
    assert made.answers == [("gateway", 401)]


_STEADY = """
import logging, sys
from eas_prediction import PredictClient, StringRequest
from eas_prediction.predict_client import ENDPOINT_TYPE_DIRECT

client = PredictClient(sys.argv[1], "model")
client.set_endpoint_type(ENDPOINT_TYPE_DIRECT)
client.set_log_level(logging.CRITICAL + 1)  # it logs on stdout
client.init()
print("ready", flush=True)
for line in sys.stdin:
    client.predict(StringRequest(line))
    print("answered", flush=True)
"""


@pytest.mark.long
def test_the_sdk_keeps_its_list_while_discovery_has_none(cloud: OpenCloud, start_sdk: Any) -> None:
    """An empty list would clear it; 503 leaves it alone, so that its requests go on."""
    made = cloud(weights=(1, 1))
    with start_sdk(_STEADY, made.origin) as sdk:
        assert sdk.stdout.readline() == "ready\n"

        def ask() -> None:
            sdk.stdin.write("x\n")
            sdk.stdin.flush()
            assert sdk.stdout.readline() == "answered\n"

        ask()
        made.list(0, False)
        made.list(1, False)
        asked = made.asked("discovery")
        eventually(lambda: made.asked("discovery") >= asked + 2)
        for _ in range(4):
            ask()
