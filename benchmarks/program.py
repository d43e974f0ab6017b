"""What does a program launch that XLA has compiled for a GPU? Counted in its text."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

FREE = {"parameter", "tuple", "get-tuple-element", "bitcast", "constant", "after-all"}
INSTRUCTION = re.compile(r"\s+(?:ROOT )?%\S+ = (?:\(.*?\)|\S+) ([\w-]+)\(")


@dataclass
class Part:
    """What runs each time that a part of a program does; without the rounds of its loops."""

    kernels: int = 0  # and copies; of branches, those of the longest
    waits: int = 0  # of the host, for a number from the device
    rounds: int | None = None  # of a loop, where they are known before
    loops: list["Part"] = field(default_factory=list)

    def lines(self, depth: int = 0) -> Iterator[str]:
        """A line for this part, and for each loop in it."""
        rounds = f" × {self.rounds or 'each round'}" if depth else ""
        yield f"{'  ' * depth}{self.kernels} kernels, {self.waits} waits{rounds}"
        for loop in self.loops:
            yield from loop.lines(depth + 1)

    def take(self, other: "Part") -> None:
        """What `other` does is done here too, each time."""
        self.kernels += other.kernels
        self.waits += other.waits
        self.loops += other.loops


def read(program: str) -> Part:
    """The whole program.

    The host waits once in each branch, and before each round of a loop that ends when numbers say
    so. What is started and waited for later is one kernel.
    """
    entry, bodies = _computations(program)

    def part(name: str) -> Part:
        found = Part()
        for line in bodies[name]:
            kind = INSTRUCTION.match(line)
            if kind is None or kind[1] in FREE or kind[1].endswith("-done"):
                continue
            named = lambda key, line=line: re.search(rf"{key}=%?([\w.-]+)", line)[1]
            match kind[1]:
                case "while":
                    loop = part(named("body"))
                    known = re.search(r'known_trip_count":\{"n":"(\d+)"', line)
                    if known:
                        loop.rounds = int(known[1])
                    else:
                        loop.take(part(named("condition")))
                        loop.waits += 1
                    found.loops.append(loop)
                case "conditional":
                    listed = re.search(r"branch_computations=\{(.*?)\}", line)
                    keys = ("true_computation", "false_computation")
                    names = re.findall(r"[\w.-]+", listed[1]) if listed else map(named, keys)
                    found.take(max(map(part, names), key=lambda branch: branch.kernels))
                    found.waits += 1
                case "call":
                    found.take(part(named("to_apply")))
                case _:
                    found.kernels += 1
        return found

    return part(entry)


def _computations(program: str) -> tuple[str, dict[str, list[str]]]:
    """The name of the first to run, and the instructions of all by name."""
    bodies: dict[str, list[str]] = {}
    entry, lines = "", []
    for line in program.splitlines():
        if begun := re.match(r"(ENTRY )?%(\S+) \(.*\{$", line):
            entry = begun[2] if begun[1] else entry
            lines = bodies[begun[2]] = []
        elif line.startswith("  "):
            lines.append(re.sub(r"/\*.*?\*/", "", line))
    return entry, bodies
