"""Images changed a little so that a network errs.

FGSM (Goodfellow et al. 2015, arXiv 1412.6572) takes one step along the sign of the gradient of the loss; PGD (Madry et
al. 2018, arXiv 1706.06083) takes many small ones from a random start and stays within epsilon of the image. Epsilons
are in levels of a pixel: 2 is 2/255 of the range.
"""

import torch
from torch import Tensor

from ..checks import check_images
from ..errors import closest
from ..inference import to_float
from ..models.classifier import ImageClassifier, evaluation_mode

ATTACKS = ("FGSM", "PGD")
_BATCH = 100  # and on a GPU ten times as many, which then has less to wait for


def perturb(
    model: ImageClassifier,
    images: Tensor,
    labels: Tensor,
    epsilon: float,
    attack: str = "FGSM",
    steps: int = 10,
    seed: int = 0,
) -> Tensor:
    """Change images so that the model's loss grows, in float32 and evaluation mode.

    `images` are (N, 3, H, W), uint8, or float in [0, 1]; the result is float32 on the CPU, in [0, 1], and no value is
    farther than epsilon / 255 from the image's. PGD takes `steps` of 2.5 epsilon / steps from a random start, the same
    for every model.
    """
    if attack not in ATTACKS:
        raise ValueError(f"attack={attack!r}: {closest(attack, ATTACKS)}")
    check_images(images)
    radius, device = epsilon / 255, model.mean.device
    step, count = (radius, 1) if attack == "FGSM" else (2.5 * radius / steps, steps)
    changed = []
    with evaluation_mode(model), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        size = 10 * _BATCH if device.type == "cuda" else _BATCH
        for batch, truth in zip(images.split(size), labels.split(size), strict=True):
            clean = to_float(batch.to(device)).float().contiguous(memory_format=torch.channels_last).detach()
            x = clean
            if attack == "PGD":
                x = (clean + (torch.rand_like(clean) * radius * 2 - radius)).clamp(0, 1)
            for _ in range(count):
                x = x + step * _gradient(model, x, truth).sign()
                x = (clean + (x - clean).clamp(-radius, radius)).clamp(0, 1)
            changed.append(x.cpu())
    return torch.cat(changed).contiguous()


def _gradient(model: ImageClassifier, images: Tensor, labels: Tensor) -> Tensor:
    """Return the gradient of each image's cross-entropy with respect to the image.

    The loss is in float64, where sure answers have a gradient, too; on the CPU, because not all GPUs know float64.
    """
    x = images.clone().requires_grad_(True)
    loss = torch.nn.functional.cross_entropy(model(x).cpu().double(), labels.cpu(), reduction="sum")
    return torch.autograd.grad(loss, x)[0]
