"""Help is short and at once, typos are guessed, and shells complete."""

import shutil
import subprocess
import sys

import pytest

import medsam_tune
from medsam_tune.cli import LIGHTNING_COMMANDS, OWN_COMMANDS, main

HEAVY = {"torch", "lightning", "jsonargparse", "numpy", "monai", "gradio", "fastapi", "uvicorn", "blosc2", "nnInteractive"}


def test_no_help_imports_what_takes_seconds():
    commands = [*OWN_COMMANDS, *LIGHTNING_COMMANDS]
    code = f"""
import sys
from medsam_tune.cli import main
assert main(["--help"]) == main(["--version"]) == 0
for command in {commands}:
    assert main([command, "--help"]) == 0, command
assert {HEAVY} & set(sys.modules) == set(), {HEAVY} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"medsam-tune {medsam_tune.__version__}\n" in done.stdout
    for command in commands:
        assert f"usage: medsam-tune {command}" in done.stdout


@pytest.mark.parametrize("words", [["fit", "--help"], ["test", "--config=lora", "-h"]])
def test_help_of_a_stage_is_short_and_says_where_the_whole_is(words, capsys):
    assert main(words) == 0
    out = capsys.readouterr().out
    assert len(out.splitlines()) < 40
    assert "--help=all" in out


@pytest.mark.parametrize("command", ["fit", "run"])
def test_whole_help_lists_every_key(command, capsys):
    assert main([command, "--help=all"]) == 0
    out = capsys.readouterr().out
    for key in ("--trainer.max_epochs", "--data.split.folds", "--run.save_every_n_steps", "--model.warmup_steps"):
        assert key in out


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["rnu", "lora"], "rnu: no such command. Did you mean `medsam-tune run`?"),
        (["Fit"], "Fit: no such command. Did you mean `medsam-tune fit`?"),
        (["lora", "data=DIR"], "lora: is a recipe, no command. Did you mean `medsam-tune run lora`?"),
        (["mine.yaml"], "mine.yaml: is a recipe, no command. Did you mean `medsam-tune run mine.yaml`?"),
        (["runs", "lst"], "Did you mean list?"),
        (["runs", "clean", "--yess"], "unrecognized arguments: --yess. Did you mean --yes?"),
        (["predict", "x", "y", "-o", "z", "--boxs=b.csv"], "unrecognized arguments: --boxs=b.csv. Did you mean --boxes?"),
        (["completion", "fish"], "`medsam-tune completion --help` shows what it takes."),
        (["run", "lorra"], "Did you mean lora"),
        (["run", "lora", "epocs=3"], "epocs: no such key, and no key of this recipe ends so. Did you mean epochs?"),
        (["run", "lora", "nam=x"], "Did you mean name?"),
    ],
)
def test_typo_is_answered_with_what_was_meant(words, meant, capsys):
    assert main(words) == 2
    assert meant in capsys.readouterr().err


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("medsam-tune ru", "run runs"),
        ("medsam-tune run autosam_em", "autosam_embedding"),
        ("medsam-tune run lora ep", "epochs="),
        ("medsam-tune runs sh", "show"),
        ("medsam-tune predict --boxe", "--boxes"),
    ],
)
def test_bash_completes_commands_recipes_keys_and_options(words, offered, capsys, tmp_path):
    assert main(["completion", "bash"]) == 0
    script = tmp_path / "completion.sh"
    script.write_text(capsys.readouterr().out)
    place = len(words.split()) - 1
    line = f'source {script}; COMP_WORDS=({words}); COMP_CWORD={place}; _shtab_medsam_tune; echo "${{COMPREPLY[@]}}"'
    said = subprocess.run(["bash", "-c", line], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=True).stdout
    assert said.split() == offered.split()


@pytest.mark.parametrize("shell", ["zsh", "tcsh"])
def test_script_for_other_shells_names_every_command(shell, capsys):
    assert main(["completion", shell]) == 0
    out = capsys.readouterr().out
    assert all(command in out for command in (*OWN_COMMANDS, *LIGHTNING_COMMANDS))


def test_masks_can_be_asked_for_in_every_format_that_writes_them():
    from medsam_tune.cli import predict
    from medsam_tune.data import formats

    assert list(predict.WRITERS) == list(formats.WRITERS)
