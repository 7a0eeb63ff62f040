"""easq config: the profiles, in the file that `easq config path` names."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from easq.cli.command import Group, command

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

    from easq.cli.app import App
    from easq.config.profiles import Config

#: options that `easq config` saves without a subcommand, as eascmd does
_SAVED = ("url", "token", "token_file", "group", "user")
#: options that no profile has
_UNSAVED = ("header", "cacert", "insecure", "connect_timeout", "request_timeout")


@click.group(
    "config",
    cls=Group,
    invoke_without_command=True,
    examples=(
        "easq config --url http://127.0.0.1:3030/api/predict/qservice --token-file ~/q.token",
        "easq config -p prod --url URL --token-file FILE",
        "easq config use prod",
        "easq config show --origin",
    ),
)
@click.pass_context
def config(ctx: click.Context) -> None:
    """Save, show and change connection profiles.

    With --url, --token, --token-file, --group or --user, these values are saved in the current profile, or in the
    profile that -p names. Without them, the settings in effect are shown.
    """
    if ctx.invoked_subcommand is not None:
        return
    from easq.errors import UsageError

    app: App = ctx.obj
    app.start()
    values = {key: app.options[key] for key in _SAVED if app.options.get(key)}
    unsaved = [f"--{key.replace('_', '-')}" for key in _UNSAVED if key in app.options]
    if unsaved:
        told = f"{', '.join(unsaved)}: a profile does not hold {'it' if len(unsaved) == 1 else 'them'}"
        if not values:
            raise UsageError(told, hint="give it with each command; easq config show shows what is saved")
        app.printer.warn(f"{told}; not saved")
    if values:
        _save_values(app, values)
    else:
        _show(app, origin=False, reveal=False)


def _sub(name: str, examples: Sequence[str]) -> Callable[[Callable[..., Any]], click.Command]:
    def make(function: Callable[..., Any]) -> click.Command:
        made = command(name, examples=examples)(function)
        config.add_command(made)
        return made

    return make


@_sub("show", ("easq config show", "easq config show --origin", "easq -p prod config show --reveal"))
@click.option("--origin", is_flag=True, help="Show the source of each value.")
@click.option("--reveal", is_flag=True, help="Show the token, and passwords in URLs, in full.")
def show(app: App, origin: bool, reveal: bool) -> None:
    """Show the settings in effect."""
    _show(app, origin=origin, reveal=reveal)


@_sub("list", ("easq config list", "easq config list -o json"))
def list_profiles(app: App) -> None:
    """List the profiles; a star marks the current one."""
    from easq.config.profiles import chosen_profile
    from easq.net.url import masked

    current = chosen_profile(app.config, app.options, app.environ).value
    rows = [
        ("*" if name == current else "", name, masked(str(values.get("url", ""))))
        for name, values in sorted(app.config.profiles.items())
    ]
    if app.output == "json":
        for star, name, url in rows:
            app.printer.record({"profile": name, "url": url, "current": bool(star)})
        app.printer.flush()
    elif app.output == "table":
        app.printer.table(("current", "profile", "url"), rows)
    else:
        app.printer.lines(f"{star or ' '} {name} : {url}" for star, name, url in rows)


@_sub("use", ("easq config use prod", "easq config use local"))
@click.argument("name")
def use(app: App, name: str) -> None:
    """Make a profile the current one."""
    _save(app, lambda config: config.with_current(name), name, f"current profile: {name}")


@_sub(
    "set",
    ("easq config set url URL", "easq config set token - < token.txt", "easq config -p prod set group eas"),
)
@click.argument("key")
@click.argument("value")
def set_value(app: App, key: str, value: str) -> None:
    """Set a key of the profile.

    For the key token, the value `-` reads it from standard input. The value of token_cmd is split into words like
    a shell command, and run without a shell.
    """
    import shlex

    from easq.config.keys import check_key, named
    from easq.config.tokens import MAX_TOKEN_BYTES
    from easq.errors import UsageError

    check_key(key)
    if key == "token" and value == "-":
        value = app.read_stdin(MAX_TOKEN_BYTES).strip()
    elif key == "token":
        app.options["token"] = value
    if not value:
        raise UsageError(f"{key} is empty", hint=f"easq config unset {key}")
    if key == "token_cmd":
        try:
            words = shlex.split(value)
        except ValueError as error:
            raise UsageError(f"{named(key, value)}: {error}") from error
        _save_values(app, {key: words})
    else:
        _save_values(app, {key: value})


@_sub("unset", ("easq config unset token", "easq config -p prod unset group"))
@click.argument("key")
def unset(app: App, key: str) -> None:
    """Remove a key from the profile."""
    from easq.errors import ConfigError

    name = _profile(app)
    if key not in app.config.profile(name):
        raise ConfigError(f"profile {name} has no {key!r}")
    _save(app, lambda config: config.with_values(name, {key: None}), name, f"profile {name}: {key} removed")


@_sub("rm", ("easq config rm old", "easq config rm old -y"))
@click.argument("name")
def remove(app: App, name: str) -> None:
    """Remove a profile."""
    app.config.without_profile(name)  # raises before the question if there is none
    app.confirm(f"remove profile {name}")
    _save(app, lambda config: config.without_profile(name), name, f"profile {name} removed")


@_sub("path", ("easq config path", '"$EDITOR" "$(easq config path)"'))
def path(app: App) -> None:
    """Print the path of the configuration file."""
    from easq.config.profiles import config_path

    where = str(config_path(app.environ))
    if app.output == "json":
        app.printer.record({"path": where})
    else:
        app.printer.line(where)


@_sub("validate", ("easq config validate", "easq -p prod config validate --connect"))
@click.option("--connect", is_flag=True, help="Also connect to the queue and read its attributes.")
def validate(app: App, connect: bool) -> None:
    """Check the configuration file."""
    from easq.config.profiles import config_path, load, problems
    from easq.config.values import address_problems
    from easq.errors import ConfigError

    loaded = load(config_path(app.environ))
    if not loaded.path.exists():
        raise ConfigError(
            f"{loaded.path} is not there", hint="create it with easq config --url URL --token-file FILE"
        )
    found = [*problems(loaded), *address_problems(loaded)]
    for problem in found:
        app.printer.warn(problem)
    if found:
        raise ConfigError(f"{len(found)} problem{'s' if len(found) > 1 else ''} in {loaded.path}")
    attributes = app.queue().attributes() if connect else {}
    if app.output == "json":
        app.printer.record({"path": str(loaded.path), "valid": True, "attributes": attributes or None})
        return
    app.printer.line(f"[OK] {loaded.path}")
    if connect:
        app.printer.line(f"[OK] {attributes.get('meta.name', 'the queue')} answers")


def _profile(app: App) -> str:
    from easq.config.profiles import chosen_profile

    return chosen_profile(app.config, app.options, app.environ).value


def _save(app: App, change: Callable[[Config], Config], name: str, done: str) -> None:
    """Save the file as changed by `change`, and print `done`."""
    from easq.config.profiles import edit

    change(app.config)  # so that an error changes nothing, not even the lock
    changed = edit(app.config.path, change)
    if app.output == "json":
        app.printer.record({"profile": name, "path": str(changed.path)})
    else:
        app.printer.line(f"[OK] {done}")


def _save_values(app: App, values: dict[str, Any]) -> None:
    """Save `values` in the profile. Raises UsageError or ConfigError for values that could not be used."""
    from easq.config.values import values_to_save

    app.check_token_options()
    name = _profile(app)
    if "token" in values:
        app.printer.hide(values["token"])
    saved = values_to_save(values)

    def change(config: Config) -> Config:
        changed = config.with_values(name, saved)
        return changed if "profile" in changed.document else changed.with_current(name)

    _save(app, change, name, f"profile {name} saved")


def _show(app: App, *, origin: bool, reveal: bool) -> None:
    from easq.config.values import shown_values

    values = shown_values(app.settings, reveal=reveal)
    if app.output == "json":
        app.printer.record(
            {k: {"value": v.value, "origin": v.origin} if origin else v.value for k, v in values.items()}
        )
    elif app.output == "table":
        columns = ("key", "value", "origin") if origin else ("key", "value")
        app.printer.table(
            columns, [(k, v.value, v.origin) if origin else (k, v.value) for k, v in values.items()]
        )
    else:
        app.printer.lines(f"{k} : {v.value}{f' ({v.origin})' if origin else ''}" for k, v in values.items())
