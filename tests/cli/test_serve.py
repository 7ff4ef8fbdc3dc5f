import re

import pytest

from medsam_tune.cli import main, serve
from medsam_tune.serve import server


@pytest.fixture
def answered(monkeypatch):
    """What is run, in place of a server that nobody stops."""
    found = []
    monkeypatch.delenv(server.KEY_VARIABLE, raising=False)
    monkeypatch.setattr(server, "run", lambda app, place: found.append((app, place.getsockname())))
    return found


def test_the_opening_line_says_where_how_and_under_which_licence(answered, capsys):
    assert main(["serve", "random_tiny", "--port", "0", "--sessions", "2"]) == 0
    ((app, (host, port)),) = answered
    assert host == "127.0.0.1"
    said = capsys.readouterr().out
    assert f"random_tiny: http://127.0.0.1:{port}, without a key, for 2 clients" in said
    assert "axial slices, arrays run SPL; takes points and boxes" in said
    assert "Base weights random_tiny under" in said
    assert {route.path for route in app.routes} >= {"/claim", "/set_image", "/add_bbox_interaction"}
    # What describes the endpoints would load scripts from elsewhere.
    assert not {"/docs", "/redoc", "/openapi.json"} & {route.path for route in app.routes}


def test_label_studio_is_told_where_to_connect(answered, tmp_path, capsys):
    words = ["--protocol", "label-studio", "--images", str(tmp_path), "--port", "0"]
    assert main(["serve", "random_tiny", *words]) == 0
    ((app, (_, port)),) = answered
    said = capsys.readouterr().out
    assert f"http://127.0.0.1:{port}, without a key, for Label Studio; takes boxes, key points and brush strokes" in said
    assert {route.path for route in app.routes} >= {"/health", "/setup", "/predict", "/webhook"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--host", "0.0.0.0"], "needs a key"),
        (["--orientation", "XYZ"], "--orientation: expected one letter each"),
        (["--orientation", "SPI"], "--orientation: expected one letter each"),
        (["--label", "tumour"], "--label: the model has no classes"),
        (["--sessions", "0"], "--sessions: expected a number above 0"),
        (["--max-gigabytes", "nan"], "--max-gigabytes: expected a number above 0"),
        (["--port", "99999"], "--port: cannot listen"),
        (["--key-file", "nowhere"], "--key-file:"),
        (["--images", "."], "go with --protocol label-studio"),
        (["--protocol", "label-studio"], "needs --images DIR or --label-studio URL"),
        (["--protocol", "label-studio", "--images", "nowhere"], "--images: nowhere is no folder"),
        (["--protocol", "label-studio", "--label-studio", "localhost"], "expected an address such as http://"),
        (["--protocol", "label-studio", "--images", ".", "--propagate"], "--propagate: Label Studio shows single images"),
    ],
)
def test_what_does_not_fit_is_said_before_anybody_is_let_in(answered, words, said, capsys):
    assert main(["serve", "random_tiny", "--port", "0", *words]) == 2
    assert said in capsys.readouterr().err
    assert not answered


def test_without_the_extra_the_command_to_install_it_is_named(answered, monkeypatch, capsys):
    monkeypatch.setattr(serve, "_PACKAGES", ("fastapi", "no_such_package"))
    assert main(["serve", "random_tiny"]) == 2
    assert re.search(r"needs no_such_package\. Install it: pip install medsam-tune\[serve\]", capsys.readouterr().err)


def test_a_key_lets_other_machines_in(answered, tmp_path, capsys):
    (tmp_path / "key").write_text("a-key-of-this-test-alone")
    assert main(["serve", "random_tiny", "--port", "0", "--host", "0.0.0.0", "--key-file", str(tmp_path / "key")]) == 0
    assert "with a key" in capsys.readouterr().out
