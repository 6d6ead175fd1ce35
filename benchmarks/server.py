"""Load on the web server: clients that ask without a pause, against a process for each query.

    python benchmarks/server.py                 64 clients for a minute, on the demo's collection and small model
    python benchmarks/server.py INDEX --weights FILE --clients 1 --seconds 30
Each client sends its next text when the last one is answered; no text is asked twice. Prints requests a second, the
median and the 99th percentile of their times, errors, and how many texts shared a batch; then the time of
clamp3_search.py for one query on the same collection, start of Python and model included.
"""

import argparse
import asyncio
import re
import subprocess
import sys
import time
from pathlib import Path

import httpx
import numpy as np

from clamp3.web.collection import DEMO

CODE = Path(__file__).parents[1] / "code"
WORDS = "lively slow sad merry old Irish Scottish Chinese reel jig hornpipe air waltz march in major minor".split()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path, nargs="?", default=DEMO)
    parser.add_argument("--variant", default="tiny")
    parser.add_argument("--weights", type=Path, help="in place of a variant")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=60)
    args = parser.parse_args()
    options = [str(args.path), *(["--weights", str(args.weights)] if args.weights else ["--variant", args.variant])]
    command = [sys.executable, "-u", str(CODE / "clamp3_web.py"), *options, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout
            found = re.search(r"http://\S+/", server.stdout.readline())
            assert found, "the server did not start"
            times, errors, shared = asyncio.run(measure(found[0], args.clients, args.seconds))
        finally:
            server.terminate()
    median, slow = np.percentile(times, [50, 99]) * 1000
    print(f"{args.clients} clients, {args.seconds:.0f} s: {len(times)} requests, {len(errors)} errors {errors[:3]}")
    print(f"{len(times) / args.seconds:.0f} requests/s, p50 {median:.0f} ms, p99 {slow:.0f} ms, {shared:.1f} a batch")
    single = min(alone(options) for _ in range(3))
    print(f"a process for each query: {single:.2f} s, {1 / single:.2f} queries/s; the server answers", end=" ")
    print(f"{len(times) / args.seconds * single:.0f} times as many")
    return 1 if errors else 0


async def measure(address: str, clients: int, seconds: float) -> tuple[np.ndarray, list[str], float]:
    """The times of all answers, what went wrong, and the mean size of a batch."""
    limits = httpx.Limits(max_connections=clients)
    async with httpx.AsyncClient(base_url=address, limits=limits, timeout=60) as client:
        while (now := (await client.get("/healthz")).json())["state"] != "ready":
            assert now["state"] != "failed", now["reason"]
            await asyncio.sleep(0.2)
        times: list[float] = []
        errors: list[str] = []
        end = time.perf_counter() + seconds

        async def ask(number: int) -> None:
            rng = np.random.default_rng(number)
            count = 0
            while (begin := time.perf_counter()) < end:
                count += 1
                text = f"{' '.join(rng.choice(WORDS, 5))} {number} {count}"
                answer = await client.get("/search", params={"q": text})
                times.append(time.perf_counter() - begin)
                if answer.status_code != 200 or len(answer.json()) != 10:
                    errors.append(answer.text[:200])

        results = await asyncio.gather(*map(ask, range(clients)), return_exceptions=True)
        errors += [repr(result) for result in results if result is not None]
        after = (await client.get("/healthz")).json()
    batches = after["batches"] - now["batches"]
    return np.array(times), errors, (after["texts"] - now["texts"]) / max(batches, 1)


def alone(options: list[str]) -> float:
    """Seconds of the command for one query; the features of the collection are in the cache."""
    begin = time.perf_counter()
    command = [sys.executable, str(CODE / "clamp3_search.py"), "a lively Irish reel", *options]
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - begin


if __name__ == "__main__":
    sys.exit(main())
