import copy
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from medsam_tune.backbone import SamBackbone
from medsam_tune.inference.predictor import Predictor
from medsam_tune.segmenters.base import SamParts
from medsam_tune.segmenters.sam import SamSegmenter
from medsam_tune.tuners import SamAdapter

BOX = (5, 6, 40, 30)


@pytest.fixture
def predictor():
    # Its tuner keeps what it saw of the image between two layers.
    torch.manual_seed(0)
    return Predictor(SamSegmenter(SamParts(SamBackbone("random_tiny"), tuner=SamAdapter(8, init="repo"))))


@pytest.fixture
def images():
    rng = np.random.default_rng(0)
    return [rng.integers(0, 255, (40 + row, 60), dtype=np.uint8) for row in range(4)]


def logits(predictor):
    return predictor.predict(box=BOX, return_logits=True)[0]


def test_threads_never_mix_their_images(predictor, images):
    expected = [logits(predictor.with_image(image)) for image in images]
    start = threading.Barrier(len(images))

    def ask(number):
        predictor.set_image(images[number])
        start.wait(60)
        found = [logits(predictor)]
        for _ in range(3):
            predictor.set_image(images[number])
            found.append(logits(predictor))
        return found

    with ThreadPoolExecutor(len(images)) as pool:
        answers = list(pool.map(ask, range(len(images))))
    for found, wanted in zip(answers, expected, strict=True):
        assert all(np.array_equal(one, wanted) for one in found)


def test_an_image_that_is_handed_on_is_there_in_every_thread(predictor, images):
    first, second = (predictor.with_image(image) for image in images[:2])
    expected = logits(first)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(second.set_image, images[2]).result()
        assert np.array_equal(pool.submit(logits, first).result(), expected)
        with pytest.raises(RuntimeError, match=r"no image is set in this thread"):
            pool.submit(logits, predictor).result()
    predictor.set_image(images[0])
    assert np.array_equal(logits(predictor), expected)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(predictor.reset_image).result()
    with pytest.raises(RuntimeError, match=r"no image is set"):
        logits(predictor)


def test_copies_keep_the_image(predictor, images):
    predictor.set_image(images[0])
    for twin in (copy.deepcopy(predictor), pickle.loads(pickle.dumps(predictor))):
        assert np.array_equal(logits(twin), logits(predictor))
