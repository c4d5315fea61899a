"""Slow references written from the paper: loops over positions for the attention, one call per layer for the network.

Nothing here imports the package; only the names of the parameters in a state dict are shared with it.
"""

import math

import torch
import torch.nn.functional as F

BN_EPS = 1e-3

# layer, channels, map size for 32x32 images, dropout after the layer; late pools (attention) and those of VGG-16
LATE_TABLE = [
    ("conv1", 64, 32, 0.3), ("conv2", 64, 32, None),
    ("conv3", 128, 32, 0.4), ("conv4", 128, 32, None),
    ("conv5", 256, 32, 0.4), ("conv6", 256, 32, 0.4), ("conv7", 256, 32, None),
    ("conv8", 512, 16, 0.4), ("conv9", 512, 16, 0.4), ("conv10", 512, 16, None),
    ("conv11", 512, 8, 0.4), ("conv12", 512, 8, 0.4), ("conv13", 512, 8, None),
    ("conv14", 512, 4, 0.4), ("conv15", 512, 2, 0.4),
]  # fmt: skip
VGG16_SIZES = [32, 32, 16, 16, 8, 8, 8, 4, 4, 4, 2, 2, 2]
VGG16_TABLE = [(name, c, size, p) for (name, c, _, p), size in zip(LATE_TABLE, VGG16_SIZES, strict=False)]
LEVELS = {"att": ["conv13"], "att2": ["conv10", "conv13"], "att3": ["conv7", "conv10", "conv13"]}


def dot(a, b):
    return math.fsum(x * y for x, y in zip(a, b, strict=True))


def matvec(matrix, vector):
    return [dot(row, vector) for row in matrix]


def plus(a, b):
    return [x + y for x, y in zip(a, b, strict=True)]


def between(grid, y, x, height, width):
    """The value of a square grid at the center of position (y, x) of a larger or smaller map, linear in between."""
    side = len(grid)
    (top, v), (left, h) = (
        divmod(min(max((place + 0.5) * side / size - 0.5, 0.0), side - 1.0), 1)
        for place, size in ((y, height), (x, width))
    )
    top, left = int(top), int(left)
    low, right = min(top + 1, side - 1), min(left + 1, side - 1)
    upper = (1 - h) * grid[top][left] + h * grid[top][right]
    return (1 - v) * upper + v * ((1 - h) * grid[low][left] + h * grid[low][right])


def attend_loops(local, g, kind, normalizer, *, u=None, width_map=None, w_l=None, w_g=None, b_g=None, b=None):
    """(descriptor (N, C), weights (N, h, w), scores (N, h, w)) in float64, one position at a time.

    dp: <W l_i, g>; pc: <u, W l_i + g>; add: <u, tanh(W_l l_i + W_g g + b)>. W l_i is l_i where there is no map W.
    sdp: dp / sqrt(C); uniform: 0; static: learned by position; permuted: as pc, then the weights change places.
    softmax: weights that sum to 1 and the weighted sum of W l_i; sigmoid: gates and the mean of the gated W l_i.
    """
    n, channels, height, width = local.shape
    if width_map is not None:
        channels = width_map.shape[0]
    u, width_map, w_l, w_g, b_g = (None if p is None else p.tolist() for p in (u, width_map, w_l, w_g, b_g))
    places = [(y, x) for y in range(height) for x in range(width)]
    descriptor = torch.zeros(n, channels, dtype=torch.float64)
    weights = torch.zeros(n, height, width, dtype=torch.float64)
    scores = torch.zeros(n, height, width, dtype=torch.float64)
    for image in range(n):
        query = None if g is None else g[image].tolist()
        if kind == "add":
            right = plus(matvec(w_g, query), b_g if b_g is not None else [0.0] * len(w_g))
        vectors = []
        for y, x in places:
            raw = local[image, :, y, x].tolist()
            vector = raw if width_map is None else matvec(width_map, raw)
            if kind == "uniform":
                score = 0.0
            elif kind == "static":
                side = round(len(b) ** 0.5)
                score = between((8 * b).view(side, side).tolist(), y, x, height, width)
            elif kind in ("dp", "sdp"):
                score = dot(vector, query) / (1 if kind == "dp" else math.sqrt(len(query)))
            elif kind in ("pc", "permuted"):
                score = dot(u, plus(vector, query))
            else:
                score = dot(u, [math.tanh(value) for value in plus(matvec(w_l, raw), right)])
            vectors.append(vector)
            scores[image, y, x] = score
        values = [scores[image, y, x].item() for y, x in places]
        if normalizer == "softmax":
            exponentials = [math.exp(value - max(values)) for value in values]
            gates = [value / math.fsum(exponentials) for value in exponentials]
            shares = gates
        else:
            gates = [1.0 / (1.0 + math.exp(-value)) for value in values]
            shares = [gate / len(places) for gate in gates]
        if kind == "permuted":
            order = [509 * place % len(places) for place in range(len(places))]
            gates, shares = [gates[place] for place in order], [shares[place] for place in order]
        for (y, x), gate in zip(places, gates, strict=True):
            weights[image, y, x] = gate
        for channel in range(channels):
            descriptor[image, channel] = dot(shares, [vector[channel] for vector in vectors])
    return descriptor, weights, scores


def batch_norm(state, prefix, x):
    shape = (1, -1) + (1,) * (x.ndim - 2)
    mean, var, weight, bias = (
        state[f"{prefix}.{key}"].view(shape) for key in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / torch.sqrt(var + BN_EPS) * weight + bias


def conv(state, prefix, x):
    x = F.conv2d(x, state[f"{prefix}.0.weight"], state[f"{prefix}.0.bias"], stride=1, padding=1)
    return F.relu(batch_norm(state, f"{prefix}.1", x))


def linear(state, prefix, x):
    return x @ state[f"{prefix}.weight"].T + state[f"{prefix}.bias"]


def pool(x):
    return F.max_pool2d(x, kernel_size=2, stride=2)


def average(x):
    return x.flatten(2).sum(dim=2) / (x.shape[2] * x.shape[3])


def vgg16(state, x):
    """The last map of VGG-16, behind its fifth pool."""
    for numbers in ((1, 2), (3, 4), (5, 6, 7), (8, 9, 10), (11, 12, 13)):
        for number in numbers:
            x = conv(state, f"trunk.conv{number}", x)
        x = pool(x)
    return x


def late(state, x):
    """Local features of the three levels of the trunk with late pools, and `g` (None without a global branch)."""
    local = {}
    for level, numbers in (("conv7", range(1, 8)), ("conv10", range(8, 11)), ("conv13", range(11, 14))):
        x = x if level == "conv7" else pool(x)
        for number in numbers:
            x = conv(state, f"trunk.conv{number}", x)
        local[level] = x
    if "global_branch.fc.weight" not in state:
        return local, None
    x = pool(conv(state, "global_branch.conv14", pool(x)))
    x = pool(conv(state, "global_branch.conv15", x))
    return local, linear(state, "global_branch.fc", average(x))


def network(state, name, images, normalizer="softmax", head_norm=True, query=None):
    """Logits and maps of a `vgg*` model in eval mode from its float64 state dict, layer by layer as in the table.

    With `query`, as many other images, g is theirs.
    """

    def norm(index, x):
        return F.relu(batch_norm(state, f"head.norms.{index}.0", x)) if head_norm else x

    x = (images - state["mean"]) / state["std"]
    if name == "vgg":
        hidden = F.relu(batch_norm(state, "head.norms.0.0", linear(state, "fc", average(vgg16(state, x)))))
        return linear(state, "head.classifiers.0", hidden), {}

    local, g = late(state, x)
    if query is not None:
        g = late(state, (query - state["mean"]) / state["std"])[1]
    if name == "vgg-late":
        return linear(state, "head.classifiers.0", g), {}
    if name == "vgg-late-norm":
        return linear(state, "head.classifiers.0", norm(0, g)), {}

    _, attention, combine, kind = name.split("-")
    descriptors, maps = [], {}
    for index, level in enumerate(LEVELS[attention]):
        keys = {
            "u": "u",
            "width_map": "W.weight",
            "w_l": "W_l.weight",
            "w_g": "W_g.weight",
            "b_g": "W_g.bias",
            "b": "b",
        }
        parameters = {key: state.get(f"attention.{level}.{name}") for key, name in keys.items()}
        query = g
        if g is None:  # softmax + pc without a global branch: any g gives the same map, so take one at random
            query = torch.randn(len(images), local["conv13"].shape[1], dtype=torch.float64)
        descriptor, maps[level], _ = attend_loops(local[level], query, kind, normalizer, **parameters)
        descriptors.append(norm(index, descriptor))
    if combine == "concat":
        return linear(state, "head.classifiers.0", torch.cat(descriptors, dim=1)), maps
    logits = [linear(state, f"head.classifiers.{index}", d) for index, d in enumerate(descriptors)]
    return sum(logits) / len(logits), maps
