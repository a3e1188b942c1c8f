"""State that is of another time, disk or job: never believed, and no dead end (P5, P10).

Every case begins after a complete pass.  Something is done to the image, the manifest or the
ledger, and a block of the source changes too; then the same command must end with target = source.
"""

import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from p2v_sync import jobs
from p2v_sync.config import SyncConfig
from p2v_sync.errors import DeviceChanged, TargetTaken
from p2v_sync.events import Event, Notice, PassFinished
from p2v_sync.units import KIB, MIB
from tests.conftest import Tell
from tests.integration.cli import Lab, assert_equal, change, flip

SIZE = 6 * MIB
BLOCK = 64 * KIB


class Stage:
    """A disk and its replica after the first pass."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.state = lab.root / "state"
        self.source = lab.image("web.img", size=SIZE, seed=1)
        self.other_source = lab.noise("other.img", size=SIZE, seed=2)
        self.events: list[Event] = []
        self.options: dict[str, object] = {"block_size": BLOCK}

    @property
    def image(self) -> Path:
        return self.lab.replica("web")

    @property
    def manifest(self) -> Path:
        return self.image.with_suffix(".manifest")

    @property
    def ledger(self) -> Path:
        return self.state / "ledger.sqlite"

    @property
    def other_image(self) -> Path:
        """Of another disk and job, after its first pass."""
        if not self.lab.replica("other").exists():
            self.sync(self.other_source)
        return self.lab.replica("other")

    @property
    def other_manifest(self) -> Path:
        return self.other_image.with_suffix(".manifest")

    def sync(self, source: Path | None = None, **options: object) -> None:
        self.events.clear()
        config = SyncConfig(
            sources=(source or self.source,),
            target=str(self.lab.out),
            **{"state_dir": self.state, **self.options, **options},  # type: ignore[arg-type]
        )
        jobs.sync(config, self.events.append, None)

    @property
    def sent(self) -> int:
        (finished,) = [each for each in self.events if isinstance(each, PassFinished)]
        return finished.counters.sent

    @property
    def notices(self) -> list[str]:
        return [each.text for each in self.events if isinstance(each, Notice)]


@pytest.fixture(scope="module")
def first_stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with Lab(tmp_path_factory.mktemp("stale")) as lab:
        yield Stage(lab)


@pytest.fixture
def stage(first_stage: Stage) -> Stage:
    """The next case begins with how the one before ended: all that is left over is harmless too."""
    first_stage.options = {"block_size": BLOCK}
    first_stage.sync()
    return first_stage


def _swap(new: Path, old: Path) -> None:
    """``new`` in the place of ``old``, with the times of ``old``."""
    times = old.stat()
    copy = old.with_suffix(".swap")
    shutil.copyfile(new, copy)
    os.utime(copy, ns=(times.st_atime_ns, times.st_mtime_ns))
    os.replace(copy, old)


def _flip_keeping_mtime(stage: Stage) -> None:
    times = stage.image.stat()
    flip(stage.image, 3 * MIB + 5)
    os.utime(stage.image, ns=(times.st_atime_ns, times.st_mtime_ns))


def _cut(path: Callable[[Stage], Path], share: float, less: int = 0) -> Callable[[Stage], None]:
    def harm(stage: Stage) -> None:
        file = path(stage)
        os.truncate(file, max(0, int(file.stat().st_size * share) - less))

    return harm


def _swap_jobs_in_ledger(stage: Stage) -> None:
    stage.sync(stage.other_source)
    with closing(sqlite3.connect(stage.ledger)) as ledger, ledger:
        for column in ("name", "path", "identity"):
            rows = ledger.execute(f"select id, {column} from disks order by id").fetchall()
            (one, text), (two, other) = rows
            ledger.execute(f"update disks set {column} = ? where id = ?", (other, one))
            ledger.execute(f"update disks set {column} = ? where id = ?", (text, two))
        ledger.execute("update jobs set name = name || '-'")
        ledger.execute("update jobs set name = case name when 'web-' then 'other' else 'web' end")


def _older(what: Callable[[Stage], list[Path]]) -> Callable[[Stage], None]:
    """Go on with a pass and put back what was there before, as a backup is."""

    def harm(stage: Stage) -> None:
        kept = [(path, path.with_suffix(path.suffix + ".kept")) for path in what(stage)]
        for path, copy in kept:
            shutil.copy2(path, copy)
        flip(stage.source, MIB)
        stage.sync()
        for path, copy in kept:
            os.replace(copy, path)

    return harm


def _option(**options: object) -> Callable[[Stage], None]:
    return lambda stage: stage.options.update(options)


def _manifest(stage: Stage) -> Path:
    return stage.manifest


def _ledger(stage: Stage) -> Path:
    return stage.ledger


# What is done → whether the whole image has to be compared then (None: that is up to SQLite, whose
# last page may be an empty one, so that nothing is lost with it).
HARMS: dict[str, tuple[Callable[[Stage], None], bool | None]] = {
    "nothing": (lambda _: None, False),
    "image gone": (lambda stage: stage.image.unlink(), True),
    "image of noise": (lambda s: _swap(s.lab.noise("n.img", size=SIZE), s.image), True),
    "image of another disk": (lambda s: _swap(s.other_image, s.image), True),
    "image cut": (lambda stage: os.truncate(stage.image, 2 * MIB), True),
    "one bit flipped, old mtime": (_flip_keeping_mtime, True),
    "image of before": (_older(lambda s: [s.image]), True),
    "manifest gone": (lambda stage: stage.manifest.unlink(), True),
    "manifest of another job": (lambda s: _swap(s.other_manifest, s.manifest), True),
    "manifest of before": (_older(lambda s: [s.manifest]), True),
    "image and manifest of before": (_older(lambda s: [s.image, s.manifest]), True),
    "ledger gone": (lambda stage: stage.ledger.unlink(), False),
    "ledger of another job": (_swap_jobs_in_ledger, False),
    "ledger of before": (_older(lambda s: [s.ledger]), False),
    "other block size": (_option(block_size=4 * KIB), True),
    "other digest": (_option(digest="blake2b"), True),
    **{f"manifest cut at {share}": (_cut(_manifest, share), True) for share in (0.0, 0.1, 0.6)},
    "manifest cut at 0.9": (_cut(_manifest, 0.9), None),
    "manifest cut by a byte": (_cut(_manifest, 1.0, 1), None),
    **{f"ledger cut at {share}": (_cut(_ledger, share), False) for share in (0.0, 0.5, 0.9)},
    "ledger cut by a byte": (_cut(_ledger, 1.0, 1), False),
}


@pytest.mark.parametrize("name", HARMS)
def test_p5_stale_state_is_not_believed_and_no_dead_end(
    stage: Stage, name: str, tell: Tell
) -> None:
    harm, is_compared = HARMS[name]
    harm(stage)
    change(stage.source, 2 * MIB + 7, f"changed after {name}".encode())
    if name == "manifest of another job":
        # It says whose copy the image is; that is the operator's to sort out.
        with pytest.raises(TargetTaken):
            stage.sync()
        stage.manifest.unlink()
    stage.sync()
    assert_equal(stage.source, stage.image)
    said = any("compared block by block" in text for text in stage.notices)
    assert is_compared in (said, None), stage.notices
    if "image" not in name:
        assert stage.sent <= 3 * BLOCK, "what the target still has was sent again"
    tell(
        f"{stage.sent // KIB} KiB of {SIZE // KIB} sent; {'; '.join(stage.notices) or 'no notice'}"
    )


def test_p10_another_disk_behind_the_same_name(stage: Stage, tell: Tell) -> None:
    before = stage.image.read_bytes()
    shutil.copyfile(stage.other_source, stage.source)
    with pytest.raises(DeviceChanged):
        stage.sync()
    with pytest.raises(TargetTaken):
        stage.sync(state_dir=stage.lab.root / "no ledger")
    assert stage.image.read_bytes() == before, "P9"
    stage.sync(job="new")
    assert_equal(stage.source, stage.lab.replica("web", "new"))
    stage.source.write_bytes(before)
    tell("refused by ledger and manifest, the image untouched; copied as another job")
