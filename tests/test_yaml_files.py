"""YAML of users: numbers as people write them, and one line for whatever is wrong with a file."""

import pytest
import yaml

from medsam_tune.errors import RecipeError
from medsam_tune.yaml_files import MAX_BYTES, read_yaml

BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "\n".join(
    f"{name}: &{name} [{', '.join(['*' + before] * 10)}]" for before, name in zip("abcdefghi", "bcdefghij", strict=True)
)


def read(folder, content):
    path = folder / "recipe.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_yaml(path)


def test_ordinary_yaml_reads_as_the_library_reads_it(tmp_path):
    text = "a: {b: [1, 2.5, null, true, word], c: 'x'}\nd: &d {e: 1}\nf: *d\ng: {<<: *d, h: 2, e: 3}\n1: 0x10\n"
    assert read(tmp_path, text) == yaml.safe_load(text)


def test_scientific_numbers_without_a_point_are_numbers_and_dates_are_texts(tmp_path):
    text = "[1e-5, -3E4, 1.5e-3, 2e+2, 1e, e5, 1_0e2, 2024-01-31]"
    assert read(tmp_path, text) == [1e-5, -3e4, 1.5e-3, 200.0, "1e", "e5", 1000.0, "2024-01-31"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("data:\n  batch_size: 2\n  root: x\n  batch_size: 4\n", r"line 4: batch_size stands twice; keep one of the two"),
        ("data: {}\nmodel: {}\ndata: {}\n", r"line 3: data stands twice"),
        ("a: [1, 2\nb: 3\n", r"line 2: is no YAML \("),
        ("a: !!python/name:os.system x\n", r"line 1: could not determine a constructor for the tag"),
        (b"\x89PNG\r\n\x1a\n", r"line 1: is no text in UTF-8\. Save the file as UTF-8"),
        ("# ok\n# für\n".encode("latin-1"), r"line 2: is no text in UTF-8"),
        (b"a: \x01\n", r"is no YAML \("),
        ("[" * 5000, r"cannot be read as YAML \(nested too deep\)"),
        (BOMB, r"holds more than 100000 values once its anchors are put in"),
        ("a: &a [*a]\n", r"holds more than 100000 values"),
        ("a: " + "9" * 5000, r"cannot be read as YAML \(Exceeds the limit"),
        (b"#" * (MAX_BYTES + 1), r"is larger than 5 MB"),
    ],
    ids=["key", "section", "syntax", "tag", "png", "latin", "control", "deep", "bomb", "itself", "digits", "large"],
)
def test_faulty_file_is_one_line_that_names_it(content, said, tmp_path):
    with pytest.raises(RecipeError, match=rf"^\S+recipe\.yaml: {said}") as caught:
        read(tmp_path, content)
    assert "\n" not in str(caught.value)


def test_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(RecipeError, match=r"none\.yaml: cannot be read \(No such file"):
        read_yaml(tmp_path / "none.yaml")


def test_mark_of_byte_order_is_no_part_of_the_first_key(tmp_path):
    assert read(tmp_path, b"\xef\xbb\xbfdata: 1\n") == {"data": 1}
