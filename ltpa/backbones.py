"""The convolutional networks that attention reads from: where local features come from, and where `g` does.

Channel counts, pools and dropout are those of the authors' code for 32x32 images. Layers are modules named as in the
paper (conv1 ... conv15), so that hooks and explanation methods find them.
"""

from collections import OrderedDict

from torch import Tensor, nn

VGG_LEVELS = ("conv7", "conv10", "conv13")
BN_EPS = 1e-3

# name, channels, dropout after the layer, max-pool before the layer
_LATE_TRUNK = [
    ("conv1", 64, 0.3, False), ("conv2", 64, 0.0, False),
    ("conv3", 128, 0.4, False), ("conv4", 128, 0.0, False),
    ("conv5", 256, 0.4, False), ("conv6", 256, 0.4, False), ("conv7", 256, 0.0, False),
    ("conv8", 512, 0.4, True), ("conv9", 512, 0.4, False), ("conv10", 512, 0.0, False),
    ("conv11", 512, 0.4, True), ("conv12", 512, 0.4, False), ("conv13", 512, 0.0, False),
]  # fmt: skip
_POOLS_OF_VGG16 = ("conv3", "conv5", "conv8", "conv11")


def scaled(channels: int, width: float) -> int:
    """A channel count times `width`, at least 1."""
    return max(1, round(channels * width))


def conv_block(in_channels: int, out_channels: int, dropout: float, bn_eps: float = BN_EPS) -> nn.Sequential:
    """3x3 convolution, batch norm, ReLU and, where asked for, dropout; He-normal with fan-out, bias zero."""
    conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    nn.init.zeros_(conv.bias)
    layers = [conv, nn.BatchNorm2d(out_channels, eps=bn_eps), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, *([nn.Dropout(dropout)] if dropout else []))


class VGGTrunk(nn.Module):
    """conv1 to conv13 of VGG-16.

    Args:
        width: factor on every channel count.
        dropout: whether to use the authors' dropout rates.
        late_pools: True pools first after conv7 (the trunk of the attention models: conv7 keeps the full
            resolution); False pools where VGG-16 does.
        bn_eps: epsilon of every batch norm.
    """

    def __init__(self, width: float, dropout: bool, late_pools: bool = True, bn_eps: float = BN_EPS) -> None:
        super().__init__()
        self.pool_before = []
        self.channels = {}
        channels = 3
        for name, out, rate, late_pool in _LATE_TRUNK:
            if late_pool if late_pools else name in _POOLS_OF_VGG16:
                self.pool_before.append(name)
            self.add_module(name, conv_block(channels, scaled(out, width), rate if dropout else 0.0, bn_eps))
            self.channels[name] = channels = scaled(out, width)

    def forward(self, x: Tensor) -> "OrderedDict[str, Tensor]":
        """Local features of the three levels: {"conv7": (N, C, h, w), "conv10": ..., "conv13": ...}."""
        local = OrderedDict()
        for name, layer in self.named_children():
            if name in self.pool_before:
                x = nn.functional.max_pool2d(x, 2)
            x = layer(x)
            if name in VGG_LEVELS:
                local[name] = x
        return local


class GlobalBranch(nn.Module):
    """From the last map of a trunk to the global feature `g`: pool, then (conv, pool) twice, mean, dropout, linear.

    The mean over what is left of the map is over one position for 32x32 images and makes any larger size work.
    """

    def __init__(self, width: float, dropout: bool, bn_eps: float = BN_EPS) -> None:
        super().__init__()
        self.channels = channels = scaled(512, width)
        rate = 0.4 if dropout else 0.0
        self.conv14 = conv_block(channels, channels, rate, bn_eps)
        self.conv15 = conv_block(channels, channels, rate, bn_eps)
        self.dropout = nn.Dropout(0.5 if dropout else 0.0)
        self.fc = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, h, w) with h, w >= 8 -> g, (N, C)."""
        x = self.conv14(nn.functional.max_pool2d(x, 2))
        x = self.conv15(nn.functional.max_pool2d(x, 2))
        x = nn.functional.max_pool2d(x, 2)
        return self.fc(self.dropout(x.mean((2, 3))))


def check_images(images: Tensor) -> None:
    """Refuses what no network here can read.

    Raises:
        TypeError: not a floating-point tensor.
        ValueError: not (N, 3, H, W) with H and W from 32 up.
    """
    if not isinstance(images, Tensor) or not images.is_floating_point():
        kind = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise TypeError(f"images must be a float tensor with values in [0, 1], not {kind}; for uint8: images / 255")
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"images must have the shape (N, 3, H, W), not {tuple(images.shape)}")
    if min(images.shape[-2:]) < 32:
        height, width = images.shape[-2:]
        raise ValueError(f"images must be at least 32x32 pixels, not {height}x{width}; scale them up")
