"""A tuned model's export, and a real server around it in a thread."""

import threading
import time
from contextlib import contextmanager

import pytest

from medsam_tune.runs.asked_model import open_model
from medsam_tune.serve.server import listen
from tests.export.test_adapter import model_config, trained

VOLUMES = {
    "axis": "axial",
    "format": "NiftiFormat",
    "intensity": {"rule": "percentile", "percentiles": [1.0, 99.0], "window": None},
}
IMAGES = {"intensity": {"rule": "as_stored", "percentiles": [0.5, 99.5], "window": None}}


def export_folder(folder, **data):
    from medsam_tune.export import save_export

    config = model_config(trainable=["mask_decoder"])
    config["prompts"] = {"class_path": "medsam_tune.prompts.BoxPrompt", "init_args": {}}
    save_export(folder, segmenter=trained(config), model_config=config, metrics={}, data_description=data)
    return folder


@pytest.fixture(scope="session")
def tuned(tmp_path_factory):
    """The folder of a model that was trained on axial slices, their grey levels by percentiles of the whole volume."""
    return export_folder(tmp_path_factory.mktemp("tuned") / "export", **VOLUMES)


@pytest.fixture
def model(tuned):
    return open_model(str(tuned))


@contextmanager
def serving(app):
    """Answer on a free port of this machine, in a thread; yields the address."""
    import uvicorn

    place = listen("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False, lifespan="on"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [place]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{place.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
        place.close()
