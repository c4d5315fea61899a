"""Small models, pictures and maps for the tests of measures."""

import torch

from ltpa import create_model
from ltpa.inference import to_float

CLASSES = 4


def build(name="vgg-att3-concat-dp", normalizer="softmax", faithful=False):
    """A model whose batch norms have seen something: its logits differ from image to image."""
    torch.manual_seed(0)
    model = create_model(name, CLASSES, width=1 / 32, normalizer=normalizer, faithful=faithful)
    model.train()
    with torch.no_grad():
        for _ in range(3):
            model(to_float(pictures(16)))
    return model.eval()


def pictures(n=4, side=32):
    return torch.randint(0, 256, (n, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(n))


def some_maps(n=4, side=32, seed=0):
    return torch.rand(n, side, side, generator=torch.Generator().manual_seed(seed))
