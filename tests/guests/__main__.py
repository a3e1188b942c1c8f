"""``python -m tests.guests``: writes the golden files anew, for a person to read the difference."""

import tempfile
from pathlib import Path

from tests.guests.build import HERE, NAMES, as_golden, build

if __name__ == "__main__":
    for each in NAMES:
        with tempfile.TemporaryDirectory() as scratch:
            guest = build(each, Path(scratch) / "root").inspected()
        (HERE / f"{each}.json").write_text(as_golden(guest))
