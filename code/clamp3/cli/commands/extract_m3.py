"""Extract M3 features from sheet music (.abc) and MIDI (.mtf): hidden states in order, one of each patch.

A patch is a bar or a run of MIDI messages; the states of a file are (1, length, 768):
    accelerate launch extract_m3.py INPUT_DIR OUTPUT_DIR
On two CPU processes, or four GPUs in bf16:
    torchrun --nproc_per_node 2 extract_m3.py INPUT_DIR OUTPUT_DIR --device cpu
    accelerate launch --multi_gpu --num_processes 4 --mixed_precision bf16 extract_m3.py INPUT_DIR OUTPUT_DIR
ABC that is not interleaved is interleaved first; with --as_is it is taken as it stands.
Plain `python` works too. Each input becomes OUTPUT_DIR/same/path.npy; outputs that are there already are skipped, so
an interrupted run is taken up by the same command. Inputs that have no feature are listed with the reason, also in
OUTPUT_DIR/failures.jsonl, and the exit code is 1. Weights and sizes are set in config.py; weights that are missing
are downloaded.
"""

from clamp3.cli.options import extraction_parser
from clamp3.cli.output import end_of_run


def main() -> int:
    args = extraction_parser(__doc__, ("tiny",)).parse_args()

    # Only now, so that --help and mistyped options answer at once.
    from clamp3.cli.embedders import embedder_loader
    from clamp3.distributed import start
    from clamp3.features.extraction import extract
    from clamp3.formats.registry import extensions, model_inputs
    from clamp3.models.m3 import M3Model

    state = start(args.device, args.threads)
    report = extract(
        embedder_loader(args, state.device, M3Model, tell=state.is_main_process),
        args.input_dir,
        args.output_dir,
        extensions=extensions(model_inputs("symbolic")),
        pooled=False,
        state=state,
        progress=True,
        shard=args.shard,
        to=args.to,
    )
    return end_of_run(report, state)
