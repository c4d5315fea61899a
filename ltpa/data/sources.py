"""Your own pictures in any form: paths, folders, addresses, bytes, arrays, tensors."""

import os
import time
import urllib.request
import warnings
from collections.abc import Iterator, Sequence
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..checks import check_values
from ..errors import check_whole, with_article
from .images import IMAGE_FORMATS, MAX_SIDE, MIN_SIDE, check_pixels, is_image, open_image, reduce_large, to_rgb
from .tree import Folder

MAX_ASPECT = 4  # longer pictures are squeezed to this ratio of the sides, to bound the memory
DEFAULT_SIDE = 224  # to which larger pictures are scaled unless a side is given; a phone's photo would fill the memory
MAX_FOLDER = 32  # pictures that are read of a folder
URL_SECONDS = 20.0  # after which a download is given up, whatever the server sends
URL_BYTES = 50_000_000

Picture = str | os.PathLike | bytes | Image.Image | np.ndarray | Tensor
"""A path, an address (http, https), an encoded file, a Pillow image, an array (H, W), (H, W, 3) or (H, W, 4), or a
tensor (3, H, W)."""


def read_pictures(source: Picture | Sequence[Picture]) -> list[Tensor]:
    """Return a uint8 tensor (3, H, W) for each picture: a `Picture`, a list of them, a folder, or a batch.

    Only the first 32 pictures of a folder are read, by name, and with a warning those that can be read. A batch is an
    array (N, H, W, 3) or a tensor (N, 3, H, W). Arrays and tensors are uint8, or float in [0, 1].
    """
    return [picture for _, picture in read_named(source)]


def read_named(source: Picture | Sequence[Picture]) -> list[tuple[str, Tensor]]:
    """Return each picture of `read_pictures` with the name of its file, "" without one."""
    many = isinstance(source, list | tuple) or (isinstance(source, Tensor | np.ndarray) and source.ndim == 4)
    pictures: Any = source if many else [source]
    if not len(pictures):
        raise ValueError("no picture was given")
    return [named for picture in pictures for named in _parts(picture)]


def at_resolution(picture: Tensor, side: int) -> Tensor:
    """Scale the shorter side of a picture uint8 (3, H, W) to `side` pixels, from 32 to 1024.

    The proportions are kept, but a picture more than four times as long as wide is squeezed to that ratio.
    """
    check_whole("side", side, MIN_SIDE, MAX_SIDE)
    _, height, width = picture.shape
    shorter = min(height, width)
    wide, high = (min(MAX_ASPECT * side, round(length * side / shorter)) for length in (width, height))
    image = Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy())
    return _tensor(image.resize((wide, high), Image.Resampling.BILINEAR))


def fetch_picture(url: str, seconds: float = URL_SECONDS, max_bytes: int = URL_BYTES) -> bytes:
    """Return the encoded picture at an address (http or https).

    A ValueError says what is wrong: not complete within `seconds`, more than `max_bytes`, or not a picture.
    """
    content, until = bytearray(), time.monotonic() + seconds
    request = urllib.request.Request(url, headers={"User-Agent": "ltpa", "Accept": "image/*"})
    try:
        with urllib.request.urlopen(request, timeout=seconds) as response:
            length = int(response.headers.get("Content-Length") or 0)
            while max(length, len(content)) <= max_bytes and (block := response.read1(1 << 16)):
                content += block
                if time.monotonic() > until:  # the time-out starts again with every block that a slow server sends
                    raise TimeoutError
    except TimeoutError:
        raise ValueError(f"{url}: not received within {seconds:g} s; try again, or save the picture by hand") from None
    except (OSError, ValueError, HTTPException) as error:
        raise ValueError(f"{url}: {str(error) or type(error).__name__}") from error
    if max(length, len(content)) > max_bytes:
        raise ValueError(f"{url}: more than {max_bytes / 1e6:.3g} MB; save a smaller picture by hand")
    if len(content) < length:
        raise ValueError(f"{url}: the server sent only {len(content):,} of {length:,} bytes; try again")
    if not is_image(bytes(content[:32])):
        page = bytes(content[:500]).lstrip().lower().startswith((b"<!doctype", b"<html"))
        hint = "a web page; open it and copy the address of the picture itself" if page else "not a picture"
        raise ValueError(f"{url}: {hint} ({', '.join(IMAGE_FORMATS)})")
    return bytes(content)


def _parts(picture: Any) -> Iterator[tuple[str, Tensor]]:
    """Yield names and pictures of a folder, or the picture itself."""
    if not isinstance(picture, str | os.PathLike) or _is_url(picture):
        yield "", _read(picture)
        return
    path = Path(os.path.expanduser(picture))
    if not path.is_dir():
        yield path.name, _read(path)
        return
    files, broken = Folder(path).images, list[str]()
    if len(files) > MAX_FOLDER:
        warnings.warn(f"{path} holds {len(files)} pictures: the first {MAX_FOLDER} are read", stacklevel=4)
    for file in files[:MAX_FOLDER]:
        try:
            yield file.name, _read(file)
        except ValueError as error:
            broken.append(str(error))
    if len(broken) == len(files[:MAX_FOLDER]):
        why = f"that can be read ({broken[0]})" if broken else "; name one of its subfolders, or a picture"
        raise ValueError(f"the folder {str(path)!r} holds no pictures{' ' if broken else ''}{why}")
    if broken:
        warnings.warn(f"{len(broken)} of {len(files)} pictures are left out: {'; '.join(broken)}", stacklevel=4)


def _is_url(picture: Any) -> bool:
    return isinstance(picture, str) and picture.lower().startswith(("http://", "https://"))


def _read(picture: Any) -> Tensor:
    if isinstance(picture, str | Path):
        return _read_place(picture)
    if isinstance(picture, bytes | bytearray | memoryview):
        return _tensor(open_image(bytes(picture)))
    if isinstance(picture, Image.Image):
        check_pixels(picture.width, picture.height)
        return _tensor(to_rgb(reduce_large(picture, MAX_SIDE)))
    if isinstance(picture, Tensor):
        # NumPy has no bfloat16.
        values = (picture.float() if picture.is_floating_point() else picture).detach().cpu().numpy()
        if values.ndim != 3 or values.shape[0] != 3:
            raise ValueError(f"a picture must have the shape (3, H, W), not {tuple(values.shape)}")
        return _from_numbers(values.transpose(1, 2, 0))
    if isinstance(picture, np.ndarray):
        if picture.ndim != 2 and (picture.ndim != 3 or picture.shape[2] not in (3, 4)):
            raise ValueError(f"a picture must have the shape (H, W), (H, W, 3) or (H, W, 4), not {picture.shape}")
        return _from_numbers(picture)
    raise TypeError(
        f"{with_article(type(picture).__name__)} is not a picture: give a path, an address (https://...), the bytes of "
        f"a file ({', '.join(IMAGE_FORMATS)}), a Pillow image, an array (H, W, 3) or a tensor (3, H, W)"
    )


def _read_place(place: str | Path) -> Tensor:
    """Read a picture from an address or a file; an error names it."""
    if isinstance(place, Path):
        if not place.is_file():
            raise FileNotFoundError(f"there is no file {str(place)!r} (looked in {Path.cwd()})")
        content = place.read_bytes()
    else:
        content = fetch_picture(place)
    try:
        return _tensor(open_image(content))
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error


def _from_numbers(values: np.ndarray) -> Tensor:
    """Read an array (H, W), (H, W, 3) or (H, W, 4)."""
    if 0 in values.shape:
        raise ValueError(f"a picture must have the shape (H, W, 3) with at least one pixel, not {values.shape}")
    check_pixels(values.shape[1], values.shape[0])
    if values.dtype != np.uint8:
        if not np.issubdtype(values.dtype, np.floating):
            raise ValueError(f"a picture must be uint8, or float in [0, 1], not {values.dtype}")
        check_values(torch.from_numpy(values.astype(np.float32))[None], "a picture's numbers")
        values = (values.clip(0, 1) * 255).round().astype(np.uint8)
    return _tensor(to_rgb(reduce_large(Image.fromarray(np.ascontiguousarray(values)), MAX_SIDE)))


def _tensor(image: Image.Image) -> Tensor:
    """Return an RGB image as uint8 (3, H, W)."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
