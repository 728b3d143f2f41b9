"""Torch's pickles: what is read, damaged and malicious ones, and those that ask for more than they hold."""

from __future__ import annotations

import io
import os
import pickle
import re
import subprocess
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import karlo
import pytest
import torch
from tensors import STATE, random, read, same
from torch import nn

from unclip.weights import Foreign, in_file, tensors_by_name, tree


@pytest.fixture(autouse=True)
def torch_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own readers believe the sizes that a file names, and take for a zip file what Python does not."""

    def asked(*_: Any, **__: Any) -> None:
        raise AssertionError("torch was asked to read a file")

    for module, name in ((torch, "load"), (torch.jit, "load"), (torch._C, "PyTorchFileReader"), (torch._C, "import_ir_module")):
        monkeypatch.setattr(module, name, asked)


def test_views_parameters_and_types(tmp_path: Path) -> None:
    base = random(6, 5)
    kinds = (
        torch.float64,
        torch.float16,
        torch.bfloat16,
        torch.int64,
        torch.int32,
        torch.int16,
        torch.int8,
        torch.uint8,
        torch.bool,
    )
    state: dict[str, Any] = {str(kind): base.to(kind) for kind in kinds}
    state |= {"part": base[2:4, 1:3], "turned": base.t(), "row": base[3], "number": base[1, 1]}
    torch.save(
        {**state, "parameter": nn.Parameter(base), "nested": {"list": [base[0], (base[1], None, "word", 3)]}}, tmp_path / "x"
    )
    found = read(in_file(tmp_path / "x"))
    expected = {**state, "parameter": base, "nested.list.0": base[0], "nested.list.1.0": base[1]}
    assert same(found, expected) and all(x.is_contiguous() for x in found.values())
    assert found["row"].untyped_storage().nbytes() == 5 * 4  # not the whole that it was a view of


def test_torchscript_is_read_and_not_run(tmp_path: Path) -> None:
    state = {"visual.conv.weight": random(3, 2), "blocks.0.bias": random(3), "blocks.10.bias": random(2), "size": torch.tensor(3)}
    karlo.save_openai(state, tmp_path / "x.pt")
    assert same(read(in_file(tmp_path / "x.pt")), state)
    karlo.save_openai({name: x.half() if x.is_floating_point() else x for name, x in state.items()}, tmp_path / "half.pt")
    assert in_file(tmp_path / "half.pt")["visual.conv.weight"].dtype == torch.float16


# Malicious files


class Bomb:
    """An object whose pickle asks for a call."""

    def __init__(self, function: Callable[..., Any], *arguments: Any):
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def zipped(pickled: bytes, path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", pickled)
        file.writestr("archive/version", "3")
    return path


def bombs(mark: Path) -> dict[str, Any]:
    return {
        "os": Bomb(os.system, f"touch {mark}"),
        "exec": Bomb(exec, f"open({str(mark)!r}, 'w')"),
        "open": Bomb(open, str(mark), "w"),
        "popen": Bomb(subprocess.Popen, ["touch", str(mark)]),
        "loads": Bomb(pickle.loads, pickle.dumps(Bomb(os.system, f"touch {mark}"))),
        "getattr": Bomb(getattr, "x", "upper"),
    }


@pytest.mark.parametrize("kind", list(bombs(Path("x"))))
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_nothing_in_a_pickle_runs(tmp_path: Path, kind: str, protocol: int) -> None:
    mark = tmp_path / "ran"
    bomb = bombs(mark)[kind]
    for place, content in (
        ("root", bomb),
        ("value", {"state_dict": {"a": bomb}}),
        ("key", {"state_dict": {("b", "a"): [bomb]}}),
    ):
        path = zipped(pickle.dumps(content, protocol), tmp_path / f"{place}.ckpt")
        with pytest.raises(ValueError, match="which is no tensor; it was not run|cannot be read as torch weights"):
            in_file(path)
        path.write_bytes(pickle.dumps(content, protocol))  # bare, as before torch 1.6
        with pytest.raises(ValueError, match="cannot be read as torch weights"):
            in_file(path)
    assert not mark.exists()


def test_what_a_trainer_left_beside_the_weights_does_no_harm(tmp_path: Path) -> None:
    """Settings of libraries that are not installed, and worse: read as names, and nobody looks at them."""
    mark = tmp_path / "ran"
    torch.save({"state_dict": STATE, "hyper_parameters": Bomb(os.system, f"touch {mark}")}, tmp_path / "x.ckpt")
    saved = tree(tmp_path / "x.ckpt")
    assert same(read(tensors_by_name(saved["state_dict"], "x")), STATE)
    assert isinstance(saved["hyper_parameters"], Foreign) and saved["hyper_parameters"].name == "system"
    assert not mark.exists()


def test_pickles_cannot_change_what_others_get(tmp_path: Path) -> None:
    """BUILD writes into what a pickle got hold of: here, torch's rebuilding function and OrderedDict."""
    for module, name in (("torch._utils", "_rebuild_tensor_v2"), ("collections", "OrderedDict"), ("os", "system")):
        build = b"c" + module.encode() + b"\n" + name.encode() + b"\n}(S'__defaults__'\nNS'marked'\nI1\nub."
        path = zipped(build, tmp_path / "x.ckpt")
        try:
            tensors_by_name(tree(path), str(path))
        except ValueError as error:
            assert "no tensor" in str(error) or "cannot be read" in str(error)
    assert not hasattr(OrderedDict, "marked") and not hasattr(Foreign, "marked") and not hasattr(os.system, "marked")
    torch.save(STATE, tmp_path / "x.bin")
    assert same(read(in_file(tmp_path / "x.bin")), STATE)


def test_pickles_that_hold_themselves(tmp_path: Path) -> None:
    loop: dict[str, Any] = {"a": 1}
    loop["self"] = loop
    deep: list[Any] = []
    for _ in range(40):  # 2^40 paths
        deep = [deep, deep]
    for tangle in (loop, deep):
        assert in_file(zipped(pickle.dumps(tangle), tmp_path / "x.ckpt")) == {}


def edited(path: Path, change: Callable[[str, bytes], bytes | None]) -> Path:
    """A copy of a zip archive with some entries changed or left out."""
    out = path.with_suffix(".edited")
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(out, "w") as target:
        for name in source.namelist():
            data = change(name, source.read(name))
            if data is not None:
                target.writestr(name, data)
    return out


def test_damaged_archives(tmp_path: Path) -> None:
    path = tmp_path / "x.ckpt"
    torch.save({"a": random(100)}, path)
    whole = path.read_bytes()
    for data in (whole[:-30], whole[: len(whole) // 2], whole[:10], b"", b"PK\x03\x04" + b"x" * 50):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=r"x.ckpt cannot be read as torch weights .*is it whole\?") as error:
            in_file(path)
        assert "\n" not in str(error.value)
    path.write_bytes(whole)
    for change, message in (
        (lambda n, d: None if n.endswith("data/0") else d, "data/0 is missing or has not the 100 numbers"),
        (lambda n, d: d[:-4] if n.endswith("data/0") else d, "has not the 100 numbers"),
        (lambda n, d: None if n.endswith("data.pkl") else d, "torch did not make it"),
        (lambda n, d: b"big" if n.endswith("byteorder") else d, "in the other order"),
        (lambda n, d: d[:40] if n.endswith("data.pkl") else d, "cannot be read"),
        (lambda n, d: d.replace(b"FloatStorage", b"FloatStorags") if n.endswith("data.pkl") else d, "'FloatStorags'"),
    ):
        with pytest.raises(ValueError, match=message):
            in_file(edited(path, change))
    flipped = bytearray(whole)
    at = whole.index(random(100).numpy().tobytes()) + 8
    flipped[at] ^= 1
    path.write_bytes(bytes(flipped))
    with pytest.raises(ValueError, match="cannot be read at .*data/0 .*is it whole"):  # the archive's check sum
        in_file(path)["a"].read(torch.float32)
    with pytest.raises(ValueError, match="lost.bin is missing"):
        in_file(tmp_path / "lost.bin")


def test_tensors_that_reach_out_of_their_storage(tmp_path: Path) -> None:
    class Wide:
        def __reduce__(self) -> Any:
            base = random(4).untyped_storage()
            return torch._utils._rebuild_tensor_v2, (
                torch.storage.TypedStorage(wrap_storage=base, dtype=torch.float32),
                *self.how,
            )

    for how, message in (
        ((0, (5,), (1,), False, OrderedDict()), "ends behind its storage"),
        ((2, (1, 2), (1, 2), False, OrderedDict()), "ends behind its storage"),
        ((-1, (2,), (1,), False, OrderedDict()), "that cannot be"),
        ((0, (2,), (-1,), False, OrderedDict()), "that cannot be"),
        ((0, (2,), (1, 1), False, OrderedDict()), "that cannot be"),
    ):
        wide = Wide()
        wide.how = how  # type: ignore[attr-defined]
        torch.save({"a": wide}, tmp_path / "x.bin")
        with pytest.raises(ValueError, match=message):
            in_file(tmp_path / "x.bin")


# Before torch 1.6


def legacy(state: Any, path: Path) -> bytearray:
    torch.save(state, path, _use_new_zipfile_serialization=False)
    return bytearray(path.read_bytes())


def test_legacy_files(tmp_path: Path) -> None:
    base = random(6, 5)
    state = {**STATE, "part": base[2:4, 1:3], "turned": base.t(), "flags": torch.tensor([True, False]), "half": base.bfloat16()}
    legacy({"state_dict": state, "epoch": 3}, tmp_path / "x.ckpt")
    saved = tree(tmp_path / "x.ckpt")
    assert saved["epoch"] == 3 and same(read(tensors_by_name(saved["state_dict"], "x")), state)


def test_damaged_legacy_files(tmp_path: Path) -> None:
    path = tmp_path / "x.ckpt"
    whole = legacy({"a": random(100), "b": random(50, seed=1)}, path)
    at = bytes(whole).index((100).to_bytes(8, "little") + random(100).numpy().tobytes())
    longer = bytearray(whole)
    longer[at : at + 8] = (2**40).to_bytes(8, "little")
    big_endian = re.sub(rb"(?<=little_endianq.)\x88", b"\x89", bytes(whole))
    for data, message in (
        (whole[:-4], "has not the (100|50) numbers"),
        (whole[:at], "has not the (100|50) numbers"),
        (longer, "has not the 100 numbers"),
        (big_endian, "in the other order"),
        (whole[:200], ""),
        (b"\x80\x02K\x01.", "neither a zip archive nor what torch wrote before 1.6"),
    ):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=f"x.ckpt cannot be read as torch weights .*{message}") as error:
            in_file(path)
        assert "\n" not in str(error.value)


# Files that ask for more than they hold


def described(shape: tuple[int, ...], stride: tuple[int, ...], count: int = 4) -> bytes:
    """The pickle of a tensor over a storage "0" of `count` numbers, as torch writes it."""

    class Storage:
        pass

    class Pickler(pickle._Pickler):
        def persistent_id(self, one: Any) -> Any:
            return ("storage", torch.FloatStorage, "0", "cpu", count) if isinstance(one, Storage) else None

    class Wide:
        def __reduce__(self) -> Any:
            return torch._utils._rebuild_tensor_v2, (Storage(), 0, shape, stride, False, OrderedDict())

    buffer = io.BytesIO()
    Pickler(buffer, protocol=2).dump({"a": Wide()})
    return buffer.getvalue()


def archive(path: Path, pickled: bytes, numbers: bytes = b"\0" * 16, how: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", compression=how) as file:
        file.writestr("archive/data.pkl", pickled)
        file.writestr("archive/data/0", numbers)
    return path


def test_a_tensor_is_no_larger_than_its_storage(tmp_path: Path) -> None:
    """Strides of zero make a terabyte of four numbers."""
    assert in_file(archive(tmp_path / "x.pt", described((2, 2), (2, 1))))["a"].shape == (2, 2)
    for shape, stride in (((10**6, 10**6), (0, 0)), ((5,), (0,)), ((2**62,) * 8, (0,) * 8), ((1,) * 65, (1,) * 65)):
        with pytest.raises(ValueError, match="is larger than its storage of 4 numbers|that cannot be"):
            in_file(archive(tmp_path / "x.pt", described(shape, stride)))
    with pytest.raises(ValueError, match="has not the 1000000000000 numbers"):
        in_file(archive(tmp_path / "x.pt", described((10**12,), (1,), 10**12)))


def test_tensors_that_share_are_bounded_together(tmp_path: Path) -> None:
    one = described((2**20,), (1,), 2**20)
    body, numbers = one[one.index(b"ctorch._utils") : one.index(b"s.")], b"\0" * 2**22
    many = b"\x80\x02}(" + b"".join(b"K" + bytes([k]) + body for k in range(60)) + b"u."
    with pytest.raises(ValueError, match="share storages and are together much larger than the file"):
        in_file(archive(tmp_path / "x.pt", many, numbers))


def test_compressed_archives(tmp_path: Path) -> None:
    """Torch never compresses; a zip file of kilobytes unpacks to gigabytes."""
    pickled = described((2**20,), (1,), 2**20)
    for how in (zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        with pytest.raises(ValueError, match=r"its archive/data(.pkl|/0) is compressed, or larger than the file"):
            in_file(archive(tmp_path / "x.pt", pickled, b"\0" * 2**22, how))
    path = archive(tmp_path / "x.pt", described((2, 2), (2, 1)))
    data = bytearray(path.read_bytes())
    entry = bytes(data).rindex(b"PK\x01\x02")  # of data/0 in the directory: sizes, compressed and not, from byte 20
    data[entry + 20 : entry + 28] = (2**31).to_bytes(4, "little") * 2
    path.write_bytes(data)
    with pytest.raises(ValueError, match="is compressed, or larger than the file"):
        in_file(path)


def test_names_given_twice(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    with zipfile.ZipFile(path, "w") as file, pytest.warns(UserWarning, match="Duplicate name"):
        for _ in range(2):
            file.writestr("archive/data.pkl", pickle.dumps({}))
    with pytest.raises(ValueError, match="holds a name twice"):
        in_file(path)


def test_a_zip_file_that_only_torch_takes_for_one(tmp_path: Path) -> None:
    path = tmp_path / "x.pt"
    karlo.save_openai({"w": random(2)}, path)
    path.write_bytes(path.read_bytes() + b"\0" * 68_000)
    with pytest.raises(ValueError, match="begins as a zip archive and does not end as one") as error:
        in_file(path)
    assert "\n" not in str(error.value)


LIMIT = """
import resource, sys
import torch
from unclip.weights import in_file
resource.setrlimit(resource.RLIMIT_AS, (int(open("/proc/self/statm").read().split()[0]) * 4096 + 2**30,) * 2)
for path in sys.argv[1:]:
    try:
        print(len(in_file(__import__("pathlib").Path(path))))
    except ValueError as error:
        print(error)
"""


def test_pickles_that_ask_for_gigabytes_in_a_few_bytes(tmp_path: Path) -> None:
    """In a process that has 1 GB, and that a fault of the C stack would end."""
    n = 500_000
    pickles = {
        "memo": b"\x80\x02}r" + (2**31 - 1).to_bytes(4, "little") + b".",
        "bytearray": b"\x80\x05\x96" + (2**40).to_bytes(8, "little") + b"x.",
        "bytes": b"\x80\x04\x8e" + (2**40).to_bytes(8, "little") + b"x.",
        "text": b"\x80\x04\x8d" + (2**40).to_bytes(8, "little") + b"x.",
        "long": b"\x80\x02\x8b" + (2**31 - 1).to_bytes(4, "little") + b"x.",
        "frame": b"\x80\x04\x95" + (2**40).to_bytes(8, "little") + b"}.",
        "key": b"\x80\x02})" + b"\x85" * n + b"K\x01s.",
        "key in an ordered dictionary": b"\x80\x02ccollections\nOrderedDict\n](])" + b"\x85" * n + b"K\x01eae\x85R.",
        "key in a set": b"\x80\x04\x8f()" + b"\x85" * n + b"\x90.",
        "frozen key": b"\x80\x04()" + b"\x85" * n + b"\x91.",
        "deep": b"\x80\x02" + b"]" * n + b"a" * (n - 1) + b".",
        "deep with a tensor": b"\x80\x02" + b"]" * 5000 + described((4,), (1,))[2:-1] + b"a" * 5000 + b".",
        "names": b"\x80\x02" + b"".join(b"ca%d\nb\n0" % k for k in range(20_000)) + b"}.",
        "marks": b"\x80\x02" + b"(" * n + b".",
        "digits": b"\x80\x02I" + b"9" * n + b"\n.",
        "sizes": described((2**60,) * 8, (0,) * 8),
    }
    paths = [str(archive(tmp_path / f"{name}.pt", data)) for name, data in pickles.items()]
    done = subprocess.run([sys.executable, "-c", LIMIT, *paths], capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stderr[-2000:]
    told = dict(zip(pickles, done.stdout.splitlines(), strict=True))
    fine = {name for name, line in told.items() if line == "0"}
    assert fine <= {"memo", "frame", "bytes", "text", "long", "key", "key in a set", "frozen key", "key in an ordered dictionary"}
    assert all("is it whole?" in line or "deep in each other" in line for name, line in told.items() if name not in fine), told
    assert "more than 100 deep" in told["deep with a tensor"] and "names more than 10000 things" in told["names"]


def test_what_a_file_calls_things_is_made_visible_and_cut(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return os.system, ("x",)

    for name in ("a\x1b[2Jb", "n" * 5000, "a\rb\nc"):
        torch.save({name: Evil()}, tmp_path / "x.pt")
        with pytest.raises(ValueError, match="which is no tensor") as error:
            in_file(tmp_path / "x.pt")
        assert str(error.value).isprintable() and len(str(error.value)) < 700


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.pt")
    with pytest.raises(ValueError, match="it is a pipe"):
        in_file(tmp_path / "x.pt")
    (tmp_path / "y.bin").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3459\n")
    with pytest.raises(ValueError, match="y.bin is a git-lfs pointer of 66 bytes, not the file itself"):
        in_file(tmp_path / "y.bin")
