"""Extract CLaMP 3 features from text (.txt), sheet music (.abc), MIDI (.mtf) and audio features (.npy).

Global features, one (1, 768) vector a file, for retrieval and classification:
    accelerate launch extract_clamp3.py INPUT_DIR OUTPUT_DIR --get_global
Hidden states (1, length, 768) instead:
    accelerate launch extract_clamp3.py INPUT_DIR OUTPUT_DIR
With the weights of one training epoch:
    accelerate launch extract_clamp3.py --epoch 10 INPUT_DIR OUTPUT_DIR --get_global
With the small model that comes with the code, which needs no download:
    accelerate launch extract_clamp3.py --variant tiny INPUT_DIR OUTPUT_DIR --get_global
On four GPUs, in bf16; on two machines, run the second form on each:
    accelerate launch --multi_gpu --num_processes 4 --mixed_precision bf16 extract_clamp3.py INPUT_DIR OUTPUT_DIR
    torchrun --nnodes 2 --nproc_per_node 4 --rdzv_endpoint HOST:PORT extract_clamp3.py INPUT_DIR OUTPUT_DIR
--help tells the rest; the code is in clamp3/cli/commands/extract.py.
"""

from clamp3.cli.console import run_command

if __name__ == "__main__":
    run_command("extract")
