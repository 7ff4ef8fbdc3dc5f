"""Words of the command line that no command can take."""

from tests.bad_inputs.cases import RUN, Case, nothing


def words(name, *given, culprit, said=""):
    return Case(name, nothing, (*RUN, *given), culprit, said)


CASES = [
    words("value of 100,000 letters", f"--data.root={'x' * 100_000}", culprit="data.root"),
    words("folder of nobody's", "--data.root=~nobody77/x", culprit="data.root"),
    words("folder with a zero byte", "--data.root=a\0b", culprit="data.root"),
    words("folder that is empty", "--data.root=", culprit="data.root"),
    words("seed of 10^30", f"--model.backbone.seed={10**30}", culprit="model.backbone.seed"),
    words("batch of 10^30", f"--data.batch_size={10**30}", culprit="data.batch_size"),
    words("key that there is not", "--model.coffee=black", culprit="model.coffee"),
    words("short key that there is not", "coffee=black", culprit="coffee"),
    words("key without a name", "--=3", culprit="--=3"),
    words("word without a key", "coffee", culprit="coffee"),
    words("key of 50 parts", f"--{'.'.join(['data'] * 50)}=3", culprit="data.data"),
    words("value that is no YAML", "--data.split={seed: [", culprit="data.split"),
    words("class that is none", "--model.loss=nothing", culprit="model.loss"),
    words("class that is a module", "--model.loss=medsam_tune.losses", culprit="model.loss"),
    words("class of another seam", "--model.loss=medsam_tune.prompts.BoxPrompt", culprit="model.loss"),
    words("path as a class", "--model.loss=../../etc/passwd", culprit="model.loss"),
    words("argument of a class that is null", "--model.tuner.rank=4", culprit="model.tuner"),
    words("checkpoint that there is not", "--ckpt_path=none.ckpt", culprit="none.ckpt"),
    words("checkpoint that is a folder", "--ckpt_path=images", culprit="images"),
    words("weights that there are not", "--model.backbone.weights=sam_vit_x", culprit="model.backbone.weights"),
    words("weights in a file that there is not", "--model.backbone.checkpoint=mine.pth", culprit="mine.pth"),
    words("weights in a picture", "--model.backbone.checkpoint=images/images/c0_0.png", culprit="c0_0.png"),
    words("second recipe that there is not", "--config=none.yaml", culprit="none.yaml"),
    words("folds without a number", "folds=many", culprit="folds"),
    words("seeds that are none", "seeds=a,b", culprit="seeds"),
    words("seeds that repeat", "seeds=1,1", culprit="seeds"),
    words("fold beyond the folds", "--data.split.folds=3", "--data.split.fold=7", culprit="data.split.fold"),
    words("more folds than patients", "--data.split.folds=50", "--data.split.fold=0", culprit="folds"),
    words("letters of no language", "--data.root=\ud800", culprit="data.root"),
]
