"""Files of strangers run no code: what a run's folder may hold, and which calls the package does not make at all."""

import ast
import hashlib
import pickle
import shutil
from pathlib import Path

import pytest
import torch

from ltpa import fit, load_run
from tests.tools.crash import tiny_config, tiny_data

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [*ROOT.glob("ltpa/**/*.py"), *ROOT.glob(".github/*.py")]
ALLOWED = {
    ("mark.py", "exec"),  # it marks what students wrote, in a process of its own, and asks first
    ("exercises.py", "exec"),  # a solution that is in the same file
    ("cifar.py", "pickle.loads"),  # bytes of CIFAR's batches whose hash was checked
}
REACHED = []


class Hostile:
    """What pickle makes of it calls `reach`."""

    def __reduce__(self):
        return reach, ("code was run",)


def reach(words):
    REACHED.append(words)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return fit(tiny_config(tmp_path_factory.mktemp("run") / "run", epochs=1), tiny_data(), progress=False).path


@pytest.fixture
def hostile(tmp_path):
    """Files that run code where they are unpickled; that they do is tried here."""
    torch.save({"weights": Hostile()}, tmp_path / "zip.pt")
    (tmp_path / "pickle.pt").write_bytes(pickle.dumps(Hostile()))
    pickle.loads((tmp_path / "pickle.pt").read_bytes())
    torch.load(tmp_path / "zip.pt", weights_only=False)
    assert len(REACHED) == 2
    REACHED.clear()
    return [path.read_bytes() for path in (tmp_path / "zip.pt", tmp_path / "pickle.pt")]


@pytest.mark.parametrize("name", ["weights.safetensors", "history.csv", "config.json"])
def test_a_run_of_a_stranger_runs_no_code(finished, hostile, tmp_path, name):
    shutil.copytree(finished, tmp_path / "run")
    for content in hostile:
        (tmp_path / "run" / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{name} is damaged"):
            load_run(tmp_path / "run", "cpu")
    assert REACHED == []


def test_a_checkpoint_of_a_stranger_runs_no_code(hostile, tmp_path):
    """Even one whose checksum is right."""
    config = tiny_config(tmp_path / "run", epochs=1)
    fit(config, tiny_data(), progress=False)
    (config.path / "weights.safetensors").unlink()
    folder = config.path / "checkpoints"
    folder.mkdir()
    for content in hostile:
        path = folder / f"step-000000001-{hashlib.sha256(content).hexdigest()[:16]}.safetensors"
        path.write_bytes(content)
        with pytest.raises(ValueError, match="is damaged"):
            fit(config, tiny_data(), progress=False)
        path.unlink()
    assert REACHED == []


def test_a_header_that_promises_gigabytes_takes_no_memory(finished, tmp_path):
    shutil.copytree(finished, tmp_path / "run")
    head = b'{"x":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4000000000000]}}'
    for content in (len(head).to_bytes(8, "little") + head, (2**62).to_bytes(8, "little") + head):
        (tmp_path / "run" / "weights.safetensors").write_bytes(content)
        with pytest.raises(ValueError, match=r"weights\.safetensors is damaged"):
            load_run(tmp_path / "run", "cpu")


def calls(path):
    """(name, keywords) of every call in a file."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_no_call_that_could_run_a_strangers_code(path):
    for name, words in calls(path):
        if (path.name, name) in ALLOWED:
            continue
        assert name not in ("eval", "exec", "os.system", "os.popen", "yaml.load", "pickle.load", "pickle.loads"), name
        assert words.get("shell", "False") == "False", name
        if name == "torch.load":
            assert words.get("weights_only") == "True"
        if name.endswith("extractall"):
            assert None in words or path.name == "own_photos.py", (
                "the filter is passed as **safely; zip files need none"
            )
    imported = {
        alias.name
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    allowed = {name.partition(".")[0] for file, name in ALLOWED if file == path.name}
    assert not imported & {"pickle", "marshal", "shelve", "dill", "joblib"} - allowed


def test_the_search_would_find_such_a_call(tmp_path):
    (tmp_path / "bad.py").write_text("subprocess.run(x, shell=True)\ntorch.load(p)\n")
    with pytest.raises(AssertionError, match=r"subprocess\.run"):
        test_no_call_that_could_run_a_strangers_code(tmp_path / "bad.py")
    (tmp_path / "bad.py").write_text("torch.load(p)\n")
    with pytest.raises(AssertionError):
        test_no_call_that_could_run_a_strangers_code(tmp_path / "bad.py")
