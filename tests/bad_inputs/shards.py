"""Shards that are cut off, damaged, of another layout, or not what their index says."""

import tarfile
from pathlib import Path

from tests.bad_inputs.cases import Case, nothing, wrote
from tests.bad_inputs.images import cut, flipped
from tests.data.shards.tar_files import pair, png, write_tar

SHARDS = ("run", "shards.yaml")
FIRST, SECOND, INDEX = "shards/shard-000000.tar", "shards/shard-000001.tar", "shards/index.safetensors"
# From elsewhere: without an index of ours.
FOREIGN = (*SHARDS, "--data.root=foreign")


def foreign(*members):
    """Return what writes a shard from elsewhere with six samples and more members."""
    samples = [member for number in range(6) for member in pair(f"x{number}")]
    return lambda: write_tar(Path("foreign/a.tar"), [*samples, *members])


def linked():
    foreign()()
    with tarfile.open("foreign/b.tar", "w") as tar:
        info = tarfile.TarInfo("y.png")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/hostname"
        tar.addfile(info)


def claiming():
    foreign()()
    info = tarfile.TarInfo("y.png")
    info.size = 1 << 60
    Path("foreign/b.tar").write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(2048))


def changed_image():
    content = bytearray(Path(FIRST).read_bytes())
    content[560] ^= 1
    Path(FIRST).write_bytes(bytes(content))


def cut_foreign():
    foreign()()
    cut("foreign/a.tar", 5000)()


def compressed():
    Path("foreign").mkdir()
    with tarfile.open("foreign/a.tar", "w:gz") as tar:
        tar.add("tiny.yaml")


CASES = [
    Case("shard cut off", cut(FIRST, 3000), SHARDS, "shard-000000.tar", "3000 bytes, expected"),
    Case("shard missing", lambda: Path(SECOND).unlink(), SHARDS, "shard-000001.tar", "is missing"),
    Case("shard that its index does not know", lambda: write_tar(Path("shards/x.tar"), []), SHARDS, "x.tar"),
    Case("shard with one bit changed in an image", changed_image, SHARDS, f"{FIRST}/c0/c0_0.png", "checksum"),
    Case("index cut off", cut(INDEX, 300), SHARDS, INDEX),
    Case("index with one bit changed", flipped(INDEX), SHARDS, INDEX),
    Case("index of no bytes", wrote(INDEX, b""), SHARDS, INDEX),
    Case("index of another version", lambda: edit_bytes(INDEX, b"shards 1", b"shards 7"), SHARDS, INDEX, "shards 7"),
    Case(
        "index that names a file elsewhere", lambda: edit_bytes(INDEX, b"shard-000000.tar", b"../tiny.yaml    "), SHARDS, INDEX
    ),
    Case("shards that are not there", nothing, (*SHARDS, "--data.root=runs"), "runs"),
    Case("shard from elsewhere cut off", cut_foreign, FOREIGN, "foreign/a.tar", "member"),
    Case("shard that is compressed", compressed, FOREIGN, "foreign/a.tar", "uncompressed"),
    Case("shard with a link", linked, FOREIGN, "foreign/b.tar", "'y.png' is a link"),
    Case("shard with a path out of the folder", foreign(("../y.png", b"")), FOREIGN, "foreign/a.tar", "'../y.png'"),
    Case("shard with a path from the root", foreign(("/tmp/y.png", b"")), FOREIGN, "foreign/a.tar", "'/tmp/y.png'"),
    Case("shard that claims an exabyte", claiming, FOREIGN, "foreign/b.tar", "1152921504606846976 bytes"),
    Case("sample without a mask", foreign(pair("y")[0]), FOREIGN, "foreign/a.tar/y.png", "y.mask.png"),
    Case("mask without an image", foreign(pair("y")[1]), FOREIGN, "foreign/a.tar", "y.mask.png"),
    Case("key that stands twice", foreign(pair("x1")[0]), FOREIGN, "foreign/a.tar", "x1.png"),
    Case("image that is none", foreign(("y.png", b"x" * 99), pair("y")[1]), FOREIGN, "foreign/a.tar/y.png"),
    Case(
        "mask of another size than its image",
        foreign(("y.png", png([[1]])), pair("y")[1]),
        FOREIGN,
        "a.tar/y.mask.png",
        "1 x 1",
    ),
    Case("record that is no JSON", foreign(*pair("y"), ("y.json", b"[")), FOREIGN, "foreign/a.tar", "y.json"),
    Case("number of images a shard of 0", nothing, ("prepare", "images", "new", "--format=images", "--shards=0"), "--shards"),
]


def edit_bytes(path, old, new):
    content = Path(path).read_bytes()
    assert old in content
    Path(path).write_bytes(content.replace(old, new[: len(old)], 1))
