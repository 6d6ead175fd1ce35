"""The command clamp3_web.py: its options, and the server's start and end."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clamp3.cli.options import add_embedding_options, feature_cache, positive, script_parser
from clamp3.cli.output import print_line
from clamp3.errors import UserError

if TYPE_CHECKING:
    from clamp3.features.embedder import Embedder

TOKEN_VARIABLE = "CLAMP3_WEB_TOKEN"
UPLOAD_SECONDS = 60  # for the conversion of an upload


def main(description: str, embedder_loader: "Callable[..., Callable[[], Embedder]]") -> int:
    """Serve until the process is told to end. `embedder_loader` makes an embedder's loader of options and a device."""
    parser = script_parser(description)
    parser.add_argument("path", type=Path, nargs="?", help="an index, or a folder; default: a few old tunes")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at; default: %(default)s")
    parser.add_argument("--port", type=int, default=8000, help="default: %(default)s; 0 takes a free one")
    parser.add_argument(
        "--token", help=f"what requests must send, needed unless HOST is loopback; better in {TOKEN_VARIABLE}"
    )
    parser.add_argument(
        "--upload_limit", type=positive, metavar="MB", default=50, help="of a request; default: %(default)s"
    )
    add_embedding_options(parser)
    parser.set_defaults(time_limit=UPLOAD_SECONDS)
    args = parser.parse_args()

    check_installed()
    from clamp3.distributed import start_alone
    from clamp3.web.collection import Collection
    from clamp3.web.protection import Limits, is_loopback
    from clamp3.web.server import DEMO, create_app

    token = args.token or os.environ.get(TOKEN_VARIABLE) or None
    if token is None and not is_loopback(args.host):
        raise UserError(
            f"at {args.host} others could reach the server: give it a --token, or set {TOKEN_VARIABLE}, "
            "and put a proxy that speaks HTTPS before it"
        )
    if token and not re.fullmatch(r"[A-Za-z0-9._~+/=-]+", token):
        raise UserError("a token is made of the letters A to Z, digits and . _ ~ + / = -")
    if args.path is None and args.variant is None:
        args.variant = "tiny"
    load_embedder = embedder_loader(args, start_alone(args.device, args.threads))
    collection = Collection(args.path or DEMO, load_embedder, feature_cache(args))
    limits = Limits(upload_megabytes=args.upload_limit, work_seconds=args.time_limit)
    return serve(create_app(collection, token, limits), args.host, args.port, token)


def check_installed() -> None:
    """Raise UserError where the packages of the extra are missing."""
    try:
        import fastapi  # noqa: F401
        import multipart  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise UserError(f"the page needs {error.name}: pip install 'clamp3[web]'") from None


def serve(app: Any, host: str, port: int, token: str | None) -> int:
    """Say where the server is, and run it until it is told to end."""
    import asyncio
    import socket

    import uvicorn

    from clamp3.web.protection import addresses

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host.strip("[]"), port))
        except (OSError, OverflowError) as error:
            raise UserError(f"port {port} of {host} cannot be used: {error}") from None
        for address in addresses(host, listener.getsockname()[1]):
            print_line(f"the page is at {address}{'?token=…' if token else ''} (Ctrl-C ends it)")
        config = uvicorn.Config(app, log_level="warning", server_header=False, timeout_graceful_shutdown=2)
        asyncio.run(uvicorn.Server(config).serve(sockets=[listener]))
    return 0
