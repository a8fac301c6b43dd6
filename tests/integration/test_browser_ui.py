"""`hpcexp ui` in a real browser: in by the printed address, and what pages of other sites can do then."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from browser import PROGRAM, browsing
from helpers import TrainedRun
from served import showing

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="there is no chromium")

LOAD = """new Promise(done => {
  const image = new Image()
  image.onload = () => done("loaded")
  image.onerror = () => done("no")
  image.src = "ADDRESS"
})"""


@contextmanager
def elsewhere(body: str) -> Iterator[str]:
    """Address of another site's page, at a port of this machine."""

    class Page(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *args: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://localhost:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def test_the_printed_address_opens_the_interface_for_its_user_alone(trained: TrainedRun, tmp_path: Path) -> None:
    """Typed or by a link of another page; the token leaves the address, and other pages get nothing by the cookie."""
    with showing(trained.project) as interface:
        link = f'<a id="link" href="{interface.address}">open</a>'
        for way, body in {"typed": "", "linked": link}.items():
            with elsewhere(body) as address, browsing(tmp_path / way) as page:
                here = f"http://127.0.0.1:{interface.port}"
                assert 401 == page.goto(f"{here}/").status
                if body:
                    page.goto(address)
                    page.locator("#link").click()
                else:
                    page.goto(interface.address)
                page.get_by_text("test/acc").first.wait_for()  # a column of the view Results
                assert page.url.startswith(f"{here}/#/experiments/"), page.url
                assert interface.token not in page.url
                page.goto(f"{here}/#/experiments")
                page.get_by_role("link", name="digits_mlp").first.wait_for()
                assert interface.token not in page.evaluate("document.documentElement.outerHTML + document.cookie")
                page.reload()
                page.get_by_role("link", name="digits_mlp").first.wait_for()
                page.goto(address.replace("localhost", "127.0.0.1"))
                ask = f"fetch('{here}/api/2.0/mlflow/experiments/get?experiment_id=1', {{credentials: 'include'}})"
                assert "TypeError" in page.evaluate(f"{ask}.then(r => String(r.status), e => String(e))")
                load = LOAD.replace("ADDRESS", f"{here}/static-files/favicon.ico?not-in-the-cache")
                assert "no" == page.evaluate(load)
