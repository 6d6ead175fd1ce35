"""A page to search with, and a REST server: type a text or drop a file, see and hear what is found.

On a few old tunes, with the small model that comes with the code:
    python clamp3_web.py
On a folder of files of any kinds that clamp3_embd.py takes, or on an index that clamp3_index.py has built:
    python clamp3_web.py FOLDER
    python clamp3_web.py INDEX --port 8080 --variant saas
It answers requests from this machine alone. For others, give it an address and a token, which they must send:
    CLAMP3_WEB_TOKEN=… python clamp3_web.py INDEX --host 0.0.0.0
The page is at http://127.0.0.1:8000/, what programs may ask at /docs. See docs/web.md.
"""

import os
import re
from argparse import ArgumentParser, Namespace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clamp3.cli.options import add_embedding_options, feature_cache, positive, script_parser
from clamp3.cli.output import print_line
from clamp3.errors import UserError

if TYPE_CHECKING:
    from clamp3.web.collection import Collection

TOKEN_VARIABLE = "CLAMP3_WEB_TOKEN"
UPLOAD_SECONDS = 60  # for the conversion of an upload


def main() -> int:
    """Serve until the process is told to end."""
    parser = collection_parser(__doc__ or "")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at; default: %(default)s")
    parser.add_argument("--port", type=int, default=8000, help="default: %(default)s; 0 takes a free one")
    parser.add_argument(
        "--token", help=f"what requests must send, needed unless HOST is loopback; better in {TOKEN_VARIABLE}"
    )
    parser.add_argument(
        "--upload_limit", type=positive, metavar="MB", default=50, help="of a request; default: %(default)s"
    )
    parser.add_argument(
        "--captioner",
        metavar="NAME_OR_FOLDER",
        help="what puts uploaded pictures into words: an image-to-text model of transformers; default: none",
    )
    args = parser.parse_args()

    check_installed("fastapi", "multipart", "uvicorn")
    from clamp3.web.protection import Limits, is_loopback
    from clamp3.web.server import create_app

    token = args.token or os.environ.get(TOKEN_VARIABLE) or None
    if token is None and not is_loopback(args.host):
        raise UserError(
            f"at {args.host} others could reach the server: give it a --token, or set {TOKEN_VARIABLE}, "
            "and put a proxy that speaks HTTPS before it"
        )
    if token and not re.fullmatch(r"[A-Za-z0-9._~+/=-]+", token):
        raise UserError("a token is made of the letters A to Z, digits and . _ ~ + / = -")
    limits = Limits(upload_megabytes=args.upload_limit, work_seconds=args.time_limit)
    return serve(create_app(open_collection(args), token, limits, args.captioner), args.host, args.port, token)


def collection_parser(description: str) -> ArgumentParser:
    """A parser of the options that say what is searched, and by which model."""
    parser = script_parser(description)
    parser.add_argument("path", type=Path, nargs="?", help="an index, or a folder; default: a few old tunes")
    add_embedding_options(parser)
    parser.add_argument(
        "--no_passages", action="store_true", help="of a folder: do not look for bars and seconds in it"
    )
    parser.set_defaults(time_limit=UPLOAD_SECONDS)
    return parser


def open_collection(args: Namespace, tell: bool = True) -> "Collection":
    """What the options of `collection_parser` ask for; without a path, the demo's by the small model.

    With `tell`, standard output says by what weights.
    """
    from clamp3.cli.embedders import embedder_loader
    from clamp3.web.collection import DEMO, Collection

    if (args.path, args.variant, args.model_weights, args.epoch) == (None, None, None, None):
        args.variant = "tiny"
    path = args.path or DEMO
    load_embedder = embedder_loader(args, tell=tell, asked=[path])
    return Collection(path, load_embedder, feature_cache(args), passages=not args.no_passages)


def check_installed(*packages: str) -> None:
    """Raise UserError where one of the extra's is missing."""
    for package in packages:
        if find_spec(package) is None:
            raise UserError(f"this command needs {package}: pip install 'clamp3[web]'")


def serve(app: Any, host: str, port: int, token: str | None) -> int:
    """Say where the server is, and run it until it is told to end."""
    import asyncio
    import socket

    import uvicorn

    from clamp3.web.protection import addresses

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Named as TCP, as asyncio lets only such sockets send at once; others wait 40 ms for the client's acknowledgement.
    with socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host.strip("[]"), port))
        except (OSError, OverflowError) as error:
            raise UserError(f"port {port} of {host} cannot be used: {error}") from None
        listener.listen()  # who asks once the address is told is answered
        for address in addresses(host, listener.getsockname()[1]):
            print_line(f"the page is at {address}{'?token=…' if token else ''} (Ctrl-C ends it)")
        config = uvicorn.Config(app, log_level="warning", server_header=False, timeout_graceful_shutdown=2)
        asyncio.run(uvicorn.Server(config).serve(sockets=[listener]))
    return 0
