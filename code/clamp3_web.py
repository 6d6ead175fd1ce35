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

from clamp3.cli.console import run_command

if __name__ == "__main__":
    run_command("web")
