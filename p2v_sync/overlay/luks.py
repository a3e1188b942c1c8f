"""Encrypted volumes (LUKS): the keys that were given, and opening those of the overlays with them.

A key is never in an argument, a log or a file of ours: cryptsetup(8) reads it from a pipe.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

from p2v_sync import run
from p2v_sync.device.storage import Volume
from p2v_sync.errors import ConfigError
from p2v_sync.overlay import mapper
from p2v_sync.units import MIB

VARIABLE = "P2V_LUKS_PASSPHRASE"
_KEY_MOST = 8 * MIB  # cryptsetup's own limit
_NO_FITTING_KEY = 2  # cryptsetup(8), RETURN CODES
_ASK_MOST = 3
_PATIENCE_S = 300.0  # a key slot may be made to take long


class Keys:
    """What may open encrypted volumes: what was given, and what is typed.

    One conversion opens a volume several times: what fitted is known then, and nobody is asked
    again.  What was typed for one volume is tried on the others too.
    """

    def __init__(
        self, given: Iterable[bytes] = (), ask: Callable[[str], str] | None = None
    ) -> None:
        """``ask``: None where nobody is there to answer; an empty answer leaves it locked."""
        self._given = [key for key in dict.fromkeys(given) if key]
        self._ask = ask
        self._fitting: dict[str, bytes] = {}  # by UUID
        self._given_up = set[str]()

    def candidates(self, uuid: str, name: str) -> Iterator[bytes]:
        """Keys to try on a volume, which people know by ``name``."""
        if uuid in self._fitting:
            yield self._fitting[uuid]
            return
        yield from [*self._given]
        if self._ask is None or uuid in self._given_up:
            return
        for _ in range(_ASK_MOST):
            typed = self._ask(f"Passphrase of {name}, which is encrypted (empty: leave it locked)")
            if not typed:
                break
            yield typed.encode(errors="surrogateescape")
        self._given_up.add(uuid)

    def remember(self, uuid: str, key: bytes) -> None:
        """It opened the volume."""
        self._fitting[uuid] = key
        if key not in self._given:
            self._given.append(key)


def read_keys(
    files: Iterable[Path], environ: Mapping[str, str], ask: Callable[[str], str] | None
) -> Keys:
    """Those of key files, of VARIABLE, and of whoever can be asked.  Raises ConfigError."""
    given = [key for path in files for key in _keys_in(path)]
    if passphrase := environ.get(VARIABLE):
        given.append(passphrase.encode(errors="surrogateescape"))
    return Keys(given, ask)


def _keys_in(path: Path) -> list[bytes]:
    """All of the file, as cryptsetup takes it; and a passphrase without the end of its line."""
    try:
        with path.open("rb") as file:
            key = file.read(_KEY_MOST + 1)
    except OSError as error:
        raise ConfigError(f"--key-file {path}: {error.strerror}") from error
    if not key or len(key) > _KEY_MOST:
        what = "it is larger than any key" if key else "it is empty"
        raise ConfigError(f"--key-file {path}: {what}")
    return [key, key.removesuffix(b"\n")]


def volume_name(volume: Volume) -> str:
    """For people: as the guest knows it."""
    return f"/dev/{volume.kernel_name or next(iter(volume.aliases), '')}"


def unlock(volume: Volume, keys: Keys) -> Path | None:
    """Its opened device; None when no key fits.

    ``volume`` stands on the overlays alone.  Raises CommandError for what is not about keys.
    """
    name = f"{mapper.PREFIX}luks-{volume.uuid}"
    # Not from the kernel's keyring: the map would lose its key with this session.
    argv = ["cryptsetup", "open", "--type", "luks", "--disable-keyring", "--key-file", "-"]
    for key in keys.candidates(volume.uuid, volume_name(volume)):
        run.capture(
            [*argv, volume.device, name],
            stdin=key,
            statuses=(0, _NO_FITTING_KEY),
            timeout_s=_PATIENCE_S,
        )
        if mapper.status_text(name):
            keys.remember(volume.uuid, key)
            return mapper.MAPPER / name
    return None
