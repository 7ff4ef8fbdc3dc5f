"""The short help of ``fit``, ``validate``, ``test`` and ``predict``, which imports nothing that could be changed."""

from __future__ import annotations

_TEXT = """\
usage: medsam-tune {stage} --config RECIPE [--key=value | key=value ...]

{does}

  --config RECIPE           a .yaml file, or the name of a bundled recipe; several are read one over the other
{checkpoint}
  --print_config            print the resolved recipe and stop
  --help=all                every key, with its type and default

Keys that are changed most, with their short form:

  data.root                 data=DIR
  data.batch_size           batch=4
  trainer.max_epochs        epochs=20
  trainer.max_steps         steps=500
  trainer.accelerator       device=cpu, device=gpu, device=cuda:1
  trainer.devices           devices=2
  trainer.precision         precision=bf16-mixed
  seed_everything           seed=1
  run.name                  name=wide
  run.folder                --run.folder=DIR
  model.backbone.weights    weights=sam_vit_b
  model.optimizer.lr        lr=1e-4
  model.tuner, .prompts, .loss, ...     tuner=BottleneckAdapter, and then its own keys: rank=8

Any key of the recipe may be as short as only one key ends so; several are an error that lists them."""

_DOES = {
    "fit": "Train, and nothing else. `medsam-tune run RECIPE` also tests, exports and reports.",
    "validate": "Score a checkpoint on validation cases. `medsam-tune validate RUN` takes recipe and split from the run.",
    "test": "Score a checkpoint on test cases. `medsam-tune test RUN` takes recipe and split from the run.",
    "predict": "Write masks of a recipe's data. `medsam-tune predict MODEL INPUT -o OUT` takes any image, volume or folder.",
}
_CHECKPOINT = {
    "fit": "  --ckpt_path=last          continue the newest run of this recipe on these data in its folder; or a file",
    "": "  --ckpt_path=FILE          the checkpoint; best or last of the newest run, or --untuned for none",
}


def stage_help(stage: str) -> str:
    """Return the short help of a stage.

    Args:
        stage: ``fit``, ``validate``, ``test`` or ``predict``.
    """
    return _TEXT.format(stage=stage, does=_DOES[stage], checkpoint=_CHECKPOINT.get(stage, _CHECKPOINT[""]))
