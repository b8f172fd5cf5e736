"""Serves the console until it is told to end: on this machine alone, unless Identity-Aware Proxy stands before it."""

import asyncio
import webbrowser
from collections.abc import Callable, Mapping
from typing import Final

import uvicorn

from publisher.listening import listen
from worker.config import Settings
from worker.console.app import build
from worker.console.context import Context
from worker.console.iap import Proxy
from worker.errors import ConfigError

PORT: Final = 8090
"""The port on this machine; Cloud Run's is PORT."""
_LOOPBACK: Final = "127.0.0.1"
_CLOSE_SECONDS: Final = 2

ENVIRONMENT: Final[Mapping[str, str]] = {
    "IAP_AUDIENCE": "the audience of Identity-Aware Proxy's tokens; with it the console listens at HOST and PORT [none]",
    "CONSOLE_HOSTS": "with IAP_AUDIENCE: the names that the console is opened by, with commas between them [none]",
}
"""The variables that only the console reads."""


async def serve(
    settings: Settings,
    environ: Mapping[str, str],
    *,
    url: str,
    port: int | None = None,
    browser: bool = True,
    say: Callable[[str], None] = print,
) -> None:
    """Serve until SIGINT or SIGTERM.

    Args:
        settings: The worker's.
        environ: The environment variables.
        url: The service's address.
        port: Where to listen; 0 picks a free one.
        browser: Whether the page is opened in a browser.
        say: Told the address.

    Raises:
        ConfigError: It cannot listen there, or IAP_AUDIENCE has no CONSOLE_HOSTS.
    """
    audience = environ.get("IAP_AUDIENCE", "").strip()
    hosts = [each.strip().lower() for each in environ.get("CONSOLE_HOSTS", "").split(",") if each.strip()]
    if audience and not hosts:
        raise ConfigError(
            "IAP_AUDIENCE is set and CONSOLE_HOSTS is not: name the hosts that the console is opened by, such as "
            "console-123456789.europe-west1.run.app"
        )
    try:
        if audience:
            listener = listen(settings.host, settings.port if port is None else port)
        else:
            listener = listen(_LOOPBACK, PORT if port is None else port)
    except ValueError as error:
        raise ConfigError(str(error).replace("PORT=", "--port ")) from None
    bound = listener.getsockname()[1]
    if not audience:
        hosts = [f"{name}:{bound}" for name in (_LOOPBACK, "localhost")]
    context = Context(settings, environ, url=url, hosts=hosts)
    proxy = Proxy(audience) if audience else None
    server = uvicorn.Server(
        uvicorn.Config(
            build(context, who=None if proxy is None else proxy.who),
            access_log=False,  # nothing of a user in a log: an address may hold what is looked for
            ws="none",
            proxy_headers=False,
            server_header=False,
            log_config=None,
            timeout_graceful_shutdown=_CLOSE_SECONDS,
        )
    )
    address = f"http://{hosts[0]}/" if not audience else f"https://{hosts[0]}/"
    say(f"the console of {context.store or url} is at {address}")
    task = asyncio.create_task(server.serve(sockets=[listener]), name="console")
    if browser and not audience:
        await asyncio.to_thread(webbrowser.open, address)
    await task
