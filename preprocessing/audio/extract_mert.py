"""Extract MERT features from audio files (.wav .mp3 .flac .ogg .opus .aiff …): what CLaMP 3 reads of sound.

The mean over MERT's layers, (1, T, 768), one vector for 5 s, which is what extract_clamp3.py takes:
    python preprocessing/audio/extract_mert.py --input_path IN --output_path OUT --model_path m-a-p/MERT-v1-95M \\
        --mean_features
All 13 layers (13, T, 768) instead:
    python preprocessing/audio/extract_mert.py --input_path IN --output_path OUT --model_path m-a-p/MERT-v1-95M
On four GPUs, in bf16:
    accelerate launch --multi_gpu --num_processes 4 --mixed_precision bf16 preprocessing/audio/extract_mert.py \\
        --input_path IN --output_path OUT --model_path m-a-p/MERT-v1-95M --mean_features
--help tells the rest; the code is in code/clamp3/cli/commands/extract_mert.py.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "code"))
from clamp3.cli.console import run_command

if __name__ == "__main__":
    run_command("extract-mert")
