"""Profiles in one TOML file: find, load, save, and say where each value came from.

The file is `$XDG_CONFIG_HOME/easq/config.toml` or what EASQ_CONFIG names:

    version = 1
    profile = "local"            # the current one

    [profiles.local]
    url   = "http://127.0.0.1:3030/api/predict/qservice"
    token = "…"                  # or token_file = "~/x.token", or token_cmd = ["pass", "show", "x"]

Keys that easq does not know are named in a warning and survive a save.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from easq.config.keys import (
    BUILT_IN,
    ENVIRONMENT,
    KEYS,
    TOKEN_KEYS,
    check_profile_name,
    did_you_mean,
    type_problem,
    values_problems,
)
from easq.errors import ConfigError
from easq.net import files

if TYPE_CHECKING:
    import subprocess

#: the profile that is used and written where nothing names one
DEFAULT_PROFILE = "default"

#: the layout of the file that this easq reads and writes
VERSION = 1

#: bytes; thousands of profiles fit in it
MAX_BYTES = 1024 * 1024

#: bytes; a token is far smaller, and a wrong path should not fill the memory
MAX_TOKEN_BYTES = 64 * 1024

#: seconds a token_cmd may take: a person may have to unlock a key first
TOKEN_CMD_TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True)
class Value:
    """A setting and where it came from, in words."""

    value: str
    origin: str


@dataclass(frozen=True, slots=True)
class TokenSource:
    """Where the token is to be had: the text itself, a file or a command; read when a token is needed."""

    kind: str  # "token", "token_file" or "token_cmd"
    value: str | tuple[str, ...] = field(repr=False)
    origin: str


@dataclass(frozen=True, slots=True)
class Config:
    """The file as it was read: unchanged by easq, every change makes a new one."""

    path: Path
    document: Mapping[str, Any] = field(default_factory=dict, repr=False)
    warnings: tuple[str, ...] = ()

    @property
    def profiles(self) -> Mapping[str, Mapping[str, Any]]:
        """Name -> what the file says under it."""
        profiles: Mapping[str, Mapping[str, Any]] = self.document.get("profiles", {})
        return profiles

    @property
    def current(self) -> str:
        """The profile that the file names as current, or the default one."""
        return str(self.document.get("profile", DEFAULT_PROFILE))

    def profile(self, name: str) -> Mapping[str, Any]:
        """What stands under `name`, its types checked. Raises ConfigError where there is no such profile."""
        if name not in self.profiles:
            raise _unknown_profile(self, name)
        for key, value in self.profiles[name].items():
            problem = type_problem(key, value)
            if problem:
                raise ConfigError(f"{self.path}: profiles.{name}: {problem}", hint="easq config validate")
        return self.profiles[name]

    def with_values(self, name: str, values: Mapping[str, object]) -> Config:
        """The same with `values` in profile `name`, which is made where there is none; None removes a key."""
        check_profile_name(name)
        profile = dict(self.profiles.get(name, {}))
        for key, value in values.items():
            profile.pop(key, None)
            if value is not None:
                profile[key] = value
        return self._with(profiles={**self.profiles, name: profile})

    def with_current(self, name: str) -> Config:
        """The same with `name` as the current profile. Raises ConfigError where there is no such profile."""
        self.profile(name)
        return self._with(profile=name)

    def without_profile(self, name: str) -> Config:
        """The same without profile `name`; if it was the current one, none is."""
        self.profile(name)
        rest = {other: values for other, values in self.profiles.items() if other != name}
        config = self._with(profiles=rest)
        if config.document.get("profile") != name:
            return config
        return replace(config, document={k: v for k, v in config.document.items() if k != "profile"})

    def _with(self, **values: object) -> Config:
        return replace(self, document={"version": VERSION, **self.document, **values})


@dataclass(frozen=True, slots=True)
class Resolved:
    """What holds for one run: from the option, else the environment, else the profile, else built in."""

    profile: Value
    values: Mapping[str, Value]
    token: TokenSource | None

    def get(self, key: str) -> str:
        """The value of `key`, empty when nothing gives one."""
        return self.values[key].value if key in self.values else ""


def config_path(environ: Mapping[str, str]) -> Path:
    """Where the file is, or would be."""
    if environ.get("EASQ_CONFIG"):
        return _expanded(environ["EASQ_CONFIG"])
    return easq_folder(environ, "XDG_CONFIG_HOME", ".config") / "config.toml"


def easq_folder(environ: Mapping[str, str], variable: str, below_home: str) -> Path:
    """Where easq keeps files of one kind: in the folder that `variable` names, else in `below_home` of one's home.

    Raises ConfigError where nothing says where that is.
    """
    base = Path(environ.get(variable, ""))
    if not base.is_absolute():  # the XDG rule: a relative path is ignored
        home = environ.get("HOME") or os.path.expanduser("~")
        if home == "~":
            raise ConfigError(
                f"no home folder is known: HOME is not set, and user {os.getuid()} has none",
                hint=f"set HOME or {variable}",
            )
        base = Path(home) / below_home
    return base / "easq"


def _expanded(path: str) -> Path:
    """`path` with the home that a `~` stands for; where nobody has one, it is the name of a file like others."""
    return Path(os.path.expanduser(path))


def load(path: Path) -> Config:
    """The file at `path`, empty where there is none; warnings say what is unsafe or unknown in it.

    Raises ConfigError for what cannot be read as a configuration.
    """
    try:
        data, status = files.read_regular(path, MAX_BYTES)
        warnings = files.exposure(path, status)
        if stat.S_ISREG(status.st_mode):
            warnings += files.exposure(path.parent, os.stat(path.parent))
        text = data.decode("utf-8-sig")  # editors on Windows write a byte order mark
    except FileNotFoundError:
        return Config(path)
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: {_encoding_problem(data, error.start)}") from error
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    import tomllib

    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: {error}", hint="mend the file by hand, or move it away") from error
    _check_document(path, document)
    config = Config(path, document)
    unknown = tuple(f"{path}: {problem}" for problem in _unknown_keys(document))
    return replace(config, warnings=(*warnings, *unknown))


def _encoding_problem(data: bytes, position: int) -> str:
    """Return the message for a file that is not UTF-8 at the byte `position`."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "it is UTF-16: save it as UTF-8"
    return f"not UTF-8 at byte {position}"


def save(config: Config) -> None:
    """The file holds `config`, whole and readable by nobody else; on ConfigError it is as it was."""
    import tomli_w

    try:
        files.make_private_folder(config.path.parent)
        files.replace(config.path, tomli_w.dumps(dict(config.document)).encode())
    except OSError as error:
        raise _unsaved(config.path, error) from error


def edit(path: Path, change: Callable[[Config], Config]) -> Config:
    """The file at `path` holds what `change` makes of it; runs that change it at the same time wait for each other.

    Raises ConfigError, and what `change` raises; then it is as it was.
    """
    try:
        files.make_private_folder(path.parent)
        # lock the folder of the real file, so that a run that uses another link to it waits too
        folder = files.real_path(path).parent
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise _unsaved(path, error) from error
    try:
        with contextlib.suppress(OSError):  # some file systems know no locks
            files.lock(lock, wait=True)
        changed = change(load(path))
        save(changed)
    finally:
        os.close(lock)
    return changed


def _unsaved(path: Path, error: OSError) -> ConfigError:
    return ConfigError(f"{path}: cannot save: {error.strerror}")


def _check_document(path: Path, document: Mapping[str, Any]) -> None:
    version = document.get("version", VERSION)
    if version != VERSION:
        raise ConfigError(
            f"{path}: version {version!r} is not known here, only {VERSION}", hint="a newer easq"
        )
    if not isinstance(document.get("profile", ""), str):
        raise ConfigError(f"{path}: profile must be text, not {document['profile']!r}")
    profiles = document.get("profiles", {})
    if not isinstance(profiles, dict):
        raise ConfigError(f"{path}: profiles must be tables, [profiles.NAME]")
    for name, values in profiles.items():
        if not isinstance(values, dict):
            raise ConfigError(f"{path}: profiles.{name} must be a table, [profiles.{name}]")


def _unknown_keys(document: Mapping[str, Any]) -> list[str]:
    problems = [
        f"unknown key {key!r}{did_you_mean(key, ('version', 'profile', 'profiles'))}"
        for key in document
        if key not in ("version", "profile", "profiles")
    ]
    for name, values in document.get("profiles", {}).items():
        problems += [
            f"profiles.{name}: unknown key {key!r}{did_you_mean(key, KEYS)}"
            for key in values
            if key not in KEYS
        ]
    return problems


def problems(config: Config) -> list[str]:
    """Everything that is wrong in the file, one line each; an empty list when nothing is."""
    found = list(config.warnings)
    for name, values in config.profiles.items():
        where = f"{config.path}: profiles.{name}"
        found += [f"{where}: {problem}" for problem in values_problems(values)]
    if "profile" in config.document and config.current not in config.profiles:
        found.append(f"{config.path}: profile {config.current!r} is not there")
    return found


def _unknown_profile(config: Config, name: str) -> ConfigError:
    known = sorted(config.profiles)
    if not known:
        return ConfigError(
            f"no profile {name!r}: {config.path} has none", hint="easq config --url URL --token-file FILE"
        )
    return ConfigError(
        f"no profile {name!r}{did_you_mean(name, known)}; known: {', '.join(known)}",
        hint="easq config list",
    )


def chosen_profile(config: Config, options: Mapping[str, Any], environ: Mapping[str, str]) -> Value:
    """The name of the profile in use: option, environment, the file's own word, or the built-in name."""
    if options.get("profile"):
        return Value(str(options["profile"]), "option --profile")
    if environ.get("EASQ_PROFILE"):
        return Value(environ["EASQ_PROFILE"], "environment EASQ_PROFILE")
    if "profile" in config.document:
        return Value(config.current, "config file")
    return Value(DEFAULT_PROFILE, "built-in")


def resolve(config: Config, options: Mapping[str, Any], environ: Mapping[str, str]) -> Resolved:
    """What holds for this run. Raises ConfigError for a profile that is named and not there."""
    name = chosen_profile(config, options, environ)
    if name.origin == "built-in" and name.value not in config.profiles:
        profile: Mapping[str, Any] = {}
    else:
        profile = config.profile(name.value)
    values = {}
    for key in KEYS:
        if key in TOKEN_KEYS:
            continue
        if options.get(key) not in (None, ""):  # a duration of 0 is given, and refused where it is used
            values[key] = Value(str(options[key]), f"option --{key.replace('_', '-')}")
        elif environ.get(ENVIRONMENT.get(key, "")):
            values[key] = Value(environ[ENVIRONMENT[key]], f"environment {ENVIRONMENT[key]}")
        elif profile.get(key):
            values[key] = Value(profile[key], f"profile {name.value}")
        elif key in BUILT_IN:
            values[key] = Value(BUILT_IN[key], "built-in")
    return Resolved(name, values, token_source(name.value, profile, options, environ))


def token_source(
    name: str, profile: Mapping[str, Any], options: Mapping[str, Any], environ: Mapping[str, str]
) -> TokenSource | None:
    """The first that is given: --token-file, --token, token_cmd, environment, profile.

    A command in the profile stands before the environment: who set it up meant no token to lie around.
    """
    for key in ("token_file", "token"):
        if options.get(key):
            return TokenSource(key, str(options[key]), f"option --{key.replace('_', '-')}")
    if profile.get("token_cmd"):
        return TokenSource("token_cmd", tuple(profile["token_cmd"]), f"profile {name}, token_cmd")
    for key in ("token_file", "token"):
        if environ.get(ENVIRONMENT[key]):
            return TokenSource(key, environ[ENVIRONMENT[key]], f"environment {ENVIRONMENT[key]}")
    for key in ("token_file", "token"):
        if profile.get(key):
            return TokenSource(key, profile[key], f"profile {name}, {key}")
    return None


def read_token(source: TokenSource | None, *, warn: Callable[[str], None] = lambda _text: None) -> str:
    """Return the token, empty without a source; call `warn` for a token file that other users may read.

    Raises ConfigError where the source gives none.
    """
    if source is None:
        return ""
    if source.kind == "token":
        token = str(source.value)
    elif source.kind == "token_file":
        token = _token_of_file(_expanded(str(source.value)), source.origin, warn)
    else:
        token = _token_of_command(tuple(source.value), source.origin)
    if not token:
        raise ConfigError(f"the token is empty ({source.origin})")
    if not token.isascii() or not token.isprintable():
        raise ConfigError(f"the token holds characters that no header may carry ({source.origin})")
    return token


def _token_of_file(path: Path, origin: str, warn: Callable[[str], None]) -> str:
    try:
        with open(path, "rb") as file:  # a pipe is allowed: --token-file <(pass show eas)
            data = file.read(MAX_TOKEN_BYTES + 1)
            warnings = files.exposure(path, os.fstat(file.fileno()))
    except (OSError, ValueError) as error:  # the latter for a NUL in the name
        raise ConfigError(f"token file {path}: {getattr(error, 'strerror', error)} ({origin})") from error
    if len(data) > MAX_TOKEN_BYTES:
        raise ConfigError(f"token file {path} is larger than {MAX_TOKEN_BYTES} bytes ({origin})")
    for text in warnings:
        warn(f"token file {text}")
    try:
        return data.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise ConfigError(f"token file {path}: {_encoding_problem(data, error.start)} ({origin})") from error


def _token_of_command(argv: tuple[str, ...], origin: str) -> str:
    """The first line that the command prints; no shell runs it, and stdin, maybe payload, is not its."""
    import subprocess
    import time

    from easq.redact import child_environ

    end = time.monotonic() + TOKEN_CMD_TIMEOUT_S
    try:
        with subprocess.Popen(
            argv, env=child_environ(os.environ), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
        ) as process:
            try:
                data = _read_until(process, end)
                status = process.wait(max(0.0, end - time.monotonic()))
            except BaseException:
                process.kill()
                raise
    except (OSError, ValueError) as error:  # the latter for a NUL in a word
        why = getattr(error, "strerror", error)
        raise ConfigError(f"token_cmd {argv[0]!r} cannot start: {why} ({origin})") from error
    except subprocess.TimeoutExpired as error:
        raise ConfigError(
            f"token_cmd {argv[0]!r} took more than {TOKEN_CMD_TIMEOUT_S:.0f} s ({origin})"
        ) from error
    if len(data) > MAX_TOKEN_BYTES:
        raise ConfigError(f"token_cmd {argv[0]!r} printed more than {MAX_TOKEN_BYTES} bytes ({origin})")
    if status != 0:
        raise ConfigError(f"token_cmd {argv[0]!r} failed with status {status} ({origin})")
    return data.decode("utf-8-sig", "replace").strip().partition("\n")[0].strip()


def _read_until(process: subprocess.Popen[bytes], end: float) -> bytes:
    """Return what the command prints until it closes its stdout. A command that prints too much is killed."""
    import select
    import subprocess
    import time

    assert process.stdout is not None, "it is a pipe"
    data = b""
    while len(data) <= MAX_TOKEN_BYTES:
        left_s = end - time.monotonic()
        if left_s <= 0 or not select.select([process.stdout], [], [], left_s)[0]:
            raise subprocess.TimeoutExpired(process.args, TOKEN_CMD_TIMEOUT_S)
        piece = os.read(process.stdout.fileno(), 65536)
        if not piece:
            return data
        data += piece
    process.kill()
    return data
