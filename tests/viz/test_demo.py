"""The explorer without a kernel (docs/demo) in headless Chromium, as `nox -s demo` has built it.

The networks, the runtime and the pictures are those of build/docs/demo (or of the site that LTPA_SITE names); the page
and its modules are those of docs/demo.
"""

import importlib.util
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import ltpa
from ltpa.data.images import crop_square
from ltpa.maps import entropy, relative

from .test_browser import ROOT, browser, until

BUILT = Path(os.environ.get("LTPA_SITE", ROOT / "build" / "docs")).resolve() / "demo"
SOURCE = ROOT / "docs" / "demo"
STATIC = ("index.html", "style.css", "js")
REMEDY = "build it with `nox -s demo`, which needs npm"

if not (BUILT / "data.json").is_file():
    pytest.skip(f"docs/demo is not built: {REMEDY}", allow_module_level=True)

COMPUTED = "return Number(document.body.dataset.computed ?? 0)"
ASKED = "return Number(document.body.dataset.asked ?? 0)"
STATE = """
const { state, input } = window.ltpa;
return { input: [...input().data], logits: [...state.output.logits],
         maps: Object.fromEntries(Object.entries(state.output.maps).map(
           ([level, map]) => [level, [map.height, map.width, [...map.values]]])) };
"""


def load_build():
    spec = importlib.util.spec_from_file_location("demo_build", SOURCE / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def networks():
    build, data = load_build(), json.loads((BUILT / "data.json").read_text("utf-8"))
    networks = build.load_networks()
    for name, network in networks.items():
        if build.onnx_path(name, network).name != Path(data["networks"][name]["file"]).name:
            pytest.skip(f"docs/demo was built from other weights: {REMEDY}")
    return networks


@pytest.fixture(scope="module")
def address(tmp_path_factory, networks):
    folder = tmp_path_factory.mktemp("site")
    for path in BUILT.iterdir():
        (folder / path.name).symlink_to(SOURCE / path.name if path.name in STATIC else path)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1", "-d", str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until(lambda: not socket.socket().connect_ex(("127.0.0.1", port)), "the server answers", process)
        yield f"http://127.0.0.1:{port}/index.html?test"
    finally:
        process.terminate()
        process.wait(20)


@pytest.fixture(scope="module")
def requests(tmp_path_factory):
    """The file of every request of the browser, workers included; it is complete when the browser has ended."""
    return tmp_path_factory.mktemp("log") / "requests.json"


@pytest.fixture(scope="module")
def page(address, requests, tmp_path_factory):
    logs = {"goog:loggingPrefs": {"browser": "ALL"}}
    with browser(tmp_path_factory.mktemp("browser"), f"--log-net-log={requests}", **logs) as driver:
        driver.get(address)
        until(lambda: driver.execute_script("return document.body.dataset.state === 'ready'"), "the page is ready")
        yield driver


def after(page, action, counter=COMPUTED):
    """Does something and waits until the page has computed."""
    before = page.execute_script(counter)
    action()
    until(lambda: page.execute_script(counter) > before, "the page computes", every=0.02)


def choose(page, css):
    page.execute_script("document.querySelector(arguments[0]).click()", css)


def select(page, name, value):
    page.execute_script(
        "const s = document.getElementById(arguments[0]); s.value = arguments[1]; s.dispatchEvent(new Event('change'))",
        name,
        value,
    )


def message(page):
    return page.execute_script("return document.getElementById('message').textContent")


def check_answer(page, network):
    """The page's answer and maps are torch's for the pixels that the page read; returns these pixels."""
    state = page.execute_script(STATE)
    side = round((len(state["input"]) / 3) ** 0.5)
    pixels = np.array(state["input"], dtype=np.uint8).reshape(side, side, 3)
    output = ltpa.attend(network, torch.from_numpy(pixels).permute(2, 0, 1)[None], "fp32")
    assert np.abs(np.array(state["logits"]) - output.logits[0].numpy()).max() < 1e-3
    assert state["maps"].keys() == output.maps.keys()
    for level, (height, width, values) in state["maps"].items():
        expected = output.maps[level]
        got = torch.tensor(values, dtype=torch.float32).view(1, height, width)
        assert (relative(got) - relative(expected)).abs().max() < 1e-3 * relative(expected).max()
        figures = page.execute_script("return [...document.querySelectorAll('#maps figure')].map(f => f.textContent)")
        figure = next(text for text in figures if text.startswith(level))
        assert f"entropy {entropy(expected).item():.2f}" in figure
    return pixels


def test_the_first_map_needs_no_network(page, networks):
    """It is the answer of the network for the first picture, and the page is light so far."""
    check_answer(page, networks["cifar10-small"])
    loaded = page.execute_script(
        "return performance.getEntriesByType('resource').map(r => [r.name, r.transferSize, r.responseEnd])"
    )
    assert not any("networks/" in name or "vendor/" in name for name, _, _ in loaded)
    assert sum(size for _, size, _ in loaded) < 200_000
    assert page.execute_script("return window.ltpa.state.firstMap") < 3000  # ms after the page was opened
    assert sum(path.stat().st_size for path in BUILT.rglob("*") if path.is_file()) < 20e6


def test_ten_pictures_agree_with_torch(page, networks):
    for picture in ("horse", "boats", "rocket", "astronaut", "coffee", "disc", "star", "arrow", "heart", "hourglass"):
        drawn = page.execute_script("return !!document.querySelector(`#drawn [value=${arguments[0]}]`)", picture)
        after(page, lambda picture=picture: choose(page, f"input[value={picture}]"))
        pixels = check_answer(page, networks["shapes-small" if drawn else "cifar10-small"])
        with Image.open(next((BUILT / "pictures").glob(f"{picture}.*"))) as image:
            expected = np.asarray(crop_square(image.convert("RGB"), 32)).astype(int)
        assert np.abs(pixels - expected).max() <= (0 if drawn else 4), "browsers decode JPEG files with rounding errors"
        if picture == "coffee":
            after(page, lambda: select(page, "size", "96"))
            assert check_answer(page, networks["cifar10-small"]).shape == (96, 96, 3)
    assert message(page) == ""


def test_a_photo_of_ones_own_and_a_text(page, networks, tmp_path):
    from selenium.webdriver.common.by import By

    generator = np.random.default_rng(0)
    photo = Image.fromarray(generator.integers(0, 256, (20, 33, 3), dtype=np.uint8)).resize((330, 200))
    photo.save(tmp_path / "photo.png")
    (tmp_path / "text.jpg").write_text("this is no photo")
    upload = page.find_element(By.ID, "file")
    after(page, lambda: upload.send_keys(str(tmp_path / "photo.png")))
    pixels = check_answer(page, networks["cifar10-small"])
    assert np.abs(pixels - np.asarray(crop_square(photo, 32)).astype(int)).max() <= 1
    shown = page.execute_script(STATE)
    upload.send_keys(str(tmp_path / "text.jpg"))
    until(lambda: "text.jpg: this is not a picture" in message(page), "a text is refused in words")
    assert page.execute_script(STATE) == shown


def test_covering_by_mouse_and_by_keyboard(page, networks):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    after(page, lambda: choose(page, "input[value=cat]"))
    before = check_answer(page, networks["cifar10-small"]).astype(int)
    canvas = page.find_element(By.ID, "picture")
    page.execute_script("arguments[0].scrollIntoView({block: 'center'})", canvas)
    after(page, lambda: ActionChains(page).move_to_element(canvas).click().perform())
    covered = check_answer(page, networks["cifar10-small"]).astype(int)
    changed = (covered != before).any(2)
    assert changed[16, 16]
    assert 5 < changed.sum() < 40
    assert "→" in page.find_element(By.ID, "bars").text
    canvas.send_keys(Keys.ARROW_LEFT * 4)
    after(page, lambda: canvas.send_keys(Keys.SPACE))
    assert (check_answer(page, networks["cifar10-small"]) != before).any(2)[16, 8]
    times = []
    for size in ("32", "96"):
        after(page, lambda size=size: select(page, "size", size))
        times.append(float(page.execute_script("return document.body.dataset.milliseconds")))
    assert times[0] < 3 * 150, "150 ms; the tests may share the machine"
    assert times[1] < 3 * 1000, "1 s"
    after(page, lambda: select(page, "size", "32"))
    for _ in range(2):
        after(page, lambda: canvas.send_keys(Keys.BACKSPACE))
    assert (check_answer(page, networks["cifar10-small"]) == before).all()


def test_a_dropped_picture_on_a_phone_in_the_dark(page, networks):
    drop = """
      fetch('pictures/star.png').then(answer => answer.blob()).then(blob => {
        const dataTransfer = new DataTransfer();
        dataTransfer.items.add(new File([blob], 'dropped.png', { type: 'image/png' }));
        document.body.dispatchEvent(new DragEvent('drop', { dataTransfer, bubbles: true, cancelable: true }));
      });"""
    after(page, lambda: page.execute_script(drop))
    check_answer(page, networks["cifar10-small"])
    screen = {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True}
    dark = {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", dark)
    wide, ground, ink = page.execute_script(
        "const { backgroundColor, color } = getComputedStyle(document.body);"
        "return [document.documentElement.scrollWidth, backgroundColor, color]"
    )
    assert wide == 360, "nothing sticks out"
    assert sum(map(int, re.findall(r"\d+", ground)[:3])) < 120 < 600 < sum(map(int, re.findall(r"\d+", ink)[:3]))
    page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_queries_move_the_maps_of_dp_alone(page, networks):
    after(page, lambda: choose(page, "#start-asking"), ASKED)
    scene = json.loads((BUILT / "scenes.json").read_text("utf-8"))[0]
    images = read(scene["file"])
    shown = {}
    for number, entry in enumerate(scene["queries"][:2]):
        if number:
            after(page, lambda: choose(page, "input[name=query][value='1']"), ASKED)
        outputs = page.execute_script("return window.ltpa.asked.shown.outputs")
        for name in ("pc", "dp", "asked"):
            query = {} if name == "pc" else {"query": read(entry["file"])}
            expected = ltpa.attend(networks[name], images, "fp32", **query)
            got = {
                k: torch.tensor(values(m["values"]), dtype=torch.float32).view(1, m["height"], m["width"])
                for k, m in outputs[name]["maps"].items()
            }
            for level, weights in expected.maps.items():
                assert (relative(got[level]) - relative(weights)).abs().max() < 1e-3 * relative(weights).max()
            logits = torch.tensor(values(outputs[name]["logits"]))
            assert (logits - expected.logits[0]).abs().max() < 1e-3
            shown.setdefault(name, []).append(got)
    for name, (first, second) in shown.items():
        assert all(torch.equal(first[level], second[level]) for level in first) == (name == "pc")


def test_nothing_comes_from_another_host(page, address, requests):
    """Runs last, because it ends the browser."""
    assert page.get_log("browser") == [], "nothing was refused, and nothing failed"
    page.quit()
    events = json.loads(until(requests.read_text, "the browser has written its log"))["events"]
    own = address.rpartition("/")[0]
    # The browser asks for things of its own; a request of the page or of its worker names the page as its initiator.
    addresses = {e["params"]["url"] for e in events if e.get("params", {}).get("initiator") == own}
    assert all(any(url.endswith(end) for url in addresses) for end in ("/data.json", ".onnx", ".wasm"))
    assert [url for url in addresses if not url.startswith((f"{own}/", "data:", "blob:"))] == []


def read(file):
    with Image.open(BUILT / file) as image:
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)[None]


def values(array):
    """A typed array of the page, which arrives as a dictionary."""
    return [array[str(i)] for i in range(len(array))] if isinstance(array, dict) else array
