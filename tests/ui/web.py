"""Call functions of the page as a browser does, with any values."""

from __future__ import annotations

import json
import secrets
from typing import Any

import httpx

from attnctl.ui import Running


def function_of(studio: Running, endpoint: str) -> int:
    """Number of the function behind a named endpoint."""
    (number,) = [n for n, fn in studio.page.fns.items() if fn.api_name == endpoint]
    return number


def call_function(web: httpx.Client, number: int, data: list[Any]) -> dict[str, Any]:
    """Call a function in a session of its own, and give the message that ends it."""
    session = secrets.token_hex(8)
    call = {"data": data, "fn_index": number, "session_hash": session}
    assert web.post("/gradio_api/queue/join", json=call).status_code == 200
    with web.stream("GET", "/gradio_api/queue/data", params={"session_hash": session}) as said:
        lines = [json.loads(x.removeprefix("data: ")) for x in said.iter_lines() if x]
    (ended,) = [line for line in lines if line["msg"] == "process_completed"]
    return ended
