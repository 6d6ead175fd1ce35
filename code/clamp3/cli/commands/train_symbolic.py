"""Train CLaMP 3 on texts and symbolic music (.abc and .mtf); settings: config.py.

On N GPUs of one machine; plain `python` trains on one, or on the CPU:
    python -m torch.distributed.launch --nproc_per_node=N --use_env train_clamp3_symbolic.py
    torchrun --nproc_per_node N train_clamp3_symbolic.py
    python train_clamp3_symbolic.py
On two machines, run on each (they share the folder of the weights):
    torchrun --nnodes 2 --nproc_per_node 8 --rdzv_backend c10d --rdzv_endpoint HOST:29500 train_clamp3_symbolic.py
Check all data and train nothing; draw the curves of a run so far:
    python train_clamp3_symbolic.py --check
    python train_clamp3_symbolic.py --plot curves.png
CLAMP3_TRAIN_JSONL names the data, an object a line: {"id", "filepaths": [...], "analysis", "title", ...}. The best
weights go to CLAMP3_WEIGHTS_PATH, and the full state to ..._last.pth: a run that is killed is taken up by the same
command.
"""

from clamp3.cli.settings import load_knobs
from clamp3.cli.training import train_clamp3, training_parser


def main() -> int:
    return train_clamp3("symbolic", load_knobs(), training_parser(__doc__).parse_args())
