"""What is refused before Gradio acts on it: huge requests, and addresses in place of files."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from attnctl.errors import SettingError

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


class TooLargeError(Exception):
    """A request holds more than is accepted."""


class BodyLimit:
    """Answers 413 to a request whose body is larger than ``most`` bytes."""

    def __init__(self, app: Any, most: int) -> None:
        self._app = app
        self._most = most

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        """Count the body as it comes in; the length that a client claims is not trusted alone."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        claimed = dict(scope["headers"]).get(b"content-length", b"0")
        if not claimed.isdigit() or int(claimed) > self._most:
            await _refuse(send)
            return
        came, has_answered = 0, False

        async def count() -> dict[str, Any]:
            nonlocal came
            message = await receive()
            came += len(message.get("body", b""))
            if came > self._most:
                raise TooLargeError
            return message

        async def answer(message: dict[str, Any]) -> None:
            nonlocal has_answered
            has_answered = True
            await send(message)

        try:
            await self._app(scope, count, answer)
        except TooLargeError:
            if not has_answered:
                await _refuse(send)


async def _refuse(send: Send) -> None:
    head = {"type": "http.response.start", "status": 413, "headers": [(b"connection", b"close")]}
    await send(head)
    await send({"type": "http.response.body", "body": b"the request is too large"})


def refuse_addresses(page: Any) -> None:
    """Keep every component of a page from fetching addresses that a visitor sends as files."""
    for block in page.blocks.values():
        move = getattr(block, "async_move_resource_to_block_cache", None)
        if move is not None:
            block.async_move_resource_to_block_cache = _only_files(move)


def _only_files(move: Any) -> Any:
    async def move_file(path: Any) -> Any:
        if "://" in str(path or ""):
            raise SettingError("addresses are not taken; send the file itself")
        return await move(path)

    return move_file
