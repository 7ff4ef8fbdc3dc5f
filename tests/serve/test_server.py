import pytest

from medsam_tune.errors import RecipeError
from medsam_tune.serve.server import KEY_VARIABLE, allowed_hosts, check_host, listen, read_key

KEY = "a-key-of-this-test-alone"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "gpu-box"])
def test_other_machines_need_a_key(host):
    with pytest.raises(RecipeError, match=r"needs a key.*--key-file FILE.*ssh -L"):
        check_host(host, None)
    check_host(host, KEY)
    assert allowed_hosts(host) == ("*",)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_this_machine_needs_none_and_goes_by_its_own_names_alone(host):
    check_host(host, None)
    assert "localhost" in allowed_hosts(host)
    assert "*" not in allowed_hosts(host)


def test_the_key_comes_from_the_file_or_the_environment(tmp_path, monkeypatch):
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    assert read_key(None) is None
    file = tmp_path / "key"
    file.write_text(f"{KEY}\n")
    assert read_key(file) == KEY
    monkeypatch.setenv(KEY_VARIABLE, KEY[::-1])
    assert read_key(None) == KEY[::-1]
    assert read_key(file) == KEY


@pytest.mark.parametrize("key", ["", "short", "letters beyond ASCII: ä"])
def test_a_key_that_keeps_nobody_out_is_refused(tmp_path, key):
    file = tmp_path / "key"
    file.write_text(key, encoding="utf-8")
    with pytest.raises(RecipeError, match=r"at least 16 letters.*Make one"):
        read_key(file)
    with pytest.raises(RecipeError, match=r"--key-file: .* cannot be read"):
        read_key(tmp_path / "nowhere")


def test_a_taken_port_is_named():
    with listen("127.0.0.1", 0) as place:
        port = place.getsockname()[1]
        with pytest.raises(RecipeError, match=f"--port: cannot listen on 127.0.0.1, port {port} .*Give another"):
            listen("127.0.0.1", port)
    with pytest.raises(RecipeError, match=r"port 99999"):
        listen("127.0.0.1", 99999)
