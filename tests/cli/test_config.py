"""easq config: saved, shown, changed and refused values."""

from __future__ import annotations

import os
import stat

import pytest

from tests.cli.conftest import Easq, finish

URL = "http://127.0.0.1:3030/api/predict/qservice"
TOKEN = "YmE3NDkyMzdiMzNmMGM3ZmE4ZmNj=="


def test_the_eascmd_form_saves_into_the_default_profile(easq: Easq) -> None:
    done = easq("stream", "config", f"--url={URL}", f"--token={TOKEN}", "--group", "g", "--user", "u")
    assert (done.status, done.text) == (0, "[OK] profile default saved\n")
    assert easq.config.read_text() == (
        'version = 1\nprofile = "default"\n\n[profiles.default]\n'
        f'url = "{URL}"\ntoken = "{TOKEN}"\ngroup = "g"\nuser = "u"\n'
    )
    assert stat.S_IMODE(easq.config.stat().st_mode) == 0o600
    assert stat.S_IMODE(easq.config.parent.stat().st_mode) == 0o700


def test_show_masks_the_token_and_says_where_values_come_from(easq: Easq) -> None:
    easq("config", "--url", URL, "--token", TOKEN)
    assert easq("config", "show").text == (
        f"profile : default\nurl : {URL}\ngroup : default_group\nuser : default_user\ntoken : ****Nj==\n"
    )
    shown = easq("config", "show", "--origin", "--user", "me", env={"EASQ_GROUP": "eg"})
    assert shown.text == (
        "profile : default (config file)\n"
        f"url : {URL} (profile default)\n"
        "group : eg (environment EASQ_GROUP)\n"
        "user : me (option --user)\n"
        "token : ****Nj== (profile default, token)\n"
    )
    assert f"token : {TOKEN}\n" in easq("config", "show", "--reveal").text
    assert easq("config", "show", "-o", "json").text == (
        f'{{"profile":"default","url":"{URL}","group":"default_group","user":"default_user","token":"****Nj=="}}\n'
    )
    assert easq("config", "show", "-o", "table").text.splitlines()[:2] == ["key\tvalue", "profile\tdefault"]


def test_what_says_how_to_predict_is_set_and_shown_with_its_origin(easq: Easq) -> None:
    values = {"url": "wss://h/a?x=1", "via": "modelarts", "endpoint": "https://h", "project": "p1"}
    values |= {"service": "s1", "refresh": "90s", "sign": "hmac"}
    for key, value in values.items():
        assert easq("config", "-p", "huawei", "set", key, value).status == 0
    shown = easq("-p", "huawei", "config", "show", "--origin", "--reveal").text
    for key, value in values.items():
        assert f"{key} : {value} (profile huawei)\n" in shown
    assert easq("config", "validate").status == 0


def test_config_alone_shows(easq: Easq) -> None:
    assert easq("config").text == "profile : default\ngroup : default_group\nuser : default_user\n"


def test_profiles_are_made_listed_used_and_removed(easq: Easq) -> None:
    assert easq("config", "-p", "prod", "--url", URL).text == "[OK] profile prod saved\n"
    assert easq("-p", "test", "config", "--url", "http://h/q").text == "[OK] profile test saved\n"
    assert easq("config", "list").text == f"* prod : {URL}\n  test : http://h/q\n"
    assert easq("config", "use", "test").text == "[OK] current profile: test\n"
    assert easq("config", "list").text == f"  prod : {URL}\n* test : http://h/q\n"
    assert easq("config", "set", "user", "me", "-p", "prod").text == "[OK] profile prod saved\n"
    assert easq("config", "show", "-p", "prod").text == (
        f"profile : prod\nurl : {URL}\ngroup : default_group\nuser : me\n"
    )
    assert easq("config", "unset", "user", "-p", "prod").text == "[OK] profile prod: user removed\n"
    assert easq("config", "rm", "prod", "-y").text == "[OK] profile prod removed\n"
    assert easq("config", "list", "-o", "json").text == (
        '{"profile":"test","url":"http://h/q","current":true}\n'
    )


def test_a_profile_is_removed_only_when_somebody_agrees(easq: Easq) -> None:
    easq("config", "--url", URL)
    done = easq("config", "rm", "default")
    assert done.status == 2
    assert done.err == "easq: not confirmed, and no terminal to ask on\nhint: -y confirms\n"
    asked = easq.terminal("config", "rm", "default")
    asked.expect_exact("remove profile default [y/N]")
    asked.sendline("n")
    assert finish(asked) == (2, "n\neasq: not confirmed: nothing was done\n")
    assert easq("config", "list").text == f"* default : {URL}\n"


def test_one_way_to_give_a_token_replaces_the_others(easq: Easq) -> None:
    easq("config", "--token", TOKEN)
    (easq.home / "t").touch(mode=0o600)
    (easq.home / "t").write_text(TOKEN)
    easq("config", "--token-file", "t")
    assert easq.config.read_text().splitlines()[3:] == [
        "[profiles.default]",
        f'token_file = "{easq.home}/t"',
    ]
    easq("config", "set", "token_cmd", "echo 'a b'")
    assert 'token_cmd = [\n    "echo",\n    "a b",\n]' in easq.config.read_text()
    assert "token_file" not in easq.config.read_text()
    assert "token : a b\n" in easq("config", "show", "--reveal").text
    assert "token : from command echo\n" in easq("config", "show").text


def test_a_token_can_be_given_on_stdin(easq: Easq) -> None:
    done = easq("config", "set", "token", "-", stdin=TOKEN.encode() + b"\n")
    assert (done.status, done.err) == (0, "")
    assert f"token : {TOKEN}\n" in easq("config", "show", "--reveal").text


@pytest.mark.parametrize(
    ("args", "status", "err"),
    [
        (
            ["set", "urll", "x"],
            13,
            "easq: unknown key 'urll' (did you mean 'url'?)\nhint: the keys are url, token, token_file, "
            "token_cmd, group, user, via, endpoint, service, project, refresh, sign\n",
        ),
        (["set", "url", ""], 2, "easq: url is empty\nhint: easq config unset url\n"),
        (["set", "user", "a b"], 2, "easq: user 'a b' is not 1-128 of A-Z a-z 0-9 . _ -\n"),
        (["set", "refresh", "0s"], 2, "easq: the refresh must be above 0\n"),
        (["set", "project", "a/b"], 2, "easq: project 'a/b' is not 1-128 of A-Z a-z 0-9 . _ -\n"),
        (["set", "sign", "md5"], 2, "easq: sign 'md5' is not one of auto, token, hmac, none\n"),
        (["set", "token_cmd", "'"], 2, 'easq: token_cmd "\'": No closing quotation\n'),
        (["unset", "user"], 13, "easq: profile default has no 'user'\n"),
        (["use", "defualt"], 13, None),
        (["rm", "nope", "-y"], 13, "easq: no profile 'nope'; known: default\nhint: easq config list\n"),
        (["-p", "a/b", "--url", URL], 13, "easq: profile name 'a/b' is not 1-128 of A-Z a-z 0-9 . _ -\n"),
    ],
)
def test_what_cannot_be_configured_is_refused_and_nothing_changes(
    easq: Easq, args: list[str], status: int, err: str | None
) -> None:
    easq("config", "--url", URL)
    before = easq.config.read_text()
    done = easq("config", *args)
    assert (done.status, done.out) == (status, b"")
    expected = (
        err
        or "easq: no profile 'defualt' (did you mean 'default'?); known: default\nhint: easq config list\n"
    )
    assert done.err == expected
    assert easq.config.read_text() == before


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("nofile", "token file {home}/nofile: No such file or directory (to be saved)"),
        ("empty", "the token is empty (to be saved)"),
        ("utf16", "token file {home}/utf16: it is UTF-16: save it as UTF-8 (to be saved)"),
        ("latin1", "token file {home}/latin1: not UTF-8 at byte 1 (to be saved)"),
        (
            ".",
            "token file . is not a regular file\nhint: use token_cmd for a token that can be read only once",
        ),
    ],
)
def test_a_token_file_that_gives_no_token_is_not_saved(easq: Easq, name: str, problem: str) -> None:
    for file, data in (("empty", b"\n"), ("utf16", TOKEN.encode("utf-16")), ("latin1", b"t\xe4")):
        (easq.home / file).write_bytes(data)
        (easq.home / file).chmod(0o600)
    for args in (["--token-file", name], ["set", "token_file", name]):
        done = easq("config", *args)
        assert (done.status, done.out) == (13, b"")
        assert done.err == f"easq: {problem.format(home=easq.home)}\n"
    assert not easq.config.exists()


def test_the_name_of_a_token_file_is_saved_without_parents_and_with_its_links(easq: Easq) -> None:
    (easq.home / "real" / "below").mkdir(parents=True)
    (easq.home / "real" / "tok").write_text(TOKEN)
    (easq.home / "real" / "tok").chmod(0o600)
    (easq.home / "link").symlink_to("real/below")
    (easq.home / "current").symlink_to("real")
    easq("config", "--token-file", "link/../tok")
    assert f'token_file = "{easq.home}/real/tok"' in easq.config.read_text()
    easq("config", "--token-file", "./current/tok")
    assert f'token_file = "{easq.home}/current/tok"' in easq.config.read_text()
    easq("config", "--token-file", "~/real/tok")
    assert 'token_file = "~/real/tok"' in easq.config.read_text()
    assert f"token : {TOKEN}\n" in easq("config", "show", "--reveal").text


def test_a_name_that_is_not_utf_8_is_refused_and_shown(easq: Easq) -> None:
    """The configuration cannot hold it; where nothing is saved it is used like any other, and printed as it is."""
    (easq.home / os.fsdecode(b"tok\xff")).write_text(TOKEN)
    done = easq("config", "--token-file", b"tok\xff")
    assert (done.status, done.out) == (2, b"")
    assert done.err == ("easq: token_file is not UTF-8: 'tok\\udcff'\n")
    assert easq("config", "set", "token_cmd", b"pass \xff").status == 2
    path = os.fsencode(easq.home) + b"/c\xff"
    assert easq("config", "path", env={"EASQ_CONFIG": os.fsdecode(path)}).out == path + b"\n"
    assert not easq.config.exists()


def test_a_byte_order_mark_is_no_part_of_a_configuration_or_a_token(easq: Easq) -> None:
    easq.config.parent.mkdir(parents=True, mode=0o700)
    (easq.home / "t").write_text(f"\ufeff{TOKEN}\r\n")
    (easq.home / "t").chmod(0o600)
    easq.config.touch(mode=0o600)
    easq.config.write_text(f'\ufeff[profiles.default]\r\nurl = "{URL}"\r\ntoken_file = "{easq.home}/t"\r\n')
    done = easq("config", "show", "--reveal")
    assert (done.status, done.err) == (0, "")
    assert f"url : {URL}\n" in done.text
    assert f"token : {TOKEN}\n" in done.text
    assert easq("config", "set", "token", "-", stdin=f"\ufeff{TOKEN}\r\n".encode()).status == 0
    assert f"token : {TOKEN}\n" in easq("config", "show", "--reveal").text
    easq("config", "set", "token_cmd", f"cat {easq.home}/t")
    assert f"token : {TOKEN}\n" in easq("config", "show", "--reveal").text
    easq.config.write_text("version = 1\n", encoding="utf-16")
    done = easq("config", "show")
    assert (done.status, done.err) == (13, f"easq: {easq.config}: it is UTF-16: save it as UTF-8\n")


def test_a_file_that_is_not_there_is_not_valid(easq: Easq) -> None:
    done = easq("config", "validate")
    assert (done.status, done.out) == (13, b"")
    assert done.err == (
        f"easq: {easq.config} is not there\nhint: create it with easq config --url URL --token-file FILE\n"
    )


@pytest.mark.parametrize("url", ["h/q", "http://h h/q", "http://u:pw@h/q", "http://h/q?x=1"])
def test_a_url_that_is_none_is_not_saved(easq: Easq, url: str) -> None:
    done = easq("config", "--url", url)
    assert (done.status, done.out) == (13, b"")
    assert not easq.config.exists()


def test_a_malformed_file_is_named_with_its_line(easq: Easq) -> None:
    easq.config.parent.mkdir(parents=True)
    easq.config.write_text("version = 1\nprofile = \n")
    easq.config.chmod(0o600)
    done = easq("info")
    assert (done.status, done.out) == (13, b"")
    assert done.err.startswith(f"easq: {easq.config}: Invalid value (at line 2, column 11)\n")


def test_a_file_open_to_others_is_warned_about(queue: Easq) -> None:
    queue.config.chmod(0o644)
    done = queue("info", "--field", "stream.length")
    assert (done.status, done.text) == (0, "0\n")
    assert done.err == (
        f"easq: warning: {queue.config} is open to others (mode 0644): chmod 600 {queue.config}\n"
    )


def test_an_unknown_profile_names_the_known_ones(easq: Easq) -> None:
    easq("config", "-p", "prod", "--url", URL)
    done = easq("info", env={"EASQ_PROFILE": "pord"})
    assert done.status == 13
    assert done.err == "easq: no profile 'pord' (did you mean 'prod'?); known: prod\nhint: easq config list\n"


def test_path_names_the_file(easq: Easq) -> None:
    assert easq("config", "path").text == f"{easq.config}\n"
    assert easq("config", "path", env={"EASQ_CONFIG": "/x/y"}).text == "/x/y\n"


def test_validate_says_what_is_wrong_and_whether_the_queue_answers(queue: Easq, url: str) -> None:
    name = url.rpartition("/")[2]
    assert queue("config", "validate", "--connect").text == f"[OK] {queue.config}\n[OK] {name} answers\n"
    queue.config.write_text('[profiles.default]\nurl = "nohost"\nuser = 3\nx = 1\n')
    done = queue("config", "validate")
    assert (done.status, done.out) == (13, b"")
    assert done.err == (
        f"easq: warning: {queue.config}: profiles.default: unknown key 'x'\n"
        f"easq: warning: {queue.config}: profiles.default: user must be text, not int\n"
        f"easq: warning: {queue.config}: profiles.default: the url nohost does not begin with http:// or https://\n"
        f"easq: 3 problems in {queue.config}\n"
    )


@pytest.mark.parametrize(
    "option", [("--header", "a: b"), ("--cacert", "x"), ("--insecure",), ("--connect-timeout", "1s")]
)
def test_what_no_profile_holds_is_said_not_to_be_saved(easq: Easq, option: tuple[str, ...]) -> None:
    done = easq("config", *option)
    assert (done.status, done.out) == (2, b"")
    assert done.err.startswith(f"easq: {option[0]}: a profile does not hold it\nhint: ")
    done = easq("config", "--url", "http://h/x", *option)
    assert (done.status, done.text) == (0, "[OK] profile default saved\n")
    assert done.err == f"easq: warning: {option[0]}: a profile does not hold it; not saved\n"


@pytest.mark.parametrize("url", ["127.0.0.1:4030/x", "localhost:4030/x", "h"])
def test_an_address_without_its_scheme_is_told_so(easq: Easq, url: str) -> None:
    done = easq("info", "--url", url)
    assert done.status == 13
    assert done.err.startswith(f"easq: the url {url} does not begin with http:// or https://\n")
