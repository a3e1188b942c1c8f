"""Contestants, the stage each gets for one run, and the rounds in which they take turns."""

import contextlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median

from benchmarks.image import is_copy, make_image, toggle_pages
from benchmarks.processes import Failed, find
from benchmarks.sshd import Host

Sample = dict[str, float]  # "seconds", and what else a run measures; lengths are bytes
Say = Callable[[str], None]


@dataclass(frozen=True)
class Stage:
    """What one run works with; the scratch directory is empty before and gone after it."""

    source: Path
    scratch: Path
    host: Host | None
    round: int

    @property
    def size(self) -> int:
        return self.source.stat().st_size

    @property
    def ssh_host(self) -> Host:
        """Raises Failed."""
        if self.host is None:
            raise Failed("needs sshd")
        return self.host

    @contextlib.contextmanager
    def changed_source(self) -> Iterator[int]:
        """1 % of the pages of the source are others; yields how many bytes that is."""
        changed = toggle_pages(self.source, self.round)
        try:
            yield changed
        finally:
            toggle_pages(self.source, self.round)

    def without_holes(self) -> "Stage":
        """The same with a source of the same size that is all data; it takes some seconds."""
        source = self.scratch / "full.img"
        make_image(source, self.size, holes=False)
        _warm_memory(self.size)
        return replace(self, source=source)

    def check(self, replica: Path, source: Path | None = None) -> None:
        """Raises Failed unless it is what the source is, byte for byte."""
        if not is_copy(source or self.source, replica):
            raise Failed("the copy differs from the source")


@dataclass(frozen=True)
class Contestant:
    name: str
    run: Callable[[Stage], Sample]
    tools: tuple[str, ...] = ()

    @property
    def is_ours(self) -> bool:
        return self.name.startswith("p2v-sync")

    def missing(self) -> list[str]:
        return [tool for tool in self.tools if find(tool) is None]


@dataclass(frozen=True)
class Scenario:
    """``reference`` is the contestant whose time the others' are given in."""

    name: str
    title: str
    reference: str
    contestants: tuple[Contestant, ...]


@dataclass
class Results:
    """By scenario and contestant."""

    samples: dict[str, dict[str, list[Sample]]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)  # "scenario/contestant" → why
    missing: dict[str, list[str]] = field(default_factory=dict)  # contestant → tools

    def has(self, scenario: str, contestant: str) -> bool:
        return bool(self.samples.get(scenario, {}).get(contestant))

    def median(self, scenario: str, contestant: str, figure: str = "seconds") -> float:
        """Raises KeyError where there was no such run."""
        return median(sample[figure] for sample in self.samples[scenario][contestant])


@dataclass
class Contest:
    """One image on one machine, and everybody on it in turn."""

    source: Path
    directory: Path
    host: Host | None
    say: Say
    results: Results = field(default_factory=Results)

    def hold(self, scenario: Scenario, contestants: Sequence[Contestant], rounds: int) -> None:
        """A contestant that fails is out, and what it said is kept."""
        self.say(f"{scenario.name}: {scenario.title}")
        samples = self.results.samples.setdefault(scenario.name, {})
        running = []
        for contestant in contestants:
            if missing := contestant.missing():
                self.results.missing[contestant.name] = missing
            else:
                running.append(contestant)
        for number in range(1, rounds + 1):
            for contestant in list(running):
                try:
                    sample = self._run_one(contestant, number)
                except (Failed, OSError, subprocess.SubprocessError) as error:
                    running.remove(contestant)
                    samples.pop(contestant.name, None)
                    self.results.failed[f"{scenario.name}/{contestant.name}"] = str(error)
                    self.say(f"  round {number}  {contestant.name:36} FAILED: {error}")
                else:
                    samples.setdefault(contestant.name, []).append(sample)
                    self.say(f"  round {number}  {contestant.name:36} {sample['seconds']:8.2f} s")

    def _run_one(self, contestant: Contestant, number: int) -> Sample:
        _warm_memory(self.source.stat().st_size)
        scratch = Path(tempfile.mkdtemp(prefix="p2v-bench-", dir=self.directory))
        try:
            return contestant.run(Stage(self.source, scratch, self.host, number))
        finally:
            shutil.rmtree(scratch)


def _warm_memory(length: int) -> None:
    """Touch as much memory as a copy will take, and free it again.

    A host takes back what its guest does not use.  To get it anew costs twice the time of writing
    to it, and would be paid by whoever comes first.  A process of its own does it: what this one
    ever had counts as the peak of every program that it starts (getrusage(2)).
    """
    subprocess.run([sys.executable, "-c", _WARM, str(length)], check=True)


_WARM = """
import mmap, sys
flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE
mmap.mmap(-1, int(sys.argv[1]), flags=flags)
"""
