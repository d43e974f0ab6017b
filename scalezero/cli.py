"""What does each word after `scalezero` do? Every verb ends in one call that Python can make too.

Nothing here imports JAX before it is needed, so that `--help` and a mistyped setting answer at
once. What a user got wrong is one sentence on standard error and exit code 2.
"""

import argparse
import errno
import json
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn, get_args, get_origin

from scalezero import configure
from scalezero.config import Config, EnvSettings
from scalezero.configure import ConfigError

INTERRUPTED = 130  # the exit code that shells expect after Ctrl-C


class Parser(argparse.ArgumentParser):
    """A parser whose errors are ours to print."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong with the command line."""
        raise ConfigError(f"{self.prog}: {message}; see {self.prog} --help")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line; the exit code."""
    _settle_in()
    try:
        options, flags = parse(arguments)
    except ConfigError as error:
        return _say(error)
    from scalezero.data.growing import FileDamaged
    from scalezero.envs.spec import SuiteMissing, TaskError
    from scalezero.run.folder import RunError

    if getattr(options, "jericho_games", None):
        from scalezero.envs.jericho import VARIABLE

        os.environ[VARIABLE] = str(options.jericho_games.expanduser().resolve())
    known = (ConfigError, TaskError, SuiteMissing, RunError, FileDamaged)
    try:
        return options.verb(options, flags)
    except known as error:
        return _say(error)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        return _say("the disk is full; free some and go on: what was saved before is whole")
    except KeyboardInterrupt:
        return INTERRUPTED


def _settle_in() -> None:
    """Let a user's own modules be found where the command is given."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())


def parse(arguments: Sequence[str] | None) -> tuple[argparse.Namespace, dict[str, str]]:
    """The options of a command line, and the settings it changes, as typed, by dotted key."""
    options, rest = _parser().parse_known_args(arguments)
    if rest and options.verb not in CONFIGURED:
        raise ConfigError(f"scalezero: {rest[0]} is not understood; see scalezero --help")
    named = {key: text for key, text in vars(options).items() if "." in key}
    if options.verb in CONFIGURED and "seed" in options:
        named["seed"] = options.seed
    return options, named | dict(_pairs(rest))


def train(options: argparse.Namespace, flags: dict[str, str]) -> int:
    """Train one model on all tasks of a config, or go on with a run."""
    config = _config(options, flags)
    path = options.run or Path("runs") / f"{_name(options)}-s{config.seed}"
    from scalezero.envs import catalog

    for task in configure.tasks(config):  # what is wrong is said before anything is made
        catalog.require(task)
    from scalezero.run import compiled
    from scalezero.run.folder import RunFolder
    from scalezero.run.train import train as call

    folder = RunFolder.open(path, config)
    compiled.keep_traced()
    try:
        call(config, folder)
    except KeyboardInterrupt:
        print(f"stopped; go on with `scalezero train --run {path}`", file=sys.stderr)
        return INTERRUPTED
    return 0


def check(options: argparse.Namespace, flags: dict[str, str]) -> int:
    """Say how large a run would be, without starting it."""
    config = _config(options, flags)
    for task in configure.tasks(config):
        if options.jericho_games:
            from scalezero.envs import catalog

            catalog.require(task)
    from scalezero.run.check import check as call

    if options.memory:
        say = "a run is started twice for a moment; the first compiles what is not kept yet"
        print(say, file=sys.stderr)
    call(config, timed=options.time, probed=options.memory).show()
    return 0


def bench(options: argparse.Namespace, flags: dict[str, str]) -> int:
    """Measure how fast a part of a run is on this machine, and how fast it could be."""
    from scalezero.bench import bench as measure

    if options.part not in measure.parts():
        raise ConfigError(f"{options.part}: must be one of {', '.join(measure.parts())}")
    if options.like:
        given = options.preset or options.config or options.tasks
        if given or options.part != "end-to-end":
            raise ConfigError(
                "--like: stands for a whole config, measured end to end; give it as in "
                "scalezero bench end-to-end --like NAME"
            )
        options.config = measure.like(options.like)
    elif not (options.preset or options.config or options.tasks):
        options.preset = "quickstart"
    config = _config(options, flags)
    if options.out:
        measure.require_writable(options.out)
    made = measure.bench(
        options.part,
        config,
        seconds=float(options.seconds),
        rows=options.rows,
        alone=options.like is not None,
    )
    if options.out:
        made.save(options.out)
    if options.json:
        print(json.dumps(made.headline() if options.like else made.as_json()))
    else:
        made.show()
    return 0


CONFIGURED = (train, check, bench)  # the verbs that take settings


def evaluate(options: argparse.Namespace, _: dict[str, str]) -> int:
    """Play a trained run's tasks without exploration."""
    from scalezero.run.folder import RunFolder

    folder = RunFolder.find(options.path)
    for name in options.tasks or ():
        if name not in folder.config.tasks:
            like = configure.near(name, folder.config.tasks) or ", ".join(folder.config.tasks)
            raise ConfigError(f"{name}: not a task of {folder.path}; did you mean {like}?")
    episodes = options.episodes or folder.config.run.final_episodes
    from scalezero.run import compiled
    from scalezero.run.evaluate import evaluate as call

    compiled.keep_traced()
    result = call(folder.path, episodes=episodes, tasks=options.tasks, seed=options.seed)
    if options.json:
        from scalezero.run.logs import plain

        print(json.dumps(plain(result.as_json())))
        return 0
    from scalezero.run.console import print_scores

    print_scores(result.tasks, result.means, path=folder.path)
    return 0


def play(options: argparse.Namespace, _: dict[str, str]) -> int:
    """Print a transcript of a trained run's agent at a game of text."""
    from rich.console import Console

    from scalezero.run import compiled
    from scalezero.run import play as game

    compiled.keep_traced()
    console = Console(soft_wrap=True)
    episodes, seed = options.episodes or 1, options.seed
    for moment in game.play(options.path, options.task, episodes=episodes, seed=seed):
        game.show(moment, options.top, console)
    return 0


def export(options: argparse.Namespace, _: dict[str, str]) -> int:
    """Write a run's agent alone, to use and to share."""
    from scalezero.run.export import export as call

    call(options.path, options.out, merge=options.merge)
    print(f"{options.out}: an agent to load and to evaluate", file=sys.stderr)
    return 0


def tasks(options: argparse.Namespace, _: dict[str, str]) -> int:
    """List every task known by name."""
    from scalezero.run import listing

    if options.json:
        print(json.dumps(listing.as_json()))
    else:
        listing.show()
    return 0


def doctor(options: argparse.Namespace, _: dict[str, str]) -> int:
    """Say what works on this machine, and how to repair what does not."""
    from scalezero.run import doctor as ward

    findings = ward.examine()
    if options.json:
        print(json.dumps(ward.as_json(findings)))
        return 0 if ward.healthy(findings) else 1
    from rich.console import Console

    console = Console(highlight=False, soft_wrap=True)
    report = ward.as_json(findings)
    console.print(f"Python {report['python']} on {report['platform']}", markup=False)
    known = {name: version or "–" for name, version in report["packages"].items()}
    console.print(", ".join(f"{name} {version}" for name, version in known.items()), markup=False)
    for part, finding in findings.items():
        mark = "ok     " if finding.works else "missing"
        console.print(f"{mark} {part}: {finding.says}", markup=False)
        if finding.fix:
            console.print(f"        to repair: {finding.fix}", markup=False)
    return 0 if ward.healthy(findings) else 1


def _parser() -> Parser:
    parser = Parser(
        prog="scalezero",
        description="One world model that learns many tasks at once, and plans with it.",
        allow_abbrev=False,
    )
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    def add(verb: Any) -> Parser:
        says = verb.__doc__
        made = verbs.add_parser(verb.__name__, help=says, description=says, allow_abbrev=False)
        made.set_defaults(verb=verb)
        where = "folder of Jericho's story files (default: $SCALEZERO_JERICHO_GAMES)"
        made.add_argument("--jericho-games", metavar="DIR", type=Path, help=where)
        return made

    for verb in CONFIGURED:
        each = add(verb)
        first = "" if verb is not bench else " PART"
        given = "(--preset NAME | --tasks TASK …)" if not first else "[--preset NAME | --like NAME]"
        each.usage = f"scalezero {verb.__name__}{first} {given} [--setting VALUE …]"
        each.add_argument("--preset", metavar="NAME", help=", ".join(configure.presets()))
        each.add_argument("--config", metavar="FILE", type=Path, help="a TOML file, over a preset")
        each.set_defaults(run=None)
        if verb is bench:
            _add_measuring(each)
        else:
            where = "run directory (default: runs/<preset>-s<seed>); a run in it goes on"
            each.add_argument("--run", metavar="DIR", type=Path, help=where)
        each.add_argument(
            "--dps",
            dest="dps.on",
            action="store_const",
            const="true",
            default=argparse.SUPPRESS,
            help="solved tasks leave, the model grows in stages (same as --dps.on true)",
        )
        if verb is check:
            timed = "also measure an update, at each stage with --dps; compiles for a while"
            each.add_argument("--time", action="store_true", help=timed)
            probed = "also start a run for a moment, twice, to see what memory it will take"
            each.add_argument("--memory", action="store_true", help=probed)
        _add_settings(each)
    each = add(evaluate)
    each.add_argument("path", metavar="RUN", type=Path, help="run directory")
    each.add_argument(
        "--episodes", metavar="N", type=_count, help="of each task (default: the run's)"
    )
    each.add_argument("--tasks", metavar="TASK", nargs="+", help="only these (default: all)")
    each.add_argument(
        "--seed", metavar="N", type=_natural, default=0, help="of the episodes (default: 0)"
    )
    each.add_argument("--json", action="store_true", help="print JSON")
    each = add(play)
    each.add_argument("path", metavar="RUN", type=Path, help="run directory")
    each.add_argument("--task", metavar="TASK", required=True, help="one of the run's, with text")
    each.add_argument("--episodes", metavar="N", type=_count, help="to play (default: 1)")
    each.add_argument("--seed", metavar="N", type=_natural, default=0, help="(default: 0)")
    each.add_argument(
        "--top", metavar="N", type=_count, default=5, help="actions to show (default: 5)"
    )
    each = add(export)
    each.add_argument("path", metavar="RUN", type=Path, help="run directory")
    each.add_argument("--out", metavar="DIR", type=Path, required=True, help="a new directory")
    each.add_argument(
        "--merge", action="store_true", help="fold adapters into the weights they correct"
    )
    for verb in (tasks, doctor):
        add(verb).add_argument("--json", action="store_true", help="print JSON")
    return parser


def _add_measuring(parser: Parser) -> None:
    """The options of `bench` alone."""
    what = "search, experts, encoder, environments, replay, update, collection or end-to-end; "
    what += "of the preset quickstart, if no other is named"
    parser.add_argument("part", metavar="PART", help=what)
    like = "end-to-end: settings of another program's measurement, as in lightzero-dmc-small"
    parser.add_argument("--like", metavar="NAME", help=like)
    rows = "search: rows planned for at once; experts: tokens; encoder: observations of all tasks"
    parser.add_argument("--rows", metavar="N", type=_count, nargs="+", default=(), help=rows)
    repeat = "seconds to repeat each call for (default: 5)"
    parser.add_argument("--seconds", metavar="N", type=_count, default=5, help=repeat)
    told = "print JSON; with --like, two rates alone"
    parser.add_argument("--json", action="store_true", help=told)
    parser.add_argument("--out", metavar="FILE", type=Path, help="write all of it to a JSON file")


def _add_settings(parser: Parser) -> None:
    """One flag for each setting, with its meaning and default from the schema."""
    groups: dict[str, Any] = {}
    for key, field in configure.settings():
        section = key.rpartition(".")[0] or "general"
        if section not in groups:
            groups[section] = parser.add_argument_group(f"{section} settings")
        default = "none" if field.default == () else field.default
        text = f"{field.description} (default: {default})".replace("%", "%%")
        if key == "tasks":
            groups[section].add_argument("--tasks", metavar="TASK", nargs="+", help=text)
        else:
            kind = _metavar(field.annotation)
            flag = {"dest": key, "metavar": kind, "default": argparse.SUPPRESS, "help": text}
            groups[section].add_argument(f"--{key}", **flag)
    fields = ", ".join(EnvSettings.model_fields)
    text = f"Of one task, as in --env.dmc/cheetah-run.target 600: {fields}."
    parser.add_argument_group("env settings", text)


def _metavar(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return "|".join(map(str, get_args(annotation)))
    return {int: "INT", float: "FLOAT"}.get(annotation, "VALUE")


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number above 0")
    return int(text)


def _natural(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number, 0 or more")
    return int(text)


def _say(problem: object) -> int:
    """Tell the user what is wrong; the exit code for that."""
    print(problem, file=sys.stderr)
    return 2


def _pairs(rest: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Flags that argparse does not know, as dotted key and text."""
    words = iter(rest)
    for word in words:
        key, equals, text = word.partition("=")
        if not key.startswith("--"):
            raise ConfigError(f"{word} stands alone; a setting is written --section.name VALUE")
        if not equals:
            text = next(words, "")
        yield key.removeprefix("--"), text


def _name(options: argparse.Namespace) -> str:
    """What a run is called that was given no directory."""
    if options.config:
        return options.config.stem
    return options.preset or "+".join(name.replace("/", "-") for name in options.tasks)[:80]


def _config(options: argparse.Namespace, flags: dict[str, str]) -> Config:
    """What the options describe; a run directory alone describes the run in it."""
    file = options.config
    if options.run and not (options.preset or file or options.tasks):
        from scalezero.run.folder import RunFolder

        file = RunFolder.find(options.run).config_file
    return configure.resolve(
        preset=options.preset, file=file, tasks=options.tasks or (), flags=flags
    )
