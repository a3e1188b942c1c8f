"""The run between its hooks: what happens before, after, and when it failed."""

import logging
from collections.abc import Callable, Mapping

from p2v_sync import run
from p2v_sync.errors import CommandError, Interrupted, P2vError
from p2v_sync.wizard.flow import Values
from p2v_sync.wizard.settings import Value

log = logging.getLogger(__name__)

_HOOK_WITHIN_S = 3600.0


def hook(values: Values, name: str, told: Mapping[str, str]) -> None:
    """Run ``hooks.NAME`` with ``told`` in its environment.  Raises CommandError."""
    command = values.get(f"hooks.{name}")
    if command is None:
        return
    log.info("the hook %s: %s", name, command)
    argv = ["sh", "-c", str(command)]
    try:
        said = run.capture(argv, timeout_s=_HOOK_WITHIN_S, environ=told)
    except CommandError as error:
        raise CommandError(f"the hook {name}: {error.message}") from error
    log.info("the hook %s ended well: %s", name, said.strip())


Work = Callable[[dict[str, Value]], None]
KeepLog = Callable[[Values], None]


def with_hooks(
    given: Callable[[], Values],
    take_values: Callable[[], dict[str, Value]],
    work: Work,
    keep_log: KeepLog,
) -> dict[str, Value]:
    """``work`` between its hooks; the fail hook on every failure but the operator's leaving.

    ``given``: what is known when there are no values yet.  Returns all values.  The fail hook's
    own failure is only logged.  ``keep_log`` comes after the work, and before a hook that may
    switch the machine off.
    """
    values: dict[str, Value] = {}
    try:
        values = take_values()
        hook(values, "pre", _told(values))
        work(values)
        log.info("all went well")
        keep_log(values)
        hook(values, "post", _told(values))
    except Interrupted as error:
        if values:
            log.info("ended: %s", error)
            keep_log(values)
        raise
    except Exception as error:
        status = error.exit_code if isinstance(error, P2vError) else 1
        log.info("failed with status %d: %s", status, error, exc_info=status == 1)  # 1: a bug
        if values:
            keep_log(values)
        _fail(values or given(), error, status)
        raise
    return values


def _fail(values: Values, error: Exception, status: int) -> None:
    told = {"P2V_ERROR": str(error), "P2V_STATUS": str(status)}
    try:
        hook(values, "fail", {**_told(values), **told})
    except CommandError as second:
        log.error("%s", second)


def _told(values: Values) -> dict[str, str]:
    return {"P2V_NAME": str(values.get("name", "")), "P2V_TARGET": str(values.get("target", ""))}


def end(values: Values) -> None:
    """Power off or reboot, where that was asked for.  Raises CommandError."""
    action = values.get("post", "shell")
    if action in ("poweroff", "reboot"):
        run.capture(["systemctl", str(action)])
