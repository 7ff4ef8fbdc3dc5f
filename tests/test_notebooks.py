"""The notebooks of the docs run as they stand, and keep the outputs of a run."""

import importlib.util
import os
import re
import sys
from pathlib import Path

import pytest

from tests.processes import warm

NOTEBOOKS = Path(__file__).parents[1] / "docs/notebooks"
NAMES = sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb"))
# The released encoder takes most of the time; what the cells call is the same.
SMALL = {
    '"lite_medsam", 40': '"random_tiny", 4',
    '"lite_medsam", 20': '"random_tiny", 4',
    '"warmup_steps": 4': '"warmup_steps": 0',
    '"warmup_steps": 2': '"warmup_steps": 0',
}


def read(name):
    nbformat = pytest.importorskip("nbformat")
    return nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)


def test_there_are_notebooks():
    assert NAMES == ["ask-a-model", "folder-to-model"]


@pytest.mark.parametrize("name", NAMES)
def test_notebook_keeps_outputs_with_pictures_and_no_place_of_a_machine(name):
    cells = [cell for cell in read(name).cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in cells)
    outputs = [output for cell in cells for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    texts = [str(output.get("text", "")) + str(output.get("data", {}).get("text/plain", "")) for output in outputs]
    # A path from the root of a file system, of two folders at least.
    assert [found[0] for text in texts if (found := re.search(r"(?<![\w.:/])/[\w.-]+/[\w./-]*", text))] == []


class Kernel:
    """What Jupyter asks of the process of a kernel, for one that is forked with everything imported."""

    stdin = stdout = stderr = None

    def __init__(self, words, *, env, cwd, **_):
        begun, begins = warm().Pipe(duplex=False)
        self._process = warm().Process(target=_be_a_kernel, args=(words[words.index("-f") :], env, cwd, begins))
        self._process.start()
        # Jupyter kills the whole group, which until then is that of these tests.
        assert begun.recv() == self._process.pid
        self.pid = self._process.pid

    def poll(self):
        return self._process.exitcode

    def wait(self):
        self._process.join(60)
        return self.poll()

    def send_signal(self, number):
        os.kill(self.pid, number)

    def kill(self):
        self._process.kill()

    def terminate(self):
        self._process.terminate()


def _be_a_kernel(words, environ, folder, begins):
    os.setsid()
    os.environ.clear()
    os.environ.update(environ)
    os.chdir(folder)
    begins.send(os.getpgid(0))
    import matplotlib
    from ipykernel.kernelapp import launch_new_instance

    # Where it is not imported yet, it takes this from the kernel.
    matplotlib.use("module://matplotlib_inline.backend_inline")
    launch_new_instance(argv=words)


@pytest.fixture
def _no_kernel_here():
    yield
    # Jupyter's client imports it; where it is imported, nobody is taken to watch a terminal.
    for name in [name for name in sys.modules if name.partition(".")[0] == "ipykernel"]:
        del sys.modules[name]


@pytest.mark.slow  # a kernel trains, tests and exports
@pytest.mark.usefixtures("_no_kernel_here")
@pytest.mark.parametrize("name", NAMES)
def test_notebook_runs(name, tmp_path, monkeypatch):
    pytest.importorskip("ipykernel")
    pytest.importorskip("nbclient")
    monkeypatch.setenv("MEDSAM_TUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    monkeypatch.setattr("jupyter_client.provisioning.local_provisioner.launch_kernel", Kernel)
    specification = importlib.util.spec_from_file_location("execute", NOTEBOOKS / "execute.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    executed = module.execute(NOTEBOOKS / f"{name}.ipynb", SMALL)
    assert "random_tiny" in str(executed.cells)
    assert not [output for cell in executed.cells for output in cell.get("outputs", []) if output.output_type == "error"]
