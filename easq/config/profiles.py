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
from typing import TYPE_CHECKING, Any, NamedTuple

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
from easq.config.tokens import TokenSource, encoding_problem, token_source
from easq.errors import ConfigError
from easq.net import files

if TYPE_CHECKING:
    pass

#: the profile that is used and written if none is named
DEFAULT_PROFILE = "default"

#: the version of the file that this easq reads and writes
VERSION = 1

#: bytes; thousands of profiles fit in it
MAX_BYTES = 1024 * 1024


class Value(NamedTuple):
    """A setting and its origin, as text."""

    value: str
    origin: str


@dataclass(frozen=True, slots=True)
class Config:
    """The file as it was read. Immutable: every change makes a new one."""

    path: Path
    document: Mapping[str, Any] = field(default_factory=dict, repr=False)
    warnings: tuple[str, ...] = ()

    @property
    def profiles(self) -> Mapping[str, Mapping[str, Any]]:
        """The profiles by name."""
        profiles: Mapping[str, Mapping[str, Any]] = self.document.get("profiles", {})
        return profiles

    @property
    def current(self) -> str:
        """The name of the current profile, or of the default one."""
        return str(self.document.get("profile", DEFAULT_PROFILE))

    def profile(self, name: str) -> Mapping[str, Any]:
        """Return the profile `name`, its types checked. Raises ConfigError if there is none."""
        if name not in self.profiles:
            if not self.profiles:
                hint = "easq config --url URL --token-file FILE"
                raise ConfigError(f"no profile {name!r}: {self.path} has none", hint=hint)
            known = sorted(self.profiles)
            text = f"no profile {name!r}{did_you_mean(name, known)}; known: {', '.join(known)}"
            raise ConfigError(text, hint="easq config list")
        for key, value in self.profiles[name].items():
            problem = type_problem(key, value)
            if problem:
                raise ConfigError(f"{self.path}: profiles.{name}: {problem}", hint="easq config validate")
        return self.profiles[name]

    def with_values(self, name: str, values: Mapping[str, object]) -> Config:
        """Return a copy with `values` in profile `name`, made if there is none; None removes a key."""
        check_profile_name(name)
        profile = dict(self.profiles.get(name, {}))
        for key, value in values.items():
            profile.pop(key, None)
            if value is not None:
                profile[key] = value
        return self._with(profiles={**self.profiles, name: profile})

    def with_current(self, name: str) -> Config:
        """Return a copy with `name` as the current profile. Raises ConfigError if there is no such profile."""
        self.profile(name)
        return self._with(profile=name)

    def without_profile(self, name: str) -> Config:
        """Return a copy without profile `name`; if it was the current one, there is none."""
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
    """The settings of one run: from the option, else the environment, else the profile, else built in."""

    profile: Value
    values: Mapping[str, Value]
    token: TokenSource | None

    def get(self, key: str) -> str:
        """Return the value of `key`, or an empty string."""
        return self.values[key].value if key in self.values else ""


def config_path(environ: Mapping[str, str]) -> Path:
    """Return the path of the file, which may not exist."""
    if environ.get("EASQ_CONFIG"):
        return Path(os.path.expanduser(environ["EASQ_CONFIG"]))
    return files.easq_folder(environ, "XDG_CONFIG_HOME", ".config") / "config.toml"


def load(path: Path) -> Config:
    """Return the file at `path`, empty if there is none. Its `warnings` name unsafe permissions and unknown keys.

    Raises ConfigError for a file that is no configuration.
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
        raise ConfigError(f"{path}: {encoding_problem(data, error.start)}") from error
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


def save(config: Config) -> None:
    """Write `config` to its file, atomically and for its owner alone. Raises ConfigError; then nothing changed."""
    import tomli_w

    try:
        files.make_private_folder(config.path.parent)
        files.replace(config.path, tomli_w.dumps(dict(config.document)).encode())
    except OSError as error:
        raise _unsaved(config.path, error) from error


def edit(path: Path, change: Callable[[Config], Config]) -> Config:
    """Apply `change` to the file at `path`, and return the new content. Concurrent runs wait for each other.

    Raises ConfigError and the errors of `change`; after an error nothing has changed.
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
            f"{path}: version {version!r} is not known here, only {VERSION}", hint="use a newer easq"
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
    """Return the problems of the file, one line each."""
    found = list(config.warnings)
    for name, values in config.profiles.items():
        where = f"{config.path}: profiles.{name}"
        found += [f"{where}: {problem}" for problem in values_problems(values)]
    if "profile" in config.document and config.current not in config.profiles:
        found.append(f"{config.path}: profile {config.current!r} is not there")
    return found


def chosen_profile(config: Config, options: Mapping[str, Any], environ: Mapping[str, str]) -> Value:
    """Return the name of the profile in use: from the option, the environment, the file, or built in."""
    if options.get("profile"):
        return Value(str(options["profile"]), "option --profile")
    if environ.get("EASQ_PROFILE"):
        return Value(environ["EASQ_PROFILE"], "environment EASQ_PROFILE")
    if "profile" in config.document:
        return Value(config.current, "config file")
    return Value(DEFAULT_PROFILE, "built-in")


def resolve(config: Config, options: Mapping[str, Any], environ: Mapping[str, str]) -> Resolved:
    """Return the settings of this run. Raises ConfigError for a named profile that does not exist."""
    name = chosen_profile(config, options, environ)
    if name.origin == "built-in" and name.value not in config.profiles:
        profile: Mapping[str, Any] = {}
    else:
        profile = config.profile(name.value)
    values = {}
    for key in KEYS:
        if key in TOKEN_KEYS:
            continue
        # a duration of 0 counts as given: it is refused where it is used
        if options.get(key) not in (None, ""):
            values[key] = Value(str(options[key]), f"option --{key.replace('_', '-')}")
        elif environ.get(ENVIRONMENT.get(key, "")):
            values[key] = Value(environ[ENVIRONMENT[key]], f"environment {ENVIRONMENT[key]}")
        elif profile.get(key):
            values[key] = Value(profile[key], f"profile {name.value}")
        elif key in BUILT_IN:
            values[key] = Value(BUILT_IN[key], "built-in")
    return Resolved(name, values, token_source(name.value, profile, options, environ))
