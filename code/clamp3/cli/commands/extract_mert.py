"""Extract MERT features from audio files (.wav .mp3 .flac .ogg .opus .aiff …): what CLaMP 3 reads of sound.

The mean over MERT's layers, (1, T, 768), one vector for 5 s, which is what extract_clamp3.py takes:
    python preprocessing/audio/extract_mert.py --input_path IN --output_path OUT --model_path m-a-p/MERT-v1-95M \\
        --mean_features
All 13 layers (13, T, 768) instead:
    python preprocessing/audio/extract_mert.py --input_path IN --output_path OUT --model_path m-a-p/MERT-v1-95M
On four GPUs, in bf16:
    accelerate launch --multi_gpu --num_processes 4 --mixed_precision bf16 preprocessing/audio/extract_mert.py \\
        --input_path IN --output_path OUT --model_path m-a-p/MERT-v1-95M --mean_features
The sound is made mono, 24 kHz, of zero mean and unit variance, and cut into windows of 5 s; a last window under 1 s is
left out. Each input becomes OUT/same/path.npy; outputs that are there already are skipped, so an interrupted run is
taken up by the same command. Inputs that cannot be read are listed with the reason, also in OUT/failures.jsonl, and
the exit code is 1; damaged ones that can be read in part, and those under 1 s, are read and listed in
OUT/warnings.jsonl. MERT is downloaded once. Everything that FFmpeg decodes is read, the sound of videos too.
"""

from pathlib import Path

from clamp3.cli.options import add_computing_options, add_shard_option, positive, script_parser
from clamp3.cli.output import end_of_run, print_line


def main() -> int:
    parser = script_parser(__doc__)
    parser.add_argument("--input_path", type=Path, required=True, help="folder of audio, searched recursively")
    parser.add_argument("--output_path", type=Path, required=True, help="folder for the features, which mirrors IN")
    parser.add_argument("--model_path", help="a folder, or a name on the hub; default: m-a-p/MERT-v1-95M")
    parser.add_argument("--mean_features", action="store_true", help="the layers' mean: what extract_clamp3.py needs")
    parser.add_argument("--batch_seconds", type=positive, help="sound in a batch; lower it if memory runs out")
    add_computing_options(parser)
    add_shard_option(parser)
    args = parser.parse_args()

    # Only now, so that --help and mistyped options answer at once.
    from clamp3.audio.mert import RELEASED, Mert
    from clamp3.distributed import start
    from clamp3.features.extraction import extract_mert

    state = start(args.device, args.threads)

    def load() -> Mert:
        name = args.model_path or RELEASED
        mert = Mert.from_pretrained(name, state.device, args.precision, args.batch_seconds)
        if state.is_main_process:
            print_line(f"weights: {name} ({mert.identity})")
        return mert

    report = extract_mert(
        load,
        args.input_path,
        args.output_path,
        args.mean_features,
        state,
        progress=True,
        shard=args.shard,
    )
    return end_of_run(report, state)
