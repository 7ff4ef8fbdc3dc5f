"""Recipes that are no text, no YAML, far too large, or ask for what cannot be."""

from pathlib import Path

from tests.bad_inputs.cases import RUN, Case, edited, nothing, wrote
from tests.training.tiny_runs import RECIPE

FILE = "tiny.yaml"
BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 10)
)
BELOW = BOMB.replace("\n", "\n      ")


def added(text):
    return wrote(FILE, RECIPE + text)


def of(old, new):
    return edited(FILE, old, new)


def large():
    Path(FILE).write_text(RECIPE + "# padding\n" * 800_000)


def key(name, value, said="", culprit=None):
    """A key of the command line, which a recipe could hold as well."""
    return Case(f"{name}: {value}", nothing, (*RUN, f"--{name}={value}"), culprit or name, said)


FILES = [
    Case("no file", lambda: Path(FILE).unlink(), RUN, FILE),
    Case("file of no bytes", wrote(FILE, ""), RUN, FILE),
    Case("folder in its place", lambda: (Path(FILE).unlink(), Path(FILE).mkdir()), RUN, FILE),
    Case("picture", lambda: Path(FILE).write_bytes(Path("images/images/c0_0.png").read_bytes()), RUN, FILE),
    Case("latin-1 with an umlaut", wrote(FILE, ("# für\n" + RECIPE).encode("latin-1")), RUN, FILE, "UTF-8"),
    Case("UTF-16", wrote(FILE, RECIPE.encode("utf-16")), RUN, FILE),
    Case("zeros", wrote(FILE, bytes(300)), RUN, FILE),
    Case("list", wrote(FILE, "- model\n- data\n"), RUN, FILE),
    Case("word", wrote(FILE, "hello"), RUN, FILE),
    Case("number", wrote(FILE, "7"), RUN, FILE),
    Case("bracket left open", added("run: {folder: [\n"), RUN, FILE, "line"),
    Case("tab as indentation", added("run:\n\tfolder: x\n"), RUN, FILE, "line"),
    Case("tag that runs code", added("run: !!python/object/apply:os.system ['touch x']\n"), RUN, FILE),
    Case("tag of its own", added("run: !mine 3\n"), RUN, FILE),
    Case("two documents", added("---\nrun: {}\n"), RUN, FILE),
    Case("anchor that there is not", added("run: *gone\n"), RUN, FILE),
    Case("anchor that holds itself", added("run: &a [*a]\n"), RUN, FILE),
    Case("bomb at the top", added(BOMB), RUN, FILE, "values"),
    Case("bomb inside labels", of("case_pattern: '^([^_]+)_'", "labels:\n      " + BELOW), RUN, FILE),
    Case("nested 5000 deep", added("run: " + "[" * 5000), RUN, FILE),
    Case("8 MB", large, RUN, FILE, "MB"),
    Case("key twice", of("  batch_size: 2", "  batch_size: 2\n  batch_size: 4"), RUN, FILE, "batch_size"),
    Case("section twice", added("data: {root: x}\n"), RUN, FILE, "data"),
    Case("section with a slip", of("model:\n", "modle:\n"), RUN, "modle"),
    Case("empty section with a slip", added("dta: {}\n"), RUN, "dta"),
    Case("key with a slip", of("batch_size", "bach_size"), RUN, "bach_size"),
    Case("key that is a number", added("7: x\n"), RUN, "7"),
    Case("key that is a list", added("? [a, b]\n: x\n"), RUN, FILE),
    Case("model that is a word", wrote(FILE, "model: sam\ndata: {root: images}\n"), RUN, "model"),
    Case("data that is a list", wrote(FILE, "data: [images]\n"), RUN, "data"),
    Case("trainer that is null and data missing", wrote(FILE, "trainer: null\n"), RUN, "data"),
    Case("class that is a list", of("{class_path: medsam_tune.backbone.SamBackbone", "{class_path: [a]"), RUN, "backbone"),
    Case("class of the standard library", of("medsam_tune.backbone.SamBackbone", "os.system"), RUN, "model.backbone"),
    Case("seed of 400 digits", of("seed_everything: 0", f"seed_everything: {'9' * 400}"), RUN, "seed_everything"),
]

KEYS = [
    key("seed_everything", "-1"),
    key("seed_everything", "1.5"),
    key("model.optimizer", "{class_path: torch.optim.AdamW, init_args: {lr: .nan}}", culprit="model.optimizer"),
    key("model.optimizer", "{class_path: torch.optim.AdamW, init_args: {lr: .inf}}", culprit="model.optimizer"),
    key("model.optimizer", "{class_path: torch.optim.AdamW, init_args: {weight_decay: -1}}", culprit="model.optimizer"),
    key("trainer.max_epochs", "null"),
    key("trainer.max_epochs", "-7"),
    key("trainer.max_epochs", "1.5"),
    key("trainer.max_steps", "-5"),
    key("trainer.precision", "64-true"),
    key("trainer.precision", "7"),
    key("trainer.val_check_interval", "0"),
    key("trainer.val_check_interval", "1000"),
    key("trainer.val_check_interval", "-0.5"),
    key("trainer.check_val_every_n_epoch", "0"),
    key("trainer.accumulate_grad_batches", "0"),
    key("trainer.gradient_clip_val", "-1"),
    key("trainer.limit_train_batches", "-1"),
    key("trainer.limit_val_batches", "7.5"),
    key("trainer.log_every_n_steps", "-1"),
    key("trainer.overfit_batches", "-1"),
    key("trainer.devices", "0"),
    key("trainer.devices", "99"),
    key("trainer.num_nodes", "0"),
    key("trainer.accelerator", "abacus"),
    key("trainer.max_time", "tomorrow"),
    key("model.warmup_steps", "-1"),
    key("model.objects_per_decode", "-3"),
    key("model.prompt_encoder.width", "1000000000"),
    key("model.prompt_encoder.width", "-3"),
    key("model.prompt_encoder.width", "0"),
    key("model.prompt_encoder.dilations", "[]"),
    key("model.prompt_encoder.dilations", "[0]"),
    key("model.prompt_encoder.norm", "odd"),
    key("model.backbone.seed", "-1"),
    key("model.backbone.side", "-64"),
    key("model.backbone.side", "10000000"),
    key("data.num_workers", "-1"),
    key("data.batch_size", "0"),
    key("data.batch_size", "-2"),
    key("data.eval_batch_size", "0"),
    key("data.views", "0"),
    key("data.views_refresh", "1.5"),
    key("data.views_refresh", "nan"),
    key("data.views_refresh", "0.5", "data.views above 1"),
    key("data.global_batch", "0"),
    key("data.global_batch", "7", "6 or 8"),
    key("data.max_objects", "0"),
    key("data.chunk", "0"),
    key("data.ignore_label", "-1"),
    key("data.split.val_fraction", "nan"),
    key("data.split.val_fraction", "-0.1"),
    key("data.split.seed", "-1"),
    key("data.target", "everything"),
    key("data.patient", "(", culprit="data.patient"),
    key("data.patient", "none.csv", culprit="none.csv"),
    key("run.box_jitter", "-1"),
    key("run.name", "../../x", culprit="run.name"),
    key("run.folder", "tiny.yaml", culprit="tiny.yaml"),
]
CASES = [*FILES, *KEYS]
