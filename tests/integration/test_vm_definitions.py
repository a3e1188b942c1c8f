"""Definitions of virtual machines, as the programs they are for understand them."""

import ctypes
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from p2v_sync.vm.files import files
from tests.contract.machines import NASTY, samples

SAMPLES = {name: (definitions, facts) for name, definitions, facts in samples()}
# Where a script may lie; Proxmox can't have a comma there.
DIRECTORY = 'it\'s $(touch HURT) "here"; `touch HURT`'

needs_validator = pytest.mark.skipif(
    shutil.which("virt-xml-validate") is None,
    reason="virt-xml-validate is missing (package libvirt-clients)",
)


def write_all(sample: str, directory: Path) -> list[Path]:
    definitions, facts = SAMPLES[sample]
    directory.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, content in files(definitions, facts, with_virt_v2v=True).items():
        paths.append(directory / name)
        paths[-1].write_bytes(content)
    return paths


@needs_validator
@pytest.mark.parametrize("sample", SAMPLES)
def test_libvirts_schema(sample: str, tmp_path: Path) -> None:
    domains = [
        path
        for path in write_all(sample, tmp_path)
        # virt-v2v's input is a dialect of which libvirt knows nothing.
        if path.suffix == ".xml" and not path.name.endswith(".virt-v2v.xml")
    ]
    assert len(domains) == 3
    for path in domains:
        argv = ["virt-xml-validate", str(path), "domain"]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


class Xl:
    """libxlutil, the parser of xl itself."""

    def __init__(self) -> None:
        try:
            self._library = ctypes.CDLL("libxlutil.so")
        except OSError:
            pytest.skip("libxlutil.so is missing (package libxen-dev)")
        self._library.xlu_cfg_init.restype = ctypes.c_void_p
        self._library.xlu_cfg_get_listitem.restype = ctypes.c_char_p
        report = ctypes.c_void_p.in_dll(ctypes.CDLL(None), "stderr")
        self._config = ctypes.c_void_p(self._library.xlu_cfg_init(report, b"test"))

    def read(self, data: bytes) -> None:
        assert self._library.xlu_cfg_readdata(self._config, data, len(data)) == 0

    def string(self, key: str) -> str:
        value = ctypes.c_char_p()
        found = self._library.xlu_cfg_get_string(self._config, key.encode(), ctypes.byref(value), 0)
        assert found == 0, key
        return (value.value or b"").decode()

    def list(self, key: str) -> list[bytes]:
        items, count = ctypes.c_void_p(), ctypes.c_int()
        found = self._library.xlu_cfg_get_list(
            self._config, key.encode(), ctypes.byref(items), ctypes.byref(count), 0
        )
        assert found == 0, key
        return [self._library.xlu_cfg_get_listitem(items, at) for at in range(count.value)]

    def path_of_disk(self, spec: bytes) -> str:
        """Parses it as xl does; libxl_device_disk begins with domid, domain name and path."""

        class Disk(ctypes.Structure):
            _fields_ = (
                ("domid", ctypes.c_uint32),
                ("domain", ctypes.c_char_p),
                ("path", ctypes.c_char_p),
                ("rest", ctypes.c_char * 1024),
            )

        disk, specs = Disk(), (ctypes.c_char_p * 1)(spec)
        assert self._library.xlu_disk_parse(self._config, 1, specs, ctypes.byref(disk)) == 0
        return (disk.path or b"").decode()


@pytest.mark.parametrize("sample", SAMPLES)
def test_xls_own_parser(sample: str, tmp_path: Path) -> None:
    definitions, _ = SAMPLES[sample]
    paths = [path for path in write_all(sample, tmp_path) if path.suffix == ".cfg"]
    assert len(paths) == 2
    for path in paths:
        xl = Xl()
        xl.read(path.read_bytes())
        assert xl.string("name") == definitions.recommended.name
        assert xl.string("type") == "hvm"
        assert xl.string("memory") == str(definitions.recommended.memory >> 20)
        disks = definitions.recommended.disks
        found = [xl.path_of_disk(spec) for spec in xl.list("disk")]
        assert found == [definitions.recommended.path_of(disk) for disk in disks]
        assert len(xl.list("vif")) == len(definitions.recommended.nics)


@pytest.mark.parametrize("sample", SAMPLES)
def test_a_yaml_parser(sample: str, tmp_path: Path) -> None:
    code = "import json, sys, yaml; json.dump(yaml.safe_load(sys.stdin.buffer), sys.stdout)"
    for path in write_all(sample, tmp_path):
        if path.suffix == ".yaml":
            argv = ["/usr/bin/python3", "-c", code]
            done = subprocess.run(argv, input=path.read_bytes(), capture_output=True, check=False)
            assert done.returncode == 0, f"{done.stderr.decode()} (package python3-yaml)"
            manifest = json.loads(done.stdout)
            domain = manifest["spec"]["template"]["spec"]["domain"]
            vm = SAMPLES[sample][0].recommended
            assert domain["firmware"]["uuid"] == vm.uuid
            assert len(domain["devices"]["disks"]) == len(vm.disks)
            assert domain["chassis"].get("manufacturer") == vm.smbios.get("sys_vendor")


# The scripts, with stubs of what they run.

STUB = """\
#!/bin/sh
case " $* " in *" --help "*) echo "  --block-driver <driver>"; exit;; esac
{ printf '%s\\0' "${0##*/}" "$@"; printf '\\n\\0'; } >>"$STUB_LOG"
case $1 in create) for last; do :; done; case $last in ./*) : >"$last";; esac;; esac
"""


class Scripts:
    """Runs scripts in a directory of an awkward name; the programs write down what they get."""

    def __init__(self, root: Path, directory: str = DIRECTORY) -> None:
        self.place, self._bin, self._log = root / directory, root / "bin", root / "log"
        self._bin.mkdir()
        for name in ("qm", "qemu-system-x86_64", "virt-v2v-in-place", "qemu-img"):
            (self._bin / name).write_text(STUB)
            (self._bin / name).chmod(0o755)
        self._root = root

    def run(self, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        environ = {
            "PATH": f"{self._bin}:/usr/bin:/bin",
            "STUB_LOG": str(self._log),
            "VIRTIO_WIN": str(self._root),
            "CDPATH": "/",
        }
        # Neither the directory it is started in nor its name may matter.
        relative = f"{self.place.name}/{name}"
        argv = ["sh", relative, *arguments]
        return subprocess.run(
            argv, cwd=self._root, env=environ, capture_output=True, text=True, check=False
        )

    def calls(self) -> list[list[str]]:
        words = self._log.read_text().split("\0")[:-1] if self._log.exists() else []
        found: list[list[str]] = [[]]
        for word in words:
            if word == "\n":
                found.append([])
            else:
                found[-1].append(word)
        return found[:-1]

    def assert_unhurt(self) -> None:
        assert not list(self._root.rglob("HURT"))


@pytest.fixture
def scripts(tmp_path: Path) -> Scripts:
    return Scripts(tmp_path)


@pytest.mark.parametrize("sample", SAMPLES)
def test_shells_take_the_scripts(sample: str, tmp_path: Path) -> None:
    found = [path for path in write_all(sample, tmp_path) if path.suffix == ".sh"]
    assert len(found) == 5
    for path in found:
        for shell in ("sh", "bash", "mksh"):
            subprocess.run([shell, "-n", str(path)], check=True)


def value_of(words: list[str], option: str) -> str:
    return words[words.index(option) + 1]


@pytest.mark.parametrize("sample", ["bios", "hostile", "old"])
def test_qemu_gets_each_value_whole(sample: str, scripts: Scripts) -> None:
    write_all(sample, scripts.place)
    vm = SAMPLES[sample][0].recommended
    done = scripts.run(f"{vm.stem}.qemu.sh", "-nographic", "-append", "a b")
    assert done.returncode == 0, done.stderr
    (words,) = scripts.calls()
    assert words[0] == "qemu-system-x86_64"
    assert words[-3:] == ["-nographic", "-append", "a b"]
    assert value_of(words, "-name") == "guest=" + vm.name.replace(",", ",,")
    smbios = [words[at + 1] for at, word in enumerate(words) if word == "-smbios"]
    serial = vm.smbios["product_serial"].replace(",", ",,")
    assert any(f",serial={serial}," in each for each in smbios)
    scripts.assert_unhurt()


def test_uefi_variables_are_the_machines_own(scripts: Scripts) -> None:
    write_all("uefi", scripts.place)
    firmware = scripts.place.parent / "ovmf"
    firmware.mkdir()
    script = scripts.place / "db.compat.qemu.sh"
    text = script.read_text().replace("/usr/share/edk2/ovmf", str(firmware))
    script.write_text(text.replace("/usr/share/", "/nowhere/"))
    done = scripts.run(script.name)
    assert (done.returncode, scripts.calls()) == (1, [])
    assert "install the package ovmf" in done.stderr
    for name in ("OVMF_CODE.fd", "OVMF_VARS.fd"):
        (firmware / name).write_text(name)
    assert scripts.run(script.name).returncode == 0
    own = scripts.place / "db.compat_OVMF_VARS.fd"
    assert own.read_text() == "OVMF_VARS.fd"
    (words,) = scripts.calls()
    assert f"if=pflash,unit=0,format=raw,readonly=on,file={firmware}/OVMF_CODE.fd" in words
    assert f"if=pflash,unit=1,format=raw,file={own.name}" in words
    own.write_text("boot entries")
    scripts.run(script.name)
    assert own.read_text() == "boot entries"


@pytest.mark.parametrize("sample", ["bios", "hostile", "uefi"])
def test_proxmox_gets_each_value_whole(sample: str, scripts: Scripts) -> None:
    write_all(sample, scripts.place)
    vm = SAMPLES[sample][0].recommended
    done = scripts.run(f"{vm.stem}.proxmox.sh", "100", "local-lvm")
    assert done.returncode == 0, done.stderr
    create, *sets = scripts.calls()
    assert create[:3] == ["qm", "create", "100"]
    assert all(call[:3] == ["qm", "set", "100"] for call in sets)
    assert len(sets) == len(vm.disks) + 1 + vm.is_uefi
    imports = [value for call in sets for value in call if "import-from" in value]
    for disk, value in zip(vm.disks, imports, strict=True):
        path = value.partition("import-from=")[2].partition(",")[0]
        assert path == str(scripts.place / disk.image.file)
    scripts.assert_unhurt()


def test_proxmox_is_asked_nothing_without_a_number_and_a_storage(scripts: Scripts) -> None:
    write_all("bios", scripts.place)
    done = scripts.run("web01.proxmox.sh", "100")
    assert (done.returncode, scripts.calls()) == (2, [])
    assert "usage" in done.stderr


def test_proxmox_can_not_have_a_comma_in_a_path(tmp_path: Path) -> None:
    scripts = Scripts(tmp_path, "a,b")
    write_all("bios", scripts.place)
    done = scripts.run("web01.proxmox.sh", "100", "local")
    assert (done.returncode, scripts.calls()) == (1, [])
    assert "comma" in done.stderr


@pytest.mark.parametrize("sample", ["windows", "hostile"])
def test_p8_virt_v2v_works_above_the_replica(sample: str, scripts: Scripts) -> None:
    write_all(sample, scripts.place)
    stem = SAMPLES[sample][0].recommended.stem
    done = scripts.run(f"{stem}.virt-v2v.sh", "--key", "all:key:a b")
    assert done.returncode == 0, done.stderr
    *creates, convert = scripts.calls()
    for name, call in zip(("sda", "sdb"), creates, strict=True):
        base = ["-b", f"./{name}.img", "-F", "raw", f"./{name}.qcow2"]
        assert call == ["qemu-img", "create", "-q", "-f", "qcow2", *base]
    driver = ["--block-driver", "virtio-blk", "--key", "all:key:a b"]
    head = ["virt-v2v-in-place", "-v", "-x", "-i", "libvirtxml", "--root", "first"]
    assert convert == [*head, *driver, f"./{stem}.virt-v2v.xml"]
    # Again: what the first run made is in use by nobody, and is kept.
    assert scripts.run(f"{stem}.virt-v2v.sh").returncode == 0
    assert ["qemu-img", "info", "./sda.qcow2"] in scripts.calls()
    assert len([*scripts.place.glob("sda.qcow2.aside-*")]) == 1
    scripts.assert_unhurt()


def test_the_awkward_name_is_one() -> None:
    """Or the tests above show nothing."""
    assert {*"'\",$(`;&|<>#{}[]\\ "} <= {*NASTY}
