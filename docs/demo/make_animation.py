"""Record the animation of the README from the page that `nox -s demo` has built: `python docs/demo/make_animation.py`.

It drives the page in headless Chromium (chromium and chromedriver) as a visitor would, takes pictures of it, and writes
docs/images/explorer.gif, which repeats forever.
"""

import functools
import http.server
import io
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webdriver import WebDriver

ROOT = Path(__file__).resolve().parents[2]
PAGE, TARGET = ROOT / "build" / "docs" / "demo", ROOT / "docs" / "images" / "explorer.gif"
SIZE, WINDOW = (900, 460), (980, 1400)  # pixels of the animation, and of the browser's window
MOST_BYTES = 2_000_000
LOOK, STEP = 1600, 220  # milliseconds that a frame stays


class Film:
    """Frames of a page and how long each stays."""

    def __init__(self, driver: WebDriver) -> None:
        self.driver = driver
        self.frames: list[Image.Image] = []
        self.durations: list[int] = []

    def take(self, milliseconds: int, *parts: str) -> None:
        """Add a picture of parts of the page, CSS selectors, one below the other."""
        shots = [self._shoot(part) for part in parts]
        sheet = Image.new("RGB", (max(shot.width for shot in shots), sum(shot.height for shot in shots)), "white")
        for number, shot in enumerate(shots):
            sheet.paste(shot, (0, sum(above.height for above in shots[:number])))
        sheet.thumbnail((SIZE[0] - 16, SIZE[1] - 16), Image.Resampling.LANCZOS)
        frame = Image.new("RGB", SIZE, "white")
        frame.paste(sheet, ((SIZE[0] - sheet.width) // 2, 8))
        self.frames.append(frame)
        self.durations.append(milliseconds)

    def _shoot(self, part: str) -> Image.Image:
        element = self.driver.find_element(By.CSS_SELECTOR, part)
        self.driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", element)
        with Image.open(io.BytesIO(element.screenshot_as_png)) as shot:
            return shot.convert("RGB")

    def do(self, action: Callable[[], None], counter: str = "computed") -> None:
        """Do something, and wait until the page has computed."""
        before = self._count(counter)
        action()
        for _ in range(600):
            if self._count(counter) > before:
                return
            time.sleep(0.05)
        raise TimeoutError("the page does not compute; build it again with `nox -s demo`")

    def click(self, css: str) -> None:
        """Click on what a CSS selector finds."""
        self.driver.execute_script("document.querySelector(arguments[0]).click()", css)

    def _count(self, counter: str) -> int:
        return int(self.driver.execute_script("return document.body.dataset[arguments[0]] ?? 0", counter))

    def save(self, path: Path) -> None:
        """Write an animated GIF that repeats forever."""
        frames = [frame.quantize(256, dither=Image.Dither.NONE) for frame in self.frames]
        frames[0].save(path, save_all=True, append_images=frames[1:], duration=self.durations, loop=0, optimize=False)
        if path.stat().st_size > MOST_BYTES:
            raise ValueError(f"{path} has {path.stat().st_size:,} bytes, at most {MOST_BYTES:,} are allowed")


def record(film: Film) -> None:
    """Choose two pictures, cover a part of the second, and ask with two queries in turn."""
    film.take(LOOK, "#stage", "#scale")
    film.do(lambda: film.click("input[value=horse]"))
    film.take(LOOK, "#stage", "#scale")
    canvas = film.driver.find_element(By.ID, "picture")
    for x, y in ((-14, 4), (2, 6), (18, 0), (34, -14), (46, -34), (56, -50)):
        film.do(lambda x=x, y=y: ActionChains(film.driver).move_to_element_with_offset(canvas, x, y).click().perform())
        film.take(STEP, "#stage", "#scale")
    film.durations[-1] = LOOK
    film.do(lambda: film.click("#start-asking"), "asked")
    for query in "1010":
        film.do(lambda query=query: film.click(f"input[name=query][value='{query}']"), "asked")
        film.driver.execute_script("document.querySelectorAll('#trio .hint').forEach(e => e.style.display = 'none')")
        film.take(LOOK, "#queries", "#trio")


def main() -> None:
    """Serve the page, record it, and write the animation."""
    if not (PAGE / "data.json").is_file():
        raise SystemExit("the page is not built: nox -s demo")
    handler = functools.partial(Quiet, directory=str(PAGE))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or shutil.which("google-chrome") or ""
    for flag in ("--headless=new", "--no-sandbox", "--hide-scrollbars", "--window-size={},{}".format(*WINDOW)):
        options.add_argument(flag)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        driver.get(f"http://127.0.0.1:{server.server_port}/index.html")
        film = Film(driver)
        for _ in range(200):
            if driver.execute_script("return document.body.dataset.state === 'ready'"):
                break
            time.sleep(0.05)
        record(film)
    finally:
        driver.quit()
        server.shutdown()
    film.save(TARGET)
    print(f"{TARGET}: {TARGET.stat().st_size / 1e6:.2f} MB, {len(film.frames)} frames")


class Quiet(http.server.SimpleHTTPRequestHandler):
    """A server that writes no log."""

    def log_message(self, *values: object) -> None:
        """Write nothing."""


if __name__ == "__main__":
    main()
