"""Little pictures and folders of them, for tests."""

import io

from PIL import Image

RED, GREEN, BLUE, WHITE, BLACK = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0)


def plain(color=RED, size=(32, 32), mode="RGB"):
    return Image.new(mode, size, color)


def encoded(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def colors(picture):
    """The distinct colors of a picture (3, H, W)."""
    return {tuple(color) for color in picture.flatten(1).T.tolist()}


def grow(root, files):
    """Writes files, given as {path: content, image, or None for a plain one of its own color}."""
    for number, (name, content) in enumerate(files.items()):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            content = plain((number % 256, number // 256, 77))
        path.write_bytes(content if isinstance(content, bytes) else encoded(content))
    return root


def two_classes(**counts):
    counts = counts or {"cat": 10, "dog": 10}
    return {f"{name}/{i:03d}.png": None for name, count in counts.items() for i in range(count)}


def both_parts(train=None, test=None):
    files = {f"train/{name}": content for name, content in (train or two_classes(cat=2, dog=2)).items()}
    return files | {f"test/{name}": content for name, content in (test or {"cat/t.png": plain(WHITE)}).items()}
