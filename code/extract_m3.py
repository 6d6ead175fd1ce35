"""Extract M3 features from sheet music (.abc) and MIDI (.mtf): hidden states in order, one of each patch.

A patch is a bar or a run of MIDI messages; the states of a file are (1, length, 768):
    accelerate launch extract_m3.py INPUT_DIR OUTPUT_DIR
On two CPU processes, or four GPUs in bf16:
    torchrun --nproc_per_node 2 extract_m3.py INPUT_DIR OUTPUT_DIR --device cpu
    accelerate launch --multi_gpu --num_processes 4 --mixed_precision bf16 extract_m3.py INPUT_DIR OUTPUT_DIR
--help tells the rest; the code is in clamp3/cli/commands/extract_m3.py.
"""

from clamp3.cli.console import run_command

if __name__ == "__main__":
    run_command("extract-m3")
