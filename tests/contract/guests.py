"""Guests as plain directories: fix-ups are planned on them, and what was planned is carried out."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from p2v_sync.fixup.draft import Appended, Content, Directory, Draft, Edit, Link
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
            draft.edits()
        return draft, findings

    def fix(self, context: Context, *fixups: Fixup) -> list[Finding]:
        """Plan and carry out; what was planned once is not planned again."""
        draft, findings = self.plan(fixups, context)
        for edit in draft.edits():
            self._carry_out(edit)
        again, _ = self.plan(fixups, context)
        assert again.edits() == []
        assert again.for_initramfs == draft.for_initramfs
        return findings

    def _carry_out(self, edit: Edit) -> None:
        path = self.at(edit.path)
        match edit.after:
            case Content(data):
                path.unlink(missing_ok=True)
                path.write_bytes(data)
            case Appended(length, data):
                path.write_bytes(path.read_bytes()[:length] + data)
            case Link(target):
                path.unlink(missing_ok=True)
                path.symlink_to(target)
            case Directory():
                path.mkdir()
            case None:
                path.unlink()
