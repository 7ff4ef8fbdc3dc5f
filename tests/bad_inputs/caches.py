"""Caches: of other origin, in a place that is none, or that nobody may write."""

from pathlib import Path

from tests.bad_inputs.cases import RUN, Case, nothing, wrote


def shards():
    return sorted(Path("cache/embeddings").glob("*/shard-*"))


def foreign():
    path = shards()[0]
    other = Path("cache/embeddings/0123456789ab-0123456789abcdef")
    other.mkdir()
    content = path.read_bytes()
    (path.parent / "shard-0000000000000000.safetensors").write_bytes(
        content.replace(path.parent.name.rpartition("-")[2].encode(), b"0123456789abcdef")
    )


def info(content):
    return lambda: [path.write_bytes(content) for path in Path("cache/embeddings").glob("*/info.json")]


def file_as_cache():
    Path("cache").rename("moved")
    Path("cache").write_text("x")


CASES = [
    Case("shard of other weights", foreign, RUN, "shard-0000000000000000"),
    Case("file in the cache's place", file_as_cache, RUN, "cache"),
    Case("folder of the cache that is a file", nothing, (*RUN, "--data.cache_folder=tiny.yaml"), "tiny.yaml"),
    Case("store that there is not", nothing, ("cache", "clear", "coffee"), "coffee"),
    Case("nothing to clear named", nothing, ("cache", "clear"), "cache clear"),
    Case("cache of a recipe that there is not", nothing, ("cache", "build", "none.yaml"), "none.yaml"),
    Case("cache of a recipe that is no text", wrote("x.yaml", b"\xff\xfe"), ("cache", "build", "x.yaml"), "x.yaml"),
    Case("priors of a recipe that there is not", nothing, ("priors", "none.yaml"), "none.yaml"),
    Case("priors of a recipe that has none", nothing, ("priors", "tiny.yaml"), "data.priors"),
]
