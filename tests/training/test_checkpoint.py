"""Files that are whole or not there, and checkpoints that survive a kill, a full disk and a flipped bit."""

import errno
import hashlib
import os
import re
import stat

import pytest
import torch

from ltpa.progress import messages
from ltpa.training import checkpoint
from ltpa.training.checkpoint import (
    load_checkpoint,
    load_tensors,
    remove_checkpoints,
    save_checkpoint,
    save_tensors,
    write,
)


def tensors(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        "weights": torch.randn(4, 3, 3, 3, generator=generator).to(memory_format=torch.channels_last),
        "half": torch.randn(5, generator=generator).bfloat16(),
        "exact": torch.randn(2, 2, generator=generator, dtype=torch.float64).t(),
        "count": torch.tensor(2**40 + 1),
        "mask": torch.tensor([True, False]),
        "empty": torch.zeros(0, 3),
        "odd": torch.tensor([float("nan"), float("inf"), -0.0]),
    }


def raw(tensor):
    """The bytes, so that NaN equals NaN and -0.0 is not 0.0."""
    return tensor.contiguous().flatten().view(torch.uint8).tolist()


def assert_same(left, right):
    assert left.keys() == right.keys()
    for name in left:
        assert left[name].dtype == right[name].dtype
        assert left[name].shape == right[name].shape
        assert raw(left[name]) == raw(right[name]), name


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def full_disk(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def save_steps(folder, *steps):
    folder.mkdir(exist_ok=True)
    return [save_checkpoint(folder, step, tensors(step), {"history": [{"epoch": step}]}) for step in steps]


# --- single files


def test_write_replaces_the_whole_file_and_leaves_nothing_else(tmp_path):
    write(tmp_path / "a.txt", b"one")
    write(tmp_path / "a.txt", b"2")
    assert (tmp_path / "a.txt").read_bytes() == b"2"
    assert names(tmp_path) == ["a.txt"]


def test_written_files_have_the_permissions_that_files_have(tmp_path):
    before = os.umask(0o027)
    try:
        write(tmp_path / "a.txt", b"one")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.txt").stat().st_mode) == 0o640


def test_the_content_is_flushed_before_it_takes_its_name(tmp_path, monkeypatch):
    order = []
    plain = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: (order.append(os.fstat(file).st_size), plain[0](file)))
    monkeypatch.setattr(os, "replace", lambda a, b: (order.append((os.path.getsize(a), b)), plain[1](a, b)))
    write(tmp_path / "a.txt", b"12345")
    assert order == [5, (5, tmp_path / "a.txt")]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_is_named_and_the_file_that_was_there_stays(tmp_path, monkeypatch, call):
    write(tmp_path / "a.txt", b"one")
    monkeypatch.setattr(os, call, full_disk)
    with pytest.raises(OSError, match="No space left") as caught:
        write(tmp_path / "a.txt", b"two")
    assert caught.value.errno == errno.ENOSPC
    assert str(tmp_path) in str(caught.value)
    assert "a.txt" in str(caught.value)
    assert (tmp_path / "a.txt").read_bytes() == b"one"
    assert names(tmp_path) == ["a.txt"]


def test_an_interrupt_in_the_middle_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "a.txt", b"one")
    assert names(tmp_path) == []


def test_no_folder_is_made_where_a_drive_may_have_vanished(tmp_path):
    with pytest.raises(FileNotFoundError, match=re.escape(str(tmp_path / "gone"))):
        write(tmp_path / "gone" / "a.txt", b"one")
    with pytest.raises(FileNotFoundError):
        save_checkpoint(tmp_path / "gone", 1, tensors(), {})
    assert names(tmp_path) == []


# --- tensors


def test_tensors_and_facts_come_back_as_they_were(tmp_path):
    facts = {"epoch": 3, "loss": 0.1 + 0.2, "list": [1, None, "ä"], "nan": float("inf")}
    save_tensors(tmp_path / "t.safetensors", tensors(), facts)
    found, found_facts = load_tensors(tmp_path / "t.safetensors")
    assert_same(found, tensors())
    assert found_facts == facts


def test_no_tensors_and_no_facts(tmp_path):
    save_tensors(tmp_path / "t.safetensors", {})
    assert load_tensors(tmp_path / "t.safetensors") == ({}, {})


def test_what_was_read_does_not_change_with_the_file(tmp_path):
    path = tmp_path / "t.safetensors"
    save_tensors(path, tensors(0))
    found, _ = load_tensors(path)
    save_tensors(path, tensors(1))
    assert_same(found, tensors(0))


def test_missing_and_damaged_tensor_files_are_named(tmp_path):
    path = tmp_path / "t.safetensors"
    with pytest.raises(FileNotFoundError, match=re.escape(str(path))):
        load_tensors(path)
    save_tensors(path, tensors(), {"epoch": 1})
    whole = path.read_bytes()
    for content in (b"", b"x", whole[:7], whole[:20], whole[: len(whole) // 2], whole[:-1], b"\xff" * 100, b"\0" * 100):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=re.escape(f"{path} is damaged")):
            load_tensors(path)


# --- checkpoints


def test_a_checkpoint_is_named_by_its_step_and_its_sha256(tmp_path):
    (path,) = save_steps(tmp_path / "c", 12)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    assert path.name == f"step-000000012-{digest}.safetensors"
    found, facts = load_checkpoint(tmp_path / "c")
    assert_same(found, tensors(12))
    assert facts == {"history": [{"epoch": 12}], "step": 12}


def test_the_last_two_are_kept_and_the_newest_is_loaded(tmp_path):
    paths = save_steps(tmp_path / "c", 9, 10, 99, 100, 101)
    assert names(tmp_path / "c") == [path.name for path in paths[-2:]]
    assert load_checkpoint(tmp_path / "c")[1]["step"] == 101


def test_without_checkpoints_there_is_none(tmp_path):
    assert load_checkpoint(tmp_path / "none") is None
    (tmp_path / "c").mkdir()
    assert load_checkpoint(tmp_path / "c") is None


def flip(content):
    return content[:300] + bytes([content[300] ^ 1]) + content[301:]


DAMAGES = {
    "a bit": flip,
    "the last bit": lambda content: content[:-1] + bytes([content[-1] ^ 1]),
    "the end": lambda content: content[:-1],
    "the half": lambda content: content[: len(content) // 2],
    "everything": lambda content: b"",
    "zeros": lambda content: bytes(len(content)),
    "more": lambda content: content + b"\0",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_one_is_named_and_set_aside_and_the_one_before_is_used(tmp_path, damage):
    folder = tmp_path / "c"
    older, newest = save_steps(folder, 1, 2)
    newest.write_bytes(DAMAGES[damage](newest.read_bytes()))
    said = []
    with messages(False, said):
        found, facts = load_checkpoint(folder)
    assert facts["step"] == 1
    assert_same(found, tensors(1))
    assert len(said) == 1
    assert newest.name in said[0]
    assert str(folder) in said[0]
    assert names(folder) == sorted([older.name, newest.with_suffix(".damaged").name])
    assert load_checkpoint(folder)[1]["step"] == 1
    # The damaged one does not count as one of the last two.
    save_steps(folder, 3)
    assert [name[:14] for name in names(folder) if name.endswith(".safetensors")] == [
        "step-000000001",
        "step-000000003",
    ]


def test_when_all_are_damaged_all_are_named(tmp_path):
    paths = save_steps(tmp_path / "c", 1, 2)
    for path in paths:
        path.write_bytes(b"")
    said = []
    with messages(False, said):
        assert load_checkpoint(tmp_path / "c") is None
    assert [path.name in words for path, words in zip(reversed(paths), said, strict=True)] == [True, True]


def test_a_checkpoint_under_a_wrong_name_is_damaged(tmp_path):
    one, two = save_steps(tmp_path / "c", 1, 2)
    content = one.read_bytes()
    two.write_bytes(content)
    assert load_checkpoint(tmp_path / "c")[1]["step"] == 1
    assert two.with_suffix(".damaged").is_file()


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_the_older_checkpoints(tmp_path, monkeypatch, call):
    folder = tmp_path / "c"
    before = save_steps(folder, 1, 2)
    monkeypatch.setattr(os, call, full_disk)
    with pytest.raises(OSError, match=re.escape(str(folder))):
        save_checkpoint(folder, 3, tensors(3), {})
    assert names(folder) == [path.name for path in before]
    assert load_checkpoint(folder)[1]["step"] == 2


def test_an_old_one_that_cannot_be_removed_does_not_matter(tmp_path, monkeypatch):
    folder = tmp_path / "c"
    save_steps(folder, 1, 2)
    monkeypatch.setattr(type(folder), "unlink", full_disk)
    save_steps(folder, 3)
    assert len(names(folder)) == 3
    assert load_checkpoint(folder)[1]["step"] == 3


def test_removing_checkpoints_removes_their_debris_and_nothing_else(tmp_path):
    folder = tmp_path / "c"
    save_steps(folder, 1, 2)[1].write_bytes(b"")
    load_checkpoint(folder)
    (folder / ".part-12").write_bytes(b"half")
    (folder / "mine.txt").write_bytes(b"not ours")
    remove_checkpoints(folder)
    assert names(folder) == ["mine.txt"]
    (folder / "mine.txt").unlink()
    remove_checkpoints(folder)
    assert not folder.exists()
    remove_checkpoints(folder)


def test_parts_of_files_are_no_checkpoints_and_are_removed(tmp_path):
    folder = tmp_path / "c"
    save_steps(folder, 1)
    (folder / ".part-step-000000009-0123456789abcdef.safetensors").write_bytes(b"half")
    assert load_checkpoint(folder)[1]["step"] == 1
    checkpoint.remove_parts(folder)
    assert len(names(folder)) == 1
    checkpoint.remove_parts(tmp_path / "none")
