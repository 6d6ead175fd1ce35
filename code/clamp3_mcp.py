"""Search and embeddings for assistants, by the Model Context Protocol over standard input and output.

An assistant's program starts it, with a folder, an index, or on its own with a few old tunes:
    python clamp3_mcp.py
    python clamp3_mcp.py INDEX --variant saas
Its tools are search, by a text or a file of this machine; embed, of texts and files; and explain. See docs/web.md.
"""

from clamp3.cli.console import run_command

if __name__ == "__main__":
    run_command("mcp")
