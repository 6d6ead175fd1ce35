"""The main job on real music: folk tunes, chorales and descriptions in, features and nearest neighbours out.

    make demo
    python examples/demo.py --output DIR --tunes 40 --scores 5
It runs the documented commands with the small model, on tunes that its training has not seen, and shows what they
write and what can be found with it; in the end there is a page, index.html, that engraves and plays. It takes just
over a minute on two CPU cores, without a network. A folder that an earlier run made is emptied first.
"""

import argparse
import csv
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import soundfile

from clamp3.search.metrics import metrics
from clamp3.search.ranking import normalized, ranks_of_pairs
from corpus import COLLECTIONS, Tune, folk_tunes, scores, write
from descriptions import full_description
from notes import read_melody, to_sound

ROOT = Path(__file__).resolve().parents[1]
CODE = ROOT / "code"
TINY = CODE / "clamp3" / "tiny"
MARK = ".made_by_demo"  # a folder without it is not ours to empty
TINY_MODEL = ("--variant", "tiny")
NEIGHBOURS = 3
QUERIES = ("Irish reel", "slip jig", "Chinese folk song in 2/4", "deutsches Volkslied", "gigue irlandaise", "中国民歌")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("demo"), help="folder for all of it (default: demo)")
    parser.add_argument("--tunes", type=int, default=320, help="folk tunes (default: 320)")
    parser.add_argument("--scores", type=int, default=60, help="scores, as MIDI (default: 60)")
    args = parser.parse_args()
    if args.tunes < len(COLLECTIONS) or args.scores < 1:
        parser.error(f"it takes {len(COLLECTIONS)} tunes and a score at least")
    sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")  # in one order with the commands' output
    start = time.perf_counter()
    output = clean(args.output)
    tunes = chosen(args.tunes)

    heading("1. Real music as model inputs")
    write(output / "inputs", tunes, scores(args.scores))
    write_texts(output / "inputs", tunes)
    show_inputs(output / "inputs", tunes[0])

    heading("2. A small model")
    sizes = {path.name: path.stat().st_size / 1e6 for path in sorted(TINY.glob("*.safetensors"))}
    print(", ".join(f"{name} ({size:.1f} MB)" for name, size in sizes.items()), f"in {shown(TINY)}")
    print("It was trained on folk tunes, but on none of these. Its README has its figures.")
    print("The released weights are used in the same way: leave --variant out, and the commands download them.")

    heading("3. The documented commands")
    print(f"$ export PATH={shown(Path(sys.executable).parent)}:$PATH")
    print("(The note of default values is accelerate's own: `accelerate config` ends it.)")
    inputs, mtf = output / "inputs", output / "inputs" / "mtf"
    launch("extract_clamp3.py", inputs, output / "features", "--get_global")
    launch("extract_clamp3.py", mtf, output / "hidden")
    launch("extract_m3.py", mtf, output / "m3")

    heading("4. What they wrote")
    for folder in ("features/abc", "features/mtf", "features/txt", "features/queries", "hidden", "m3"):
        show_arrays(output / folder)

    heading("5. Found by text")
    music = load(output / "features" / "abc", [tune.name for tune in tunes])
    show_found(output / "features", music, tunes)

    heading("6. Nearest neighbours")
    show_neighbours(music, tunes)

    heading("7. Answers from raw files")
    index, query, known = output / "index", QUERIES[-2], inputs / "tunes.csv"
    write_table(known, tunes)
    build = "build", shown(index), shown(inputs / "abc"), *TINY_MODEL, "--metadata", shown(known)
    run("python", shown(CODE / "clamp3_index.py"), *build)
    run("python", shown(CODE / "clamp3_index.py"), "search", shown(index), query, "--top_k", "3", *TINY_MODEL)

    heading("8. See and hear it")
    recording = output / "a recording.flac"
    soundfile.write(recording, to_sound(read_melody(tunes[0].abc), 20, 24_000, "fiddle"), 24_000)
    print(f"{shown(recording)}: 20 s of {in_a_line(tunes[0])}, synthesized")
    queries = "--queries", *QUERIES, shown(recording)
    drawn = "--colour", "collection", "--output", shown(output / "index")
    run("python", shown(CODE / "clamp3_map.py"), shown(index), *queries, *drawn, *TINY_MODEL)
    print(f"Open {shown(output / 'index.html')}: the tunes as a map, engraved and playable, and what queries find.")

    heading(f"Done in {time.perf_counter() - start:.0f} s. What to do next")
    print(f"- Look around in {shown(output)}: inputs, features, hidden (CLaMP 3, per bar), m3 (M3, per bar).")
    print("- Put .abc, .mtf, .txt or .npy files of your own into a folder, and run a command of step 3 on it.")
    print("- Search, score, evaluate and classify folders of your own: the README has the commands.")
    print("- Take the released weights: without --variant the same commands download and use them.")
    return 0


def heading(title: str) -> None:
    print(f"\n{title}\n{'-' * len(title)}")


def shown(path: Path) -> str:
    """`path` as one would type it here."""
    absolute, here = path.absolute(), Path.cwd()
    return str(absolute.relative_to(here)) if absolute.is_relative_to(here) else str(absolute)


def clean(folder: Path) -> Path:
    """`folder`, empty but for its mark. Exits where it holds files that are not the demo's."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir()) and not (folder / MARK).exists()):
        sys.exit(f"error: {folder} is there and was not made by the demo: name another folder with --output")
    if folder.exists():
        print(f"emptying {shown(folder)}, which an earlier run made")
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    (folder / MARK).touch()
    return folder


def chosen(count: int) -> list[Tune]:
    """`count` of the held-out folk tunes, from each collection alike and evenly across it."""
    tunes: list[Tune] = []
    held_out = set(TINY.joinpath("held_out.txt").read_text(encoding="utf-8").split())
    everything = [tune for tune in folk_tunes() if tune.name in held_out]
    for left, collection in zip(range(len(COLLECTIONS), 0, -1), COLLECTIONS, strict=True):
        group = [tune for tune in everything if tune.collection == collection.title]
        share = min((count - len(tunes)) // left, len(group))
        tunes += [group[index * len(group) // share] for index in range(share)]
    return tunes


def show_inputs(folder: Path, tune: Tune) -> None:
    """How many files of each kind, and one as an example."""
    contents = {
        "abc": "folk tunes, interleaved ABC",
        "mtf": "scores by Bach, MIDI as text",
        "txt": "descriptions",
        "queries": "queries",
    }
    for kind, content in contents.items():
        sizes = [path.stat().st_size for path in folder.joinpath(kind).iterdir()]
        print(f"{len(sizes):5} {kind:7}  {sum(sizes) / 1000:6.0f} kB  {content}, in {shown(folder / kind)}")
    print(f"\nFor example {tune.name}.abc:")
    lines = tune.abc.splitlines()
    print("".join(f"    {line}\n" for line in (*lines[:9], "…")), end="")
    print(f"and {tune.name}.txt:")
    print(f"    {full_description(tune)}")


def write_texts(folder: Path, tunes: list[Tune]) -> None:
    """In `folder`, the tunes' descriptions as the small model knows them, and the queries."""
    for tune in tunes:
        folder.joinpath("txt", f"{tune.name}.txt").write_text(full_description(tune), encoding="utf-8")
    folder.joinpath("queries").mkdir()
    for number, query in enumerate(QUERIES):
        folder.joinpath("queries", f"{number}.txt").write_text(query, encoding="utf-8")


def write_table(path: Path, tunes: list[Tune]) -> None:
    """What is known of the tunes, for the index."""
    with open(path, "w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(("file", "title", "collection", "metre", "key"))
        table.writerows((f"{tune.name}.abc", tune.title, tune.collection, tune.metre, tune.key) for tune in tunes)


def launch(script: str, inputs: Path, outputs: Path, *options: str) -> None:
    """Run an extraction command, and say how fast it was."""
    seconds = run("accelerate", "launch", shown(CODE / script), *TINY_MODEL, shown(inputs), shown(outputs), *options)
    count = sum(1 for _ in outputs.rglob("*.npy"))
    print(f"{count / seconds:.1f} files/s with everything: {count} files in {seconds:.1f} s, start of Python included")


def run(*command: str) -> float:
    """Run a command as a user would, and return the seconds that it took. Exits where it fails."""
    print(f"\n$ {shlex.join(command)}")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    start = time.perf_counter()
    code = subprocess.run(command, env={**os.environ, "PATH": path}).returncode
    if code != 0:
        sys.exit(f"error: the command ended with exit code {code}")
    return time.perf_counter() - start


def show_arrays(folder: Path) -> None:
    """What the arrays in `folder` are. Exits where one holds numbers that are none."""
    arrays = [np.load(path) for path in sorted(folder.glob("*.npy"))]
    if not arrays or not all(np.isfinite(array).all() for array in arrays):
        sys.exit(f"error: {folder} holds no features, or features that are not finite")
    shapes = sorted({array.shape for array in arrays})
    dtypes = ", ".join(sorted({str(array.dtype) for array in arrays}))
    extent = f"{shapes[0]}" if len(shapes) == 1 else f"{shapes[0]} to {shapes[-1]}"
    print(f"{len(arrays):5} .npy  {dtypes}  {extent:31} in {shown(folder)}")


def load(folder: Path, names: list[str]) -> np.ndarray:
    """Global features (names, hidden), of length one."""
    return normalized(np.concatenate([np.load(folder / f"{name}.npy") for name in names]))


def show_found(folder: Path, music: np.ndarray, tunes: list[Tune]) -> None:
    """The tunes closest to each query, and how often a full description finds its own tune."""
    queries = load(folder / "queries", [str(number) for number in range(len(QUERIES))])
    print("by the cosine of the .txt and the .abc features")
    for query, cosines in zip(QUERIES, queries @ music.T, strict=True):
        print(f"\n         {query}")
        for index in np.argsort(-cosines)[:NEIGHBOURS]:
            print(f"  {cosines[index]:.3f}  {in_a_line(tunes[index])}")
    ranks = ranks_of_pairs(load(folder / "txt", [tune.name for tune in tunes]), music)
    chance = metrics(np.arange(1, len(tunes) + 1))
    print(f"\nA full description finds its tune among the {len(tunes)}:")
    print(", ".join(f"{name} {value:.2f} (chance {chance[name]:.2f})" for name, value in metrics(ranks).items()))


def show_neighbours(features: np.ndarray, tunes: list[Tune]) -> None:
    """For the first tune of each collection, those whose features (tunes, hidden) are most like its own."""
    cosines = features @ features.T
    np.fill_diagonal(cosines, -1)  # no tune is its own neighbour
    print("by the cosine of the .abc features")
    first = {tune.collection: index for index, tune in reversed(list(enumerate(tunes)))}
    for query in sorted(first.values()):
        print(f"\n         {in_a_line(tunes[query])}")
        for index in np.argsort(-cosines[query])[:NEIGHBOURS]:
            print(f"  {cosines[query, index]:.3f}  {in_a_line(tunes[index])}")

    metres = np.array([tune.metre for tune in tunes])
    shared = metres[cosines.argmax(axis=1)] == metres
    chance = (metres[:, None] == metres)[~np.eye(len(tunes), dtype=bool)]
    print(f"\n{shared.mean():.0%} of the tunes have the metre of their nearest neighbour; ", end="")
    print(f"of any two tunes, {chance.mean():.0%} have the same.")


def in_a_line(tune: Tune) -> str:
    return f"{tune.title:36.36}  {tune.rhythm:14.14}  {tune.key:12}  {tune.metre:4}  {tune.collection}".rstrip()


if __name__ == "__main__":
    sys.exit(main())
