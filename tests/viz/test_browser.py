"""The explorer in a real browser: JupyterLab with ipywidgets 8, and classic Notebook 6.5 with ipywidgets 7.7 (Colab's).

The first runs where Debian's Chromium is installed (chromium, chromium-driver); with LTPA_BROWSER=1 it fails where it
is not. The second is for whoever has such an environment:

    python -m venv colab && colab/bin/pip install -r tests/colab-constraints.txt .[notebooks]
    LTPA_NOTEBOOK_PYTHON=$PWD/colab/bin/python pytest tests/viz/test_browser.py

LTPA_SCREENSHOTS names a folder for pictures of what was seen.
"""

import base64
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook
from PIL import Image

ROOT = Path(__file__).parents[2]
CELL = """import ltpa
data = ltpa.load_data("shapes", train_limit=20, test_limit=20)
explorer = ltpa.explore(ltpa.create_model("vgg-att3-concat-pc", 10, width=1 / 16).eval(), data)"""
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
OTHER = os.environ.get("LTPA_NOTEBOOK_PYTHON")
WAIT = 90  # seconds, for a loaded machine

if not (CHROMIUM and DRIVER):
    if os.environ.get("LTPA_BROWSER"):
        raise RuntimeError("LTPA_BROWSER is set, but chromium and chromedriver are not installed")
    pytest.skip("chromium and chromedriver are not installed", allow_module_level=True)
if os.environ.get("LTPA_BROWSER"):
    from selenium import webdriver
else:
    webdriver = pytest.importorskip("selenium.webdriver")

FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-sync "
    "--disable-component-update --disable-dev-shm-usage --disable-quic --window-size=1500,1150"
)
# The picture's bytes, as the page shows them now.
SHOWN = """
const done = arguments[arguments.length - 1], image = document.querySelector('img.widget-image');
if (!image || !image.src) { done(''); } else {
  fetch(image.src).then(r => r.blob()).then(blob => {
    const reader = new FileReader(); reader.onload = () => done(reader.result); reader.readAsDataURL(blob);
  }).catch(() => done(''));
}"""
# ipywidgets 8 opens a file dialog from an input that is in no page: it is put into the page instead.
CATCH_INPUT = """
HTMLInputElement.prototype.click = function () {
  this.id = 'caught'; this.style.display = 'block'; document.body.appendChild(this);
};"""


@contextmanager
def browser(folder, *flags, **capabilities):
    options = webdriver.ChromeOptions()
    for name, value in capabilities.items():
        options.set_capability(name, value)
    options.binary_location = CHROMIUM
    for flag in [*FLAGS.split(), *flags, f"--user-data-dir={folder / 'profile'}"]:
        options.add_argument(flag)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.set_script_timeout(30)
    try:
        yield driver
    finally:
        driver.quit()


@contextmanager
def server(command, folder):
    """A Jupyter server without a password on a free port; its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    env = {**os.environ, "LTPA_FOLDER": str(folder), "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    env |= {f"JUPYTER_{kind.upper()}_DIR": str(folder / kind) for kind in ("config", "data", "runtime")}
    env["IPYTHONDIR"] = str(folder / "ipython")
    # All cells are drawn, not only those in view; no news are fetched.
    overrides = {"@jupyterlab/notebook-extension:tracker": {"windowingMode": "none"}}
    overrides["@jupyterlab/apputils-extension:notification"] = {"fetchNews": "false", "checkForUpdates": False}
    (folder / "config" / "labconfig").mkdir(parents=True)
    (folder / "config" / "labconfig" / "default_setting_overrides.json").write_text(json.dumps(overrides))
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen([*command, f"--port={port}"], cwd=folder, env=env, stdout=log, stderr=log)
    try:
        address = f"http://127.0.0.1:{port}"
        until(lambda: _answers(f"{address}/api"), "the server answers", process)
        yield address
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()


def _answers(address):
    try:
        return urllib.request.urlopen(address, timeout=5).status == 200
    except OSError:
        return False


def until(condition, what, process=None, every=0.25):
    """Waits for a condition and returns what it gives."""
    started = time.monotonic()
    while time.monotonic() - started < WAIT:
        if process is not None and process.poll() is not None:
            break
        if found := condition():
            return found
        time.sleep(every)
    raise AssertionError(f"waited in vain: {what}")


def prepare(folder):
    """A notebook with the explorer, and photos to upload."""
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python", "language": "python"}}
    cells = [new_code_cell(CELL), new_code_cell("print('the end')")]
    nbformat.write(new_notebook(cells=cells, metadata=kernel), folder / "notebook.ipynb")
    Image.new("RGB", (300, 200), (200, 60, 60)).save(folder / "photo.jpg")
    (folder / "text.jpg").write_text("this is no photo")
    (folder / "runs").mkdir()


def use_the_explorer(driver, folder, name):
    """Moves, changes and uploads as a person would; the displayed picture must be another one each time."""
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import Select

    def shown():
        return driver.execute_async_script(SHOWN)

    def keep(what):
        if place := os.environ.get("LTPA_SCREENSHOTS"):
            Path(place).mkdir(parents=True, exist_ok=True)
            driver.save_screenshot(str(Path(place) / f"{name}-{what}.png"))

    def error():
        found = driver.find_elements(By.CSS_SELECTOR, ".widget-html-content b, .jupyter-widgets.widget-html b")
        return next((e.text for e in found if "rgb(176, 0, 32)" in (e.get_attribute("style") or "")), "")

    def selects(option):
        found = driver.find_elements(By.CSS_SELECTOR, ".widget-dropdown select, .widget-select-multiple select")
        return next(Select(s) for s in found if option in [o.text for o in Select(s).options])

    try:
        before = until(shown, "the explorer's picture")
    finally:
        keep("start")
    driver.execute_script("document.querySelector('img.widget-image').scrollIntoView({block: 'end'})")
    keep("first")

    def changes(what):
        nonlocal before
        now = until(lambda: (now := shown()) and now != before and now, f"another picture after: {what}")
        assert base64.b64decode(now.partition(",")[2]).startswith(b"\x89PNG")
        assert error() == "", what
        before = now

    handle = driver.find_elements(By.CSS_SELECTOR, ".widget-slider .noUi-handle, .widget-slider .ui-slider-handle")[0]
    handle.send_keys(Keys.ARROW_RIGHT)
    changes("the slider moved")
    driver.find_elements(By.CSS_SELECTOR, ".widget-checkbox input[type=checkbox]")[0].click()
    changes("one level less")
    selects("cividis").select_by_visible_text("cividis")
    changes("other colors")
    selects("each to its maximum").select_by_visible_text("each to its maximum")
    changes("another scale")
    selects("saliency").select_by_visible_text("saliency")
    changes("a second row")
    keep("changed")

    driver.execute_script(CATCH_INPUT)
    button = driver.find_element(By.CSS_SELECTOR, ".widget-upload")
    button.click()
    driver.find_element(By.ID, "caught").send_keys(str(folder / "photo.jpg"))
    changes("a photo was uploaded")
    keep("photo")
    button.click()
    driver.find_element(By.ID, "caught").send_keys(str(folder / "text.jpg"))
    until(lambda: "text.jpg: not an image" in error(), "a text is refused")
    assert shown() == before
    keep("refused")
    next(b for b in driver.find_elements(By.TAG_NAME, "button") if b.text == "back to the images").click()
    changes("back to the images")
    assert len(driver.find_elements(By.CSS_SELECTOR, "img.widget-image")) == 1, "one picture, whatever was done"
    assert [still.is_displayed() for still in driver.find_elements(By.CSS_SELECTOR, ".ltpa-still")] == [False]


def test_the_explorer_in_jupyterlab(tmp_path):
    from selenium.webdriver.common.by import By

    prepare(tmp_path)
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--expose-app-in-browser"]
    command += ["--IdentityProvider.token=", f"--ServerApp.root_dir={tmp_path}"]
    with server(command, tmp_path) as address, browser(tmp_path) as driver:
        driver.get(f"{address}/lab/tree/notebook.ipynb")
        ready = "return Boolean(window.jupyterapp && document.querySelector('.jp-Notebook .jp-CodeCell'))"
        until(lambda: driver.execute_script(ready), "JupyterLab shows the notebook")
        idle = "return document.querySelector('#jp-main-statusbar')?.textContent.includes('| Idle')"
        until(lambda: driver.execute_script(idle), "the kernel is idle")
        time.sleep(1)
        driver.execute_script("window.jupyterapp.commands.execute('notebook:run-all-cells')")
        use_the_explorer(driver, tmp_path, "lab")
        last = "return [...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')].at(-1).textContent"
        driver.execute_script("[...document.querySelectorAll('.jp-CodeCell')].at(-1).scrollIntoView()")
        until(lambda: any(c.isdigit() for c in driver.execute_script(last) or ""), "the last cell has run")
        assert not driver.find_elements(By.CSS_SELECTOR, '[data-mime-type="application/vnd.jupyter.error"]')


def test_a_page_without_a_kernel_shows_the_picture(tmp_path, monkeypatch):
    """nbconvert prefers the widget where its state is known; the picture is hidden once the widget is drawn."""
    import IPython
    from nbconvert import HTMLExporter
    from selenium.webdriver.common.by import By

    import ltpa

    shown = []
    monkeypatch.setattr(IPython, "get_ipython", lambda: object())
    monkeypatch.setattr(IPython.display, "display", lambda *args, **kwargs: shown.append((args[0], kwargs)))
    data = ltpa.load_data("shapes", train_limit=20, test_limit=4)
    ltpa.explore(ltpa.create_model("vgg-att3-concat-pc", 10, width=1 / 32).eval(), data)
    (bundle, options), (still, _) = shown
    outputs = [
        nbformat.v4.new_output("display_data", bundle, metadata=options["metadata"]),
        nbformat.v4.new_output("display_data", {"text/html": still.data}),
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("explore", outputs=outputs)])
    (tmp_path / "stateless.html").write_text(HTMLExporter().from_notebook_node(notebook)[0], encoding="utf-8")
    view = bundle["application/vnd.jupyter.widget-view+json"]
    state = {"version_major": 2, "version_minor": 0, "state": {view["model_id"]: {}}}
    notebook.metadata["widgets"] = {"application/vnd.jupyter.widget-state+json": state}  # as papermill keeps it
    (tmp_path / "page.html").write_text(HTMLExporter().from_notebook_node(notebook)[0], encoding="utf-8")
    with browser(tmp_path) as driver:
        driver.get((tmp_path / "stateless.html").as_uri())
        assert [image.is_displayed() for image in driver.find_elements(By.TAG_NAME, "img")] == [True, False]
        driver.get((tmp_path / "page.html").as_uri())
        (image,) = driver.find_elements(By.CSS_SELECTOR, ".ltpa-still img")
        assert image.is_displayed()
        assert image.size["width"] > 500
        assert image.get_attribute("alt").startswith("The explorer")
        # What the widgets' script does where it can be fetched.
        driver.execute_script(
            "const area = document.createElement('div'); area.className = 'widget-subarea';"
            "document.querySelector('.jupyter-widgets').append(area)"
        )
        assert not image.is_displayed()


@pytest.mark.skipif(not OTHER, reason="LTPA_NOTEBOOK_PYTHON names no environment with classic Notebook 6.5")
def test_the_explorer_in_classic_notebook(tmp_path):
    from selenium.webdriver.common.by import By

    prepare(tmp_path)
    command = [
        OTHER,
        "-m",
        "notebook",
        "--no-browser",
        "--allow-root",
        "--NotebookApp.token=",
        "--NotebookApp.password=",
    ]
    with server(command, tmp_path) as address, browser(tmp_path) as driver:
        driver.get(f"{address}/notebooks/notebook.ipynb")
        ready = "return Boolean(window.Jupyter && Jupyter.notebook && Jupyter.notebook.kernel?.is_connected())"
        until(lambda: driver.execute_script(ready), "Notebook shows the notebook")
        driver.execute_script("Jupyter.notebook.execute_all_cells()")
        use_the_explorer(driver, tmp_path, "classic")
        assert not driver.find_elements(By.CSS_SELECTOR, ".output_error")
