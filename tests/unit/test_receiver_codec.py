"""codec.py wherever the receiver runs: the same digests, and every compression that is offered."""

import json
import mmap
import os
import subprocess
from pathlib import Path

import pytest

from p2v_receiver import codec
from tests.conftest import OLDEST_PYTHON
from tests.contract.channel_suite import noise
from tests.unit.test_house import RECEIVER

LENGTHS = [0, 1, 3, 4, 8, 9, 16, 17, 128, 129, 240, 241, 511, 4095, 4096, 65537, 1 << 20]
SEEDS = [0, 1, 0xDEADBEEF, (1 << 64) - 1]

# Digests, entries and compressions of one end, as the other one has to find them.
ASK = """
import json, sys
sys.path.insert(0, sys.argv[1])
from p2v_receiver import codec
data = open(sys.argv[2], "rb").read()
lengths, seeds = json.loads(sys.argv[3])
for_bytes = lambda make: [
    make(seed)(kind(data[:length])).hex()
    for seed in seeds for length in lengths for kind in (bytes, bytearray, memoryview)
]
found = {name: for_bytes(lambda seed: codec.digest_function(name, seed))
         for name in codec.digest_names()}
found["strong"] = for_bytes(codec.strong_digest)
for name in codec.digest_names():
    found[name + " of pages"] = [
        codec.page_digests_function(name, seed)(memoryview(kind(data[:length]))).hex()
        for seed in seeds for length in lengths if length for kind in (bytes, bytearray)
    ]
found["codecs"] = {name: codec.codec_by_name(name).compress(memoryview(data)).hex()
                   for name in codec.codec_names()}
back = []
for number, packed in json.loads(sys.argv[4]):
    raw = codec.decompress(number, memoryview(bytes.fromhex(packed)), 4096)
    back.append(bytes(raw) == data[:4096])
found["back"] = back
print(json.dumps(found))
"""


@pytest.mark.real_parts
def test_p4_the_oldest_python_says_the_same(tmp_path: Path) -> None:
    data = noise(1 << 20)
    (tmp_path / "data").write_bytes(data)
    packed = [
        [codec.codec_by_name(name).number, codec.codec_by_name(name).compress(data[:4096]).hex()]
        for name in codec.codec_names()
    ]
    asked = [json.dumps([LENGTHS, SEEDS]), json.dumps(packed)]
    argv = [OLDEST_PYTHON, "-I", "-S", "-c", ASK, str(RECEIVER.parent), str(tmp_path / "data")]
    environ = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    answer = subprocess.run(
        [*argv, *asked], check=True, capture_output=True, timeout=60, env=environ
    )
    found = json.loads(answer.stdout)
    functions = {name: name for name in codec.digest_names()}
    of_pages = {f"{name} of pages": name for name in functions}
    assert {*found} == {*functions, *of_pages, "strong", "codecs", "back"}
    for key, name in of_pages.items():
        expected = []
        for seed in SEEDS:
            digests = codec.page_digests_function(name, seed)
            for length in filter(None, LENGTHS):
                expected += [digests(memoryview(data[:length])).hex()] * 2
        assert found[key] == expected
    for name in (*functions, "strong"):
        expected = []
        for seed in SEEDS:
            digest = codec.strong_digest(seed) if name == "strong" else None
            digest = digest or codec.digest_function(name, seed)
            for length in LENGTHS:
                expected += [digest(data[:length]).hex()] * 3
        assert found[name] == expected
    assert found["back"] == [True] * len(packed)
    for name, text in found["codecs"].items():
        number = codec.codec_by_name(name).number
        assert codec.decompress(number, memoryview(bytes.fromhex(text)), len(data)) == data


def test_the_library_reads_a_buffer_of_the_kernel_where_it_is() -> None:
    """And leaves it free to be closed."""
    with_seed = codec._xxh3_from_library()
    assert with_seed is not None
    with mmap.mmap(-1, 8192) as area:
        area[:4] = b"data"
        with memoryview(area) as view, view[1:4097] as part:
            assert with_seed(3)(part) == codec.digest_function("xxh3", 3)(bytes(part))


@pytest.mark.parametrize("name", codec.codec_names())
@pytest.mark.parametrize("at", range(0, 60, 7))
def test_cut_streams_are_damaged(name: str, at: int) -> None:
    chosen = codec.codec_by_name(name)
    packed = chosen.compress(noise(4096))
    with pytest.raises(codec.CodecError):
        codec.decompress(chosen.number, memoryview(packed[: len(packed) - at - 1]), 4096)


def test_without_libraries_there_is_always_a_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec, "_load", lambda *_: None)
    assert codec._xxh3_from_library() is None
    assert codec._pages_from_library() is None
    assert codec._load_zstd() is None
    monkeypatch.setattr(codec, "_DIGESTS", {"blake2b": codec._blake2b})
    monkeypatch.setattr(codec, "_CODECS", {codec.ZLIB: codec._CODECS[codec.ZLIB]})
    assert codec.digest_names() == ["blake2b"]
    assert codec.codec_names() == ["zlib"]


def test_a_library_that_is_not_there() -> None:
    assert codec._load("libp2v-that-nobody-has.so.7") is None
