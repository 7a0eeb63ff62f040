"""The real model, by itself: it is right more often than not, and says what is wrong with a question."""

from __future__ import annotations

import json

import pytest
from sklearn.datasets import load_breast_cancer

from tests.classifier import Classifier


def test_it_tells_what_it_was_trained_to_tell() -> None:
    classifier, data = Classifier(), load_breast_cancer()
    records = [dict(zip(classifier.names, map(float, row), strict=True)) for row in data.data[:100]]
    found = json.loads(classifier.answer(json.dumps(records).encode()))
    right = sum(
        (answer["p_1"] > 0.5) == bool(target) for answer, target in zip(found, data.target, strict=False)
    )
    assert right > 90
    assert all(abs(answer["p_0"] + answer["p_1"] - 1) < 1e-5 for answer in found)
    assert json.loads(classifier.answer(b"[{}]"))[0].keys() == {"p_0", "p_1"}


@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b"[1]", b'[{"x":1}]', b'[{"mean radius":"wide"}]'])
def test_what_is_no_question_is_refused(body: bytes) -> None:
    with pytest.raises(ValueError):
        Classifier().answer(body)
