"""One run a job."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from p2v_sync.errors import ConfigError, JobLocked, StateError
from p2v_sync.state.lock import is_locked, job_lock, waiting_lock

_HOLDER = """
import sys, time
from pathlib import Path
from p2v_sync.state.lock import job_lock

with job_lock(Path(sys.argv[1]), "web01"):
    print("held", flush=True)
    time.sleep(60)
"""


def holder(state_dir: Path) -> "subprocess.Popen[str]":
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": f"{root}{os.pathsep}{root / 'receiver'}"}
    argv = [sys.executable, "-c", _HOLDER, str(state_dir)]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_held_job_names_the_process(tmp_path: Path) -> None:
    with job_lock(tmp_path, "web01"):
        assert is_locked(tmp_path, "web01")
        with (
            pytest.raises(JobLocked, match=str(os.getpid())) as caught,
            job_lock(tmp_path, "web01"),
        ):
            pass
        assert "status web01" in str(caught.value.hint)
        with job_lock(tmp_path, "db01"):
            assert is_locked(tmp_path, "db01")
    assert not is_locked(tmp_path, "web01")


def test_it_is_free_again_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), job_lock(tmp_path, "web01"):
        raise RuntimeError
    with job_lock(tmp_path, "web01"):
        pass


def test_it_is_free_again_after_kill_9(tmp_path: Path) -> None:
    with holder(tmp_path) as process:
        assert is_locked(tmp_path, "web01")
        with pytest.raises(JobLocked, match=f"process {process.pid}"), job_lock(tmp_path, "web01"):
            pass
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not is_locked(tmp_path, "web01")
    with job_lock(tmp_path, "web01"):
        assert is_locked(tmp_path, "web01")


def test_a_process_it_starts_does_not_inherit_it(tmp_path: Path) -> None:
    with job_lock(tmp_path, "web01"):
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert not is_locked(tmp_path, "web01")
    child.communicate(b"\n")


def test_asking_never_makes_a_run_give_up(tmp_path: Path) -> None:
    done = threading.Event()

    def ask() -> None:
        while not done.is_set():
            is_locked(tmp_path, "web01")

    asking = [threading.Thread(target=ask) for _ in range(2)]
    for thread in asking:
        thread.start()
    try:
        for _ in range(50):
            with job_lock(tmp_path, "web01"):
                pass
    finally:
        done.set()
        for thread in asking:
            thread.join()


def test_asking_makes_nothing(tmp_path: Path) -> None:
    assert not is_locked(tmp_path / "none", "web01")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("name", ["", "../web01", "a/b", "/etc/passwd", "a\0b"])
def test_a_name_never_leaves_the_directory(tmp_path: Path, name: str) -> None:
    state_dir = tmp_path / "state"
    with pytest.raises(ConfigError), job_lock(state_dir, name):
        pass
    with pytest.raises(ConfigError):
        is_locked(state_dir, name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["..", ".", "ledger", "ledger.sqlite"])
def test_odd_names_stay_inside_and_apart_from_the_ledger(tmp_path: Path, name: str) -> None:
    with job_lock(tmp_path / "state", name), waiting_lock(tmp_path / "state" / "ledger.sqlite"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "web01.lock").symlink_to(tmp_path / "victim")
    with pytest.raises(StateError), job_lock(tmp_path, "web01"):
        pass
    assert not (tmp_path / "victim").exists()


def test_a_directory_that_cant_be_used_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StateError) as caught, job_lock(tmp_path / "file", "web01"):
        pass
    assert "--state DIR" in str(caught.value.hint)
    with pytest.raises(StateError), job_lock(tmp_path, "x" * 300):
        pass


def test_a_lock_file_with_nonsense_in_it_still_locks(tmp_path: Path) -> None:
    with job_lock(tmp_path, "web01"):
        (tmp_path / "web01.lock").write_text("nonsense")
        with pytest.raises(JobLocked, match="another run works"), job_lock(tmp_path, "web01"):
            pass


def test_a_waiting_lock_comes_after_the_other(tmp_path: Path) -> None:
    order = []

    def second() -> None:
        with waiting_lock(tmp_path / "lock"):
            order.append("second")

    with waiting_lock(tmp_path / "lock"):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join(0.1)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]
