"""What we read and write of an initramfs, against the programs that others use for it."""

import shutil
import subprocess
from pathlib import Path

import pytest

from p2v_sync.fixup.guest import Generator
from p2v_sync.fixup.initramfs import cpio, segments
from p2v_sync.fixup.initramfs.compression import as_lz4
from p2v_sync.fixup.initramfs.drivers import InitramfsDrivers
from tests.contract import initramfs
from tests.contract.initramfs import ALIASES, IMAGE, VERSION, carried_out, context

FILES = {"etc/fstab": b"UUID=1 / ext4\n" * 3000, "init": b"#!/bin/sh\n", "lib/modules/empty": b""}


def run(*argv: str, stdin: bytes = b"", cwd: Path | None = None) -> bytes:
    if shutil.which(argv[0]) is None:
        pytest.skip(f"there is no {argv[0]} here")
    done = subprocess.run(argv, input=stdin, capture_output=True, cwd=cwd, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


@pytest.mark.parametrize("program", ["cpio", "bsdcpio"])
def test_cpio_unpacks_what_we_write(tmp_path: Path, program: str) -> None:
    data = initramfs.archive(FILES, {"bin": "usr/bin"})
    run(program, "-i", "-d", "--quiet", stdin=data, cwd=tmp_path)
    for name, content in FILES.items():
        assert (tmp_path / name).read_bytes() == content
    assert (tmp_path / "bin").readlink() == Path("usr/bin")


@pytest.mark.parametrize("kind", ["newc", "crc"])
def test_we_read_what_cpio_writes(tmp_path: Path, kind: str) -> None:
    names = [*FILES, "second"]
    for name, content in FILES.items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    (tmp_path / "second").hardlink_to(tmp_path / "etc/fstab")
    listed = "\n".join(names).encode()
    data = run("cpio", "-o", "-H", kind, "--quiet", stdin=listed, cwd=tmp_path)
    found, _ = cpio.read(memoryview(data), 0)
    contents = {entry.name: bytes(entry.data) for entry in found}
    assert contents == {**FILES, "second": FILES["etc/fstab"]}


@pytest.mark.parametrize(
    "argv",
    [
        ("gzip", "-c"),
        ("bzip2", "-c"),
        ("xz", "--check=crc32", "-c"),
        ("xz", "--format=lzma", "-c"),
        ("zstd", "-q", "-19", "-c"),
        ("zstd", "-q", "-T0", "--long", "-c"),
        ("lzop", "-c"),
        ("lzop", "-9", "-c", "--crc32"),
        ("lz4", "-q", "-l", "-c"),
        ("lz4", "-q", "-l", "-9", "-c"),
    ],
)
def test_we_unpack_what_others_packed(argv: tuple[str, ...]) -> None:
    archive = initramfs.archive(FILES)
    packed = run(*argv, stdin=archive)
    # lz4 data has no end but a length of zero.
    image = segments.parse(bytes(8) + packed + bytes(-len(packed) % 4 + 4) + archive)
    assert image.reason == ""
    for segment in image.segments:
        found = {entry.name: bytes(entry.data) for entry in segment.entries if entry.is_file}
        assert found == FILES
    assert image.segments[0].end == 8 + len(packed)


def test_lz4_unpacks_what_we_pack() -> None:
    data = initramfs.archive(FILES)
    assert run("lz4", "-q", "-d", "-c", stdin=as_lz4(data)) == data


def test_kmod_finds_modules_by_our_indices(tmp_path: Path) -> None:
    """modprobe looks into nothing but the binary indices."""
    initramfs.install(tmp_path)
    file = tmp_path / IMAGE[1:]
    file.parent.mkdir()
    file.write_bytes(initramfs.image(Generator.DRACUT))
    carried_out(tmp_path, InitramfsDrivers(), context())
    inside = tmp_path / "inside"
    inside.mkdir()
    image = segments.parse(file.read_bytes())
    run("cpio", "-i", "-d", "-u", "--quiet", stdin=file.read_bytes(), cwd=inside)
    last = image.segments[-1]
    appended = file.read_bytes()[last.start : last.end]
    run("cpio", "-i", "-d", "-u", "--quiet", stdin=appended, cwd=inside)

    ask = ["modprobe", "-d", str(inside), "-S", VERSION, "--show-depends"]
    for alias, name in ALIASES.items():
        said = run(*ask, alias.replace("*", "1")).decode().split()
        assert said[-1].endswith(f"/{name}.ko"), said
    said = run(*ask, "virtio-blk").decode().split()
    order = [Path(word).stem for word in said if word.endswith(".ko")]
    assert order == ["virtio", "virtio_ring", "virtio_blk"]
