"""How does a command line become a `Config`?

By layers, each over the one before: the defaults of `config.py`, a preset, a TOML file with the
files it is based on, single flags. What cannot be used is said in one sentence that names where
the setting stands.
"""

import difflib
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tomli_w
from pydantic import BaseModel, ValidationError

from scalezero.config import Config, ConfigError, EnvSettings

if TYPE_CHECKING:
    from scalezero.envs.spec import Task

PRESETS = Path(__file__).parent / "presets"

# What pydantic's errors call a type, and what we call it.
TYPES = {
    "int_type": "int",
    "int_from_float": "int",
    "float_type": "float",
    "string_type": "str",
    "bool_type": "bool",
    "tuple_type": "a list",
    "dict_type": "a table",
    "model_type": "a table of settings",
}


@dataclass(frozen=True)
class Layer:
    """Some settings, nested as in TOML, and where they stand."""

    where: str  # a file or preset; empty for the command line
    values: Mapping[str, Any]

    def name(self, key: str) -> str:
        """`key` as whoever wrote it finds it again."""
        return f"{self.where}: {key}" if self.where else f"--{key}"


def resolve(
    *,
    preset: str | None = None,
    file: Path | None = None,
    tasks: Sequence[str] = (),
    flags: Mapping[str, str] | None = None,
) -> Config:
    """The config that a preset, a file over it, and flags over both describe.

    Args:
        tasks: Task names; none leaves those of the preset or the file.
        flags: Values as typed, by dotted key: `{"model.embed": "96"}`.
    """
    layers = _preset(preset) if preset else []
    layers += _file(file, ()) if file else []
    layers += [Layer("", {"tasks": tuple(tasks)})] if tasks else []
    layers += [Layer("", _nested(key, _value(raw))) for key, raw in (flags or {}).items()]
    config = _validated(layers)
    if not config.tasks:
        raise ConfigError("tasks is missing, and has no default; give --preset or --tasks")
    return config


def read(path: Path) -> Config:
    """The config in a TOML file."""
    return _validated(_file(path, ()))


def tasks(config: Config) -> "tuple[Task, ...]":
    """The tasks of `config`, with its changes to them."""
    from scalezero.envs.catalog import find

    changes = {n: config.env[n].model_dump(exclude_none=True) for n in config.env}
    found = tuple(find(name, **changes.get(name, {})) for name in config.tasks)
    for task in found if config.dps.on else ():
        _require_goal(task, config.dps.target, named="target" in changes.get(task.name, {}))
    return found


def _require_goal(task: "Task", normalised: float | None, *, named: bool) -> None:
    """Raise a `ConfigError` unless dynamic parameter scaling can say when `task` is solved.

    A target that the user has `named` must not lie above the ceiling; those of some Atari games do.
    """
    floor, ceiling, target = (f"{x:g}" for x in (task.floor, task.ceiling, task.target))
    name = f'env."{task.name}"'
    if normalised is not None and not -inf < task.floor < task.ceiling < inf:
        raise ConfigError(
            f"{name}.floor = {floor}, ceiling = {ceiling}: dps.target is normalised, so both must "
            "be numbers, the ceiling the larger one"
        )
    if normalised is None and not -inf < task.floor < task.target < inf:
        raise ConfigError(
            f"{name}.target = {target} must be a number above the task's floor {floor} for dps to "
            "say when it is solved"
        )
    if normalised is None and named and task.target > task.ceiling:
        raise ConfigError(
            f"{name}.target = {target} is above the task's ceiling {ceiling}; lower it, or raise "
            f"{name}.ceiling if more can be reached"
        )


def presets() -> tuple[str, ...]:
    """The names of the presets."""
    return tuple(sorted(path.stem for path in PRESETS.glob("*.toml")))


def dump(config: Config) -> str:
    """`config` as TOML, complete, which `read` reads back equal."""
    return tomli_w.dumps(config.model_dump(exclude_none=True))


def changed(old: Config, new: Config) -> dict[str, tuple[Any, Any]]:
    """The settings that differ: old and new value by dotted key; None where there is none."""
    before, after = (dict(_flat(config.model_dump(exclude_none=True))) for config in (old, new))
    keys = dict.fromkeys([*before, *after])
    pairs = {key: (before.get(key), after.get(key)) for key in keys}
    return {key: (a, b) for key, (a, b) in pairs.items() if a != b}


def settings(model: type[BaseModel] = Config, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every setting that has a fixed name: its dotted key and pydantic's description of it."""
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from settings(field.annotation, f"{prefix}{name}.")
        elif f"{prefix}{name}" != "env":
            yield f"{prefix}{name}", field


def near(word: str, words: Iterable[str]) -> str | None:
    """The word of `words` most like `word`, if one is."""
    return next(iter(difflib.get_close_matches(word, list(words), n=1)), None)


def _preset(name: str) -> list[Layer]:
    if name not in presets():
        like = near(name, presets())
        hint = f"did you mean {like}?" if like else f"choose one of {', '.join(presets())}"
        raise ConfigError(f"{name}: no such preset; {hint}")
    return _file(PRESETS / f"{name}.toml", ())


def _file(path: Path, above: tuple[Path, ...]) -> list[Layer]:
    """What `path` is based on, and then itself; `above` are the files based on it."""
    if path in above:
        raise ConfigError(f"{path}: is based on itself; take out one base = …")
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        like = near(path.name, (other.name for other in path.parent.glob("*.toml")))
        hint = f"; did you mean {path.with_name(like)}?" if like else ""
        raise ConfigError(f"{path}: no such config file{hint}") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:  # not UTF-8, or not TOML
        raise ConfigError(f"{path}: not TOML: {error}") from error
    base = values.pop("base", None)
    where = f"preset {path.stem}" if path.parent == PRESETS else str(path)
    here = Layer(where, {key: _frozen(value) for key, value in values.items()})
    match base:
        case None:
            return [here]
        case str() if base.endswith(".toml"):
            return [*_file(path.parent / base, (*above, path)), here]
        case str():
            return [*_preset(base), here]
        case _:
            raise ConfigError(f"{where}: base = {base!r} must be a preset's name or a .toml file")


def _frozen(value: Any) -> Any:
    """`value` with tuples for lists, as the schema wants them."""
    match value:
        case dict():
            return {key: _frozen(inner) for key, inner in value.items()}
        case list():
            return tuple(_frozen(inner) for inner in value)
        case _:
            return value


def _value(raw: str) -> Any:
    """What a flag's text says: a TOML value, or else the text itself."""
    try:
        return _frozen(tomllib.loads(f"value = {raw}")["value"])
    except tomllib.TOMLDecodeError:
        return raw


def _nested(key: str, value: Any) -> dict[str, Any]:
    head, _, rest = key.partition(".")
    if head == "env" and "." in rest:  # a task's name may hold dots itself
        name, field = rest.rsplit(".", 1)
        return {"env": {name: {field: value}}}
    return {head: _nested(rest, value) if rest else value}


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _merged(low: Mapping[str, Any], high: Mapping[str, Any]) -> dict[str, Any]:
    """`high` over `low`. Other tasks take the changes to tasks no longer named with them."""
    low = dict(low)
    if "tasks" in high and isinstance(low.get("env"), Mapping):
        low["env"] = {name: low["env"][name] for name in low["env"] if name in high["tasks"]}
    for key, value in high.items():
        both = isinstance(value, Mapping) and isinstance(low.get(key), Mapping)
        low[key] = _merged(low[key], value) if both else value
    return low


def _validated(layers: Sequence[Layer]) -> Config:
    values: dict[str, Any] = {}
    for layer in layers:
        values = _merged(values, layer.values)
    try:
        return Config.model_validate(values, strict=True)
    except ValidationError as error:
        details = error.errors(include_url=False)
        raise ConfigError(_sentence(details[0], layers)) from error


def _sentence(error: Mapping[str, Any], layers: Sequence[Layer]) -> str:
    """What is wrong, in our words: where it stands, what it is, what it must be."""
    key = ".".join(map(str, error["loc"]))
    owners = [layer for layer in layers if _sets(layer.values, error["loc"])]
    owner = owners[-1] if owners else Layer("", {})
    match error["type"]:
        case "value_error":  # a check across settings, which names them itself
            where = f"{owner.where}: " if owner.where else ""
            return f"{where}{error['ctx']['error']}"
        case "extra_forbidden":
            like = _like(key)
            mark = "" if owner.where else "--"
            hint = f"did you mean {mark}{like}?" if like else "`scalezero train --help` lists all"
            return f"{owner.name(key)} is not a setting; {hint}"
        case "literal_error":
            choices = error["ctx"]["expected"]
            return f"{owner.name(key)} = {error['input']!r} must be {choices}"
        case kind if kind in TYPES:
            given = type(error["input"]).__name__
            article = "an" if given[0] in "aeiou" else "a"
            return (
                f"{owner.name(key)} = {error['input']!r} is {article} {given}, "
                f"but must be {TYPES[kind]}"
            )
        case _:
            rule = error["msg"].removeprefix("Input should be ")
            return f"{owner.name(key)} = {error['input']!r} must be {rule}"


def _sets(values: Any, loc: Sequence[str | int]) -> bool:
    """Whether `values` has something at `loc`."""
    for part in loc:
        if isinstance(part, int):
            return True
        if not isinstance(values, Mapping) or part not in values:
            return False
        values = values[part]
    return True


def _like(key: str) -> str | None:
    """The setting that was perhaps meant by `key`: spelt alike, or in another section."""
    leaves = {name.rpartition(".")[2]: name for name, _ in settings()}
    known = [*Config.model_fields, *(name for name, _ in settings())]
    if key.startswith("env."):
        known = [f"{key.rpartition('.')[0]}.{name}" for name in EnvSettings.model_fields]
        return near(key, known)
    plain = key.replace("-", "_")
    leaf = near(plain.rpartition(".")[2], leaves)
    exact = leaves.get(plain.rpartition(".")[2])
    return exact or near(plain, known) or (leaves[leaf] if leaf else None)
