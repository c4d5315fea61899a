"""Your own pictures: from addresses, folders and cameras."""

import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
from PIL import Image

from ltpa.data.sources import fetch_picture, read_named, read_pictures

from .pictures import BLUE, RED, colors, encoded, plain

PNG = encoded(plain(RED))


class Server(BaseHTTPRequestHandler):
    def do_GET(self):
        self.protocol_version = "HTTP/1.0"
        status, headers, body = {
            "/red.png": (200, {"Content-Length": len(PNG)}, PNG),
            "/moved": (302, {"Location": "/red.png"}, b""),
            "/page": (200, {}, b"<!DOCTYPE html><html></html>"),
            "/cut": (200, {"Content-Length": len(PNG) + 9}, PNG),
            "/big": (200, {"Content-Length": 10**12}, b""),
            "/endless": (200, {}, PNG * 2000),
            "/slow": (200, {}, b"\x89"),
        }.get(self.path, (404, {}, b""))
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(body)
        for _ in range(20 if self.path == "/slow" else 0):
            time.sleep(0.1)
            self.wfile.write(b"x")

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def address():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.mark.parametrize("path", ["/red.png", "/moved"])
def test_a_picture_at_an_address(path, address):
    (picture,) = read_pictures(address + path)
    assert colors(picture) == {RED}


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/page", "a web page"),
        ("/nothing", "404"),
        ("/cut", "only"),
        ("/big", "more than 0.1 MB"),
        ("/endless", "more than 0.1 MB"),
        ("/slow", "within 0.5 s"),
    ],
)
def test_what_cannot_be_had_from_an_address(path, words, address):
    start = time.monotonic()
    with pytest.raises(ValueError, match=words) as caught:
        fetch_picture(address + path, seconds=0.5, max_bytes=100_000)
    assert time.monotonic() - start < 1.5
    assert address + path in str(caught.value)


def test_no_server_there():
    with pytest.raises(ValueError, match=r"http://127\.0\.0\.1:9/x\.png"):
        read_pictures("http://127.0.0.1:9/x.png")


def test_a_folder_of_photos(tmp_path):
    (tmp_path / "b.jpe").write_bytes(encoded(plain(BLUE)))
    (tmp_path / "a").write_bytes(PNG)  # known by its content
    (tmp_path / "notes.md").write_text("no picture")
    (tmp_path / "more").mkdir()
    assert [colors(picture) for picture in read_pictures(tmp_path)] == [{RED}, {BLUE}]
    assert len(read_pictures([str(tmp_path), PNG])) == 3
    for number in range(40):
        (tmp_path / f"c{number}.png").write_bytes(PNG)
    with pytest.warns(UserWarning, match="42 pictures"):
        assert len(read_pictures(tmp_path)) == 32
    with pytest.raises(ValueError, match="more"):
        read_pictures(tmp_path / "more")


def test_broken_pictures_of_a_folder_are_left_out(tmp_path):
    for name, content in (("a.png", PNG), ("b.png", b"broken"), ("c.png", PNG)):
        (tmp_path / name).write_bytes(content)
    with pytest.warns(UserWarning, match=r"1 of 3 pictures are left out: .*b\.png: not an image"):
        assert [name for name, _ in read_named(tmp_path)] == ["a.png", "c.png"]
    with pytest.raises(ValueError, match=r"b\.png"):
        read_pictures([tmp_path / "a.png", tmp_path / "b.png"])
    for name in ("a.png", "c.png"):
        (tmp_path / name).unlink()
    with pytest.raises(ValueError, match="no pictures that can be read"):
        read_pictures(tmp_path)


@pytest.mark.parametrize(("kind", "mode"), [("JPEG", "RGB"), ("JPEG", "L"), ("PNG", "P"), ("WEBP", "RGB")])
def test_a_large_photo_is_reduced(kind, mode):
    ramp = np.linspace(0, 255, 3600).astype(np.uint8)[None].repeat(2400, 0)
    image = Image.fromarray(ramp).convert(mode)
    exif = Image.Exif()
    exif[0x0112] = 6
    (picture,) = read_pictures(
        encoded(image, kind, exif=exif, **({"quality": 90, "method": 0} if kind == "WEBP" else {}))
    )
    assert 1024 <= picture.shape[2] < picture.shape[1] <= 1800  # turned upright
    found = picture[0, :, 500].float().numpy()
    expected = np.linspace(0, 255, len(found))
    assert np.abs(found - expected).max() < 4
