"""Features of a folder as Parquet files, by Ray on any machines that see it: converted on CPUs, embedded by actors.

By eight actors with a GPU each; and by one on a CPU:
    python examples/ray_embed.py FOLDER OUT saas 8 1
    python examples/ray_embed.py FOLDER OUT tiny
The columns are path, feature (of length one; NaN where there is none), error and remarks. The same command goes on
after a run that was killed, and with files that have come since: it does what no whole file in OUT names. Files that
have failed are there, with the reason, and are not tried again. Remarks are those of reading and converting; what the
encoder says of an item is a warning in its actor's log. A conversion may take as long and as much memory as it
likes here; clamp3_embd.py has limits. One run at a time writes to OUT.
"""

import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray

from clamp3 import Embedder
from clamp3.features.reading import read_content
from clamp3.formats.registry import format_of
from clamp3.io.folders import Plan, walk
from clamp3.io.reports import describe_error


def done(out):
    """The paths in the files of `out`, without those that were being written when a run was killed."""
    for part in Path(out).glob("*.parquet"):
        try:
            yield from pq.read_table(part, columns=["path"])["path"].to_pylist()
        except pa.ArrowInvalid:
            part.unlink()


def convert(row):
    """Scores and MIDI as text, on any CPU; sound is decoded where it is embedded."""
    path, remarks = Path(row["path"]), []
    try:
        is_audio = format_of(path).modality == "audio"
        content = str(path) if is_audio else read_content(path, remarks.append)
        row |= {"method": "embed_files" if is_audio else f"embed_{format_of(path).modality}", "content": content}
    except Exception as error:  # whatever a damaged file leads a converter to, the others go on
        row |= {"method": "", "content": "", "error": describe_error(error)}
    return {"error": "", "remarks": "; ".join(remarks), **row}


class Embed:
    """In each actor, an Embedder."""

    def __init__(self, weights):
        self.embedder = Embedder.from_pretrained(weights)

    def __call__(self, batch):
        features = np.full((len(batch["path"]), self.embedder.sizes.clamp3_hidden_size), np.nan, np.float32)
        errors = batch["error"].astype(object)
        for method in set(batch["method"]) - {""}:
            places = np.flatnonzero(batch["method"] == method)
            contents = batch["content"][places].tolist()
            features[places], failed = getattr(self.embedder, method)(contents, normalize=True, errors="return")
            errors[[places[place] for place in failed]] = [describe_error(error) for error in failed.values()]
        return {"path": batch["path"], "feature": features, "error": errors, "remarks": batch["remarks"]}


def main(folder, out, weights="saas", actors="1", gpus="0", rows="500"):
    """Files in `out` have about `rows` each: as much as a killed run loses."""
    known = set(done(out))
    paths = [str(path.resolve()) for path in walk(Path(folder), Plan(), Path(out)) if format_of(path)]
    if todo := [{"path": path} for path in paths if path not in known]:
        data = ray.data.from_items(todo, override_num_blocks=-(-len(todo) // int(rows))).map(convert)
        pool = ray.data.ActorPoolStrategy(size=int(actors))
        options = {"fn_constructor_args": [weights], "batch_size": int(rows), "compute": pool, "num_gpus": float(gpus)}
        data.map_batches(Embed, **options).write_parquet(str(out))


if __name__ == "__main__":
    main(*sys.argv[1:])
