"""Guests as plain directories: fix-ups are planned on them, and what was planned is carried out."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from p2v_sync.fixup.apply import apply, read_manifest, revert
from p2v_sync.fixup.draft import Draft
from p2v_sync.fixup.plan import Context, Finding, Fixup
from p2v_sync.fixup.tree import Tree


class PlainGuest:
    """A guest below ``root``; ``files``: path → text, in latin-1."""

    def __init__(self, root: Path, files: Mapping[str, str | bytes] | None = None) -> None:
        self.root = root
        for path, text in (files or {}).items():
            self.write(path, text)

    def at(self, path: str) -> Path:
        return self.root / path.lstrip("/")

    def write(self, path: str, text: str | bytes) -> None:
        self.at(path).parent.mkdir(parents=True, exist_ok=True)
        self.at(path).write_bytes(text if isinstance(text, bytes) else text.encode("latin-1"))

    def text(self, path: str) -> str:
        return self.at(path).read_bytes().decode("latin-1")

    def has(self, path: str) -> bool:
        return self.at(path).exists()

    def plan(self, fixups: Sequence[Fixup], context: Context) -> tuple[Draft, list[Finding]]:
        with Tree(self.root) as tree:
            draft, findings = Draft(tree), list[Finding]()
            for fixup in fixups:
                with draft.of(fixup.key):
                    findings += fixup.plan(draft, context)
        return draft, findings

    def fix(self, context: Context, *fixups: Fixup) -> list[Finding]:
        """Plan and carry out.  It can be taken back, and what is done is not planned again."""
        before = self._all()
        draft, findings = self.plan(fixups, context)
        with Tree(self.root) as tree:
            is_first = read_manifest(tree) is None
            apply(tree, draft.edits())
            if draft.edits() and is_first:
                revert(tree)
                assert self._all() == before
                apply(tree, draft.edits())
        again, _ = self.plan(fixups, context)
        assert again.edits() == []
        assert again.for_initramfs == draft.for_initramfs
        return findings

    def _all(self) -> dict[Path, str | bytes | None]:
        return {path: _content(path) for path in self.root.rglob("*")}


def _content(path: Path) -> str | bytes | None:
    if path.is_symlink():
        return str(path.readlink())
    return path.read_bytes() if path.is_file() else None
