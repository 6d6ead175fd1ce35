"""Search and embeddings for assistants, by the Model Context Protocol over standard input and output.

An assistant's program starts it, with a folder, an index, or on its own with a few old tunes:
    python clamp3_mcp.py
    python clamp3_mcp.py INDEX --variant saas
Its tools are search, by a text or a file of this machine; embed, of texts and files; and explain. See docs/web.md.
"""

from clamp3.cli.commands.web import check_installed, collection_parser, open_collection


def main() -> int:
    """Serve until standard input ends."""
    args = collection_parser(__doc__ or "").parse_args()
    check_installed("mcp")
    from clamp3.web.tools import create_tools

    create_tools(open_collection(args, tell=False)).run()  # standard output is the protocol's
    return 0
