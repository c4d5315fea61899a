"""One step of training: the optimizer, and what it does with a batch."""

import torch
from torch import Tensor, nn

from ..config import TrainConfig
from ..inference import autocast, to_float

MOMENTUM = 0.9


def optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.SGD:
    """SGD with Nesterov momentum; weight decay only on matrices and convolutions, not on biases, norms and `u`."""
    decayed = [p for p in model.parameters() if p.ndim > 1]
    free = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": free, "weight_decay": 0.0}]
    return torch.optim.SGD(groups, lr=config.learning_rate, momentum=MOMENTUM, nesterov=True)


def train_step(
    network: nn.Module,
    optimizer: torch.optim.SGD,
    scaler: torch.amp.GradScaler,
    batch: Tensor,
    labels: Tensor,
    *,
    rate: float,
    smoothing: float,
    dtype: torch.dtype,
    weight: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """One optimizer step on the cross-entropy of a batch.

    Args:
        network: from images (N, 3, H, W) in [0, 1] to logits (N, num_classes), in training mode.
        optimizer, scaler: the scaler is disabled where the gradients need no scaling.
        batch: uint8 or float (N, 3, H, W), on the network's device.
        labels: int64 (N,).
        rate: learning rate of this step.
        smoothing: label smoothing.
        dtype: of the convolutions, see `ltpa.inference.choose_precision`.
        weight: factor on the loss for the gradient; 1 unless the batch is a part of a larger one.

    Returns:
        mean loss of the batch (without the weight) and number of right predictions, float64 on the device (float32 on
        Apple GPUs, which have none).
    """
    for group in optimizer.param_groups:
        group["lr"] = rate
    with autocast(batch.device, dtype):
        logits = network(to_float(batch))
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    loss = nn.functional.cross_entropy(logits, labels, label_smoothing=smoothing)
    optimizer.zero_grad()
    scaler.scale(loss * weight).backward()
    scaler.step(optimizer)
    scaler.update()
    exact = torch.float32 if batch.device.type == "mps" else torch.float64
    return loss.detach().to(exact), (logits.argmax(1) == labels).sum().to(exact)
