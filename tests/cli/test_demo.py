"""easq demo: every step has the expected output, and the demo fails if one has not."""

from __future__ import annotations

import re

from tests.cli.conftest import Easq, finish


def test_the_tour_shows_each_command_with_its_output(easq: Easq) -> None:
    status, text = finish(easq.terminal("demo"))
    assert status == 0
    shown = re.findall(r"^\$ easq (\w+)", text, re.MULTILINE)
    assert shown == [
        *("serve", "config", "info", "put", "put", "get", "watch", "delete", "trunc", "get"),
        *("watch", "put", "predict"),
    ]
    assert "[OK] [3 - 4]" in text
    assert "\\n" not in text
    assert text.endswith('[{"p_0":0.52,"p_1":0.48}]\n\nAll 13 steps gave the expected output.\n')


def test_the_tour_leaves_nothing_and_needs_nothing_of_the_user(easq: Easq) -> None:
    """Addresses in the environment and profiles are ignored; nothing is written to the home folder."""
    before = sorted(easq.home.rglob("*"))
    done = easq(
        "demo",
        "-q",
        env={"EASQ_URL": "http://127.0.0.1:1/x", "EASQ_TOKEN": "wrong", "TMPDIR": str(easq.home)},
    )
    assert (done.status, done.text, done.err) == (0, "\nAll 13 steps gave the expected output.\n", "")
    assert sorted(easq.home.rglob("*")) == before


def test_a_tour_without_a_service_fails(easq: Easq) -> None:
    """The temporary folder cannot be written: the service does not start, and the tour says so."""
    done = easq("demo", "-q", env={"PYTHONPATH": f"{easq.home / 'broken'}:{easq.environ['PYTHONPATH']}"})
    assert done.status == 0
    broken = easq.home / "broken"
    broken.mkdir()
    (broken / "aiohttp.py").write_text("raise ImportError('not here')\n")
    done = easq("demo", "-q", env={"PYTHONPATH": f"{broken}:{easq.environ['PYTHONPATH']}"})
    assert done.status == 11
    assert "1 of 1 steps failed: easq serve" in done.err
