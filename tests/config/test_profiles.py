"""Profiles: reading, writing, and refused files."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest

from easq.config import profiles
from easq.errors import ConfigError
from easq.net import files
from tests.support.nodes import NODES, ZERO, look, make_device


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "easq" / "config.toml"


def write(path: Path, text: str, mode: int = 0o600) -> Path:
    path.parent.mkdir(mode=0o700, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)
    return path


def test_a_missing_file_is_an_empty_configuration(path: Path) -> None:
    loaded = profiles.load(path)
    assert (loaded.profiles, loaded.current, loaded.warnings) == ({}, "default", ())


def test_what_is_saved_is_read_back(path: Path) -> None:
    profiles.save(
        profiles.load(path).with_values("local", {"url": "http://h/q", "token": "t"}).with_current("local")
    )
    loaded = profiles.load(path)
    assert loaded.current == "local"
    assert loaded.profile("local") == {"url": "http://h/q", "token": "t"}
    assert loaded.warnings == ()


@pytest.mark.parametrize("umask", [0o000, 0o777, 0o022])
def test_file_and_folder_are_ours_alone_whatever_the_umask(path: Path, umask: int) -> None:
    old = os.umask(umask)
    try:
        profiles.save(profiles.load(path).with_values("a", {"token": "t"}))
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert os.listdir(path.parent) == ["config.toml"]


def test_a_file_that_others_could_read_is_closed_by_a_save(path: Path) -> None:
    write(path, 'profile = "a"\n[profiles.a]\ntoken = "t"\n', 0o644)
    profiles.save(profiles.load(path).with_values("a", {"user": "u"}))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_link_of_ours_leads_to_the_file_that_is_written(path: Path, tmp_path: Path) -> None:
    """As in a folder of dotfiles: the link stays a link."""
    target = tmp_path / "dotfiles.toml"
    target.write_text("[profiles.b]\n")
    path.parent.mkdir(mode=0o700)
    path.symlink_to(target)
    profiles.edit(path, lambda found: found.with_values("a", {"token": "secret"}))
    assert path.is_symlink()
    assert sorted(profiles.load(target).profiles) == ["a", "b"]
    assert stat.S_IMODE(target.stat().st_mode) == 0o600


@pytest.mark.parametrize("kind", NODES)
def test_what_is_no_regular_file_is_no_configuration_and_stays_what_it_is(path: Path, kind: str) -> None:
    """A FIFO in its place is not waited for, and a device not replaced."""
    path.parent.mkdir(mode=0o700)
    NODES[kind](path)
    before = look(path)
    with pytest.raises(ConfigError, match=f"it is a {kind}"):
        profiles.edit(path, lambda found: found.with_values("a", {"group": "g"}))
    if kind != "device":  # that of the tests is the null device, an empty configuration
        with pytest.raises(ConfigError, match=f"it is a {kind}"):
            profiles.load(path)
    assert look(path) == before


def test_an_endless_configuration_is_not_read(path: Path) -> None:
    path.parent.mkdir(mode=0o700)
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ConfigError, match="it is larger than 1048576 bytes"):
        profiles.load(path)
    path.unlink()
    make_device(path, ZERO)
    with pytest.raises(ConfigError, match="it is a device"):
        profiles.load(path)


@pytest.mark.parametrize("umask", [0o000, 0o777])
def test_folders_above_that_had_to_be_made_are_ours_alone(tmp_path: Path, umask: int) -> None:
    old = os.umask(umask)
    try:
        profiles.edit(
            tmp_path / ".config" / "easq" / "config.toml",
            lambda found: found.with_values("a", {"token": "t"}),
        )
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / ".config").stat().st_mode) == 0o700


def test_a_folder_in_which_others_can_replace_the_file_is_warned_about(path: Path) -> None:
    folder = write(path, "").parent
    folder.chmod(0o777)
    assert profiles.load(path).warnings == (f"{folder} is open to others (mode 0777): chmod 700 {folder}",)


def test_changes_at_the_same_time_are_all_kept(path: Path) -> None:
    writers, rounds = 8, 5
    ready = threading.Barrier(writers)

    def write_some(writer: int) -> None:
        ready.wait()
        for number in range(rounds):
            name = f"p{writer}-{number}"
            profiles.edit(path, lambda found, name=name: found.with_values(name, {"url": "http://h/q"}))

    threads = [threading.Thread(target=write_some, args=(writer,)) for writer in range(writers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(profiles.load(path).profiles) == writers * rounds


def test_a_change_that_cannot_be_made_changes_nothing(path: Path) -> None:
    write(path, "[profiles.a]\n")
    with pytest.raises(ConfigError, match="no profile 'b'"):
        profiles.edit(path, lambda found: found.with_current("b"))
    assert path.read_text() == "[profiles.a]\n"


def test_a_save_that_fails_leaves_the_old_file_and_no_draft(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(path, '[profiles.a]\nurl = "http://old/q"\n')

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ConfigError, match="cannot save: No space left on device"):
        profiles.save(profiles.load(path).with_values("a", {"url": "http://new/q"}))
    assert profiles.load(path).profile("a") == {"url": "http://old/q"}
    assert os.listdir(path.parent) == ["config.toml"]


def test_a_file_open_to_others_is_warned_about(path: Path) -> None:
    write(path, "", 0o640)
    assert profiles.load(path).warnings == (f"{path} is open to others (mode 0640): chmod 600 {path}",)


def test_unknown_keys_are_named_and_survive_a_save(path: Path) -> None:
    write(path, 'theme = "dark"\n[profiles.a]\nurll = "http://h/q"\n[profiles.a.deep]\nx = [1, 2]\n')
    loaded = profiles.load(path)
    assert loaded.warnings == (
        f"{path}: unknown key 'theme'",
        f"{path}: profiles.a: unknown key 'urll' (did you mean 'url'?)",
        f"{path}: profiles.a: unknown key 'deep'",
    )
    profiles.save(loaded.with_values("a", {"user": "u"}))
    again = profiles.load(path)
    assert again.document["theme"] == "dark"
    assert again.profile("a") == {"urll": "http://h/q", "deep": {"x": [1, 2]}, "user": "u"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a = 1\nb = = 2\n", "Invalid value (at line 2, column 5)"),
        ("version = 2\n", "version 2 is not known here, only 1"),
        ("profile = 3\n", "profile must be text, not 3"),
        ("profiles = 3\n", "profiles must be tables, [profiles.NAME]"),
        ("[profiles]\na = 3\n", "profiles.a must be a table, [profiles.a]"),
    ],
)
def test_what_is_no_configuration_is_refused_with_the_place(path: Path, text: str, message: str) -> None:
    write(path, text)
    with pytest.raises(ConfigError) as caught:
        profiles.load(path)
    assert caught.value.message == f"{path}: {message}"


def test_a_file_that_is_not_utf8_is_refused(path: Path) -> None:
    write(path, "")
    path.write_bytes(b'a = "\xff"\n')
    with pytest.raises(ConfigError, match="not UTF-8 at byte 5"):
        profiles.load(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("url = 3", "url must be text, not int"),
        ("token = 123456789", "token must be text, not int"),
        ('token_cmd = "pass show x"', 'token_cmd must be a list of texts, ["pass", "show", "x"]'),
        ("token_cmd = []", 'token_cmd must be a list of texts, ["pass", "show", "x"]'),
    ],
)
def test_a_wrong_type_is_named_without_the_value(path: Path, text: str, message: str) -> None:
    loaded = profiles.load(write(path, f"[profiles.a]\n{text}\n"))
    with pytest.raises(ConfigError) as caught:
        loaded.profile("a")
    assert caught.value.message == f"{path}: profiles.a: {message}"
    assert profiles.problems(loaded) == [f"{path}: profiles.a: {message}"]


def test_an_unknown_profile_names_the_known_ones(path: Path) -> None:
    loaded = profiles.load(write(path, "[profiles.prod]\n[profiles.local]\n"))
    with pytest.raises(ConfigError) as caught:
        profiles.resolve(loaded, {"profile": "prd"}, {})
    assert caught.value.message == "no profile 'prd' (did you mean 'prod'?); known: local, prod"
    with pytest.raises(ConfigError, match="no profile 'zzz'; known: local, prod"):
        profiles.resolve(loaded, {}, {"EASQ_PROFILE": "zzz"})


def test_each_value_comes_from_option_then_environment_then_profile_then_built_in(path: Path) -> None:
    loaded = profiles.load(
        write(path, 'profile = "a"\n[profiles.a]\nurl = "http://p/q"\ngroup = "pg"\nendpoint = "http://e"\n')
    )
    resolved = profiles.resolve(loaded, {"url": "http://o/q"}, {"EASQ_URL": "http://e/q", "EASQ_GROUP": "eg"})
    assert resolved.profile == profiles.Value("a", "config file")
    assert resolved.values == {
        "url": profiles.Value("http://o/q", "option --url"),
        "group": profiles.Value("eg", "environment EASQ_GROUP"),
        "user": profiles.Value("default_user", "built-in"),
        "endpoint": profiles.Value("http://e", "profile a"),
    }


def test_the_token_comes_from_the_first_source_that_is_given() -> None:
    cmd = {"token_cmd": ["c"], "token_file": "f", "token": "t"}
    environ = {"EASQ_TOKEN": "et", "EASQ_TOKEN_FILE": "ef"}
    order = [
        ({"token_file": "of", "token": "ot"}, environ, cmd, "option --token-file"),
        ({"token": "ot"}, environ, cmd, "option --token"),
        ({}, environ, cmd, "profile a, token_cmd"),
        ({}, environ, {"token": "t"}, "environment EASQ_TOKEN_FILE"),
        ({}, {"EASQ_TOKEN": "et"}, {"token": "t"}, "environment EASQ_TOKEN"),
        ({}, {}, {"token_file": "f", "token": "t"}, "profile a, token_file"),
        ({}, {}, {"token": "t"}, "profile a, token"),
    ]
    for options, env, profile, origin in order:
        loaded = profiles.Config(Path("x"), {"profile": "a", "profiles": {"a": profile}})
        source = profiles.resolve(loaded, options, env).token
        assert source is not None
        assert source.origin == origin
    assert profiles.resolve(profiles.Config(Path("x")), {}, {}).token is None


def test_a_removed_profile_is_gone_and_no_longer_current(path: Path) -> None:
    loaded = profiles.load(write(path, 'profile = "a"\n[profiles.a]\n[profiles.b]\n'))
    left = loaded.without_profile("a")
    assert (list(left.profiles), left.current) == (["b"], "default")


def test_problems_are_all_listed(path: Path) -> None:
    write(path, 'profile = "gone"\n[profiles.a]\ntoken = "x"\ntoken_file = "y"\nuser = "a b"\n')
    assert profiles.problems(profiles.load(path)) == [
        f"{path}: profiles.a: token and token_file are both given",
        f"{path}: profiles.a: user 'a b' is not 1-128 of A-Z a-z 0-9 . _ -",
        f"{path}: profile 'gone' is not there",
    ]


def test_the_place_of_the_file() -> None:
    assert profiles.config_path({"EASQ_CONFIG": "/x/c.toml", "HOME": "/h"}) == Path("/x/c.toml")
    assert profiles.config_path({"XDG_CONFIG_HOME": "/x", "HOME": "/h"}) == Path("/x/easq/config.toml")
    assert profiles.config_path({"XDG_CONFIG_HOME": "rel", "HOME": "/h"}) == Path(
        "/h/.config/easq/config.toml"
    )


@pytest.mark.parametrize(
    ("environ", "folder"),
    [
        ({"XDG_CACHE_HOME": "/c", "HOME": "/h"}, "/c/easq"),
        ({"XDG_CACHE_HOME": "c", "HOME": "/h"}, "/h/.cache/easq"),
        ({"HOME": "/h"}, "/h/.cache/easq"),
    ],
)
def test_the_folder_of_other_files(environ: dict[str, str], folder: str) -> None:
    assert files.easq_folder(environ, "XDG_CACHE_HOME", ".cache") == Path(folder)


def test_who_has_no_home_is_told_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOME", raising=False)
    # what Python does for a user that the system does not know
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    with pytest.raises(ConfigError) as caught:
        profiles.config_path({})
    assert caught.value.message.startswith("no home folder is known: HOME is not set, and user ")
    assert caught.value.hint == "set HOME or XDG_CONFIG_HOME"


def test_the_home_of_nobody_is_the_name_of_a_file() -> None:
    assert profiles.config_path({"EASQ_CONFIG": "~nobody-of-that-name/c"}) == Path("~nobody-of-that-name/c")
