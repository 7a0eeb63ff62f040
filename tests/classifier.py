"""A real model: is a tumour malignant (p_0) or benign (p_1), by scikit-learn on the data set that it ships.

    python tests/classifier.py --port 8501       a service on 127.0.0.1, which prints its address
    echo '[{}]' | python tests/classifier.py     a command

Asked with a list of records, feature name -> number, it answers with a list of probabilities; a feature that is not
given has its mean. It knows nothing of easq.
"""

from __future__ import annotations

import argparse
import json
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler


class Classifier:
    """Trained when it is made, the same each time."""

    def __init__(self) -> None:
        data = load_breast_cancer()
        self.names = [str(name) for name in data.feature_names]
        self.means = data.data.mean(axis=0)
        self.model = make_pipeline(StandardScaler(), LogisticRegression())
        self.model.fit(data.data, data.target)

    def answer(self, body: bytes) -> bytes:
        """The probabilities of each record. Raises ValueError for what is no list of records."""
        records = json.loads(body)
        if not isinstance(records, list) or not records:
            raise ValueError("not a list of records")
        rows = [self._row(record) for record in records]
        found = [
            {"p_0": round(float(p_0), 6), "p_1": round(float(p_1), 6)}
            for p_0, p_1 in self.model.predict_proba(rows)
        ]
        return json.dumps(found, separators=(",", ":")).encode()

    def _row(self, record: Any) -> list[float]:
        if not isinstance(record, dict):
            raise ValueError(f"{record!r} is no record")
        for name, value in record.items():
            if name not in self.names or not isinstance(value, int | float):
                raise ValueError(f"{name!r} is no feature, or {value!r} no number")
        return [float(record.get(name, mean)) for name, mean in zip(self.names, self.means, strict=True)]


def serve(classifier: Classifier, port: int) -> None:
    """Answers POSTs until it is killed: 200 with the probabilities, or 400 with what is wrong."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            try:
                status, kind, answer = 200, "application/json", classifier.answer(body)
            except ValueError as error:
                status, kind, answer = 400, "text/plain", str(error).encode()
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        request_queue_size = 128  # more connections at a time than five are no reason to refuse one

    server = Server(("127.0.0.1", port), Handler)
    print(f"http://127.0.0.1:{server.server_address[1]}/", flush=True)
    server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, help="be a service there; 0 takes a free one")
    port = parser.parse_args().port
    if port is not None:
        serve(Classifier(), port)
        return
    try:
        answer = Classifier().answer(sys.stdin.buffer.read())
    except ValueError as error:
        sys.exit(str(error))
    sys.stdout.buffer.write(answer)


if __name__ == "__main__":
    main()
