import subprocess
import sys

import pytest

import medsam_tune


def test_every_public_name_exists():
    for name in medsam_tune.__all__:
        assert getattr(medsam_tune, name) is not None
    assert set(medsam_tune.__all__) <= set(dir(medsam_tune))


def test_import_of_the_package_loads_nothing_heavy():
    code = "import sys, medsam_tune; print([m for m in ('torch', 'numpy', 'lightning', 'matplotlib') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_unknown_name_lists_the_public_ones():
    with pytest.raises(AttributeError, match=r"no attribute 'load_exports'.*load_export, save_export"):
        _ = medsam_tune.load_exports
