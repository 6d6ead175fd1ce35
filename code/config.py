"""Every knob of CLaMP 3, flat: edit the values, and all scripts follow.

The shipped variant is SAAS (best for audio). To switch to C2 (best for symbolic music), change saas to c2 on line 66.
For a one-off run, leave this file alone and set CLAMP3_CONFIG to a JSON object, or to the path of a file with one:
    CLAMP3_CONFIG='{"CLAMP3_WEIGHTS_PATH": "my_weights.pth"}' python extract_clamp3.py in/ out/"""

import os

from clamp3.cli.settings import logs_path, override

EVAL_SPLIT = 0.01  # share of the training set held out where no evaluation set is given
SEED = 42  # of initial weights, splits, orders and dropout
SAVE_STEPS = 1000  # a run that is killed goes on from the last multiple; 0: only from the last epoch
TRAIN_WORKERS = 2  # processes, for each GPU, that read and encode
WARMUP_STEPS = 1000  # in which the learning rate rises; at most a tenth of all steps
RATE_DECAY = "none"  # after them; or "cosine": to 0 at the end of the last epoch
TRAIN_PRECISION = "auto"  # bf16 or fp16 on GPUs and fp32 on CPUs; or one of these three
MAX_SKIPPED_SHARE = 0.01  # of the items that cannot be read and are skipped; a run with more of them stops
SYMBOLIC_AS_IS = False  # take ABC that is not interleaved as it stands; else it is interleaved first
COMPILE_LAYERS = False  # by torch.compile: slow to start, then up to 1.3x as fast on GPUs
RECOMPUTE_LAYERS = False  # gradient checkpointing: a third slower, with a third of the memory
COLLECTIVE_TIMEOUT = 10.0  # minutes that a process waits for the others in a step before the run ends with an error
WANDB_KEY = "<YOUR_WANDB_KEY>"  # as it stands, or empty: use the ambient login

# -------------------- M3: the symbolic music encoder --------------------
M3_TRAIN_FOLDERS = ["<YOUR_TRAINING_DATA_FOLDER>"]  # searched recursively for .abc and .mtf
M3_EVAL_FOLDERS = []  # empty: EVAL_SPLIT of the training files is held out
PATCH_SIZE = 64  # characters in a patch
PATCH_LENGTH = 512  # patches in a sequence
PATCH_NUM_LAYERS = 12  # layers of the patch encoder
TOKEN_NUM_LAYERS = 3  # layers of the character decoder
M3_HIDDEN_SIZE = 768
M3_NUM_EPOCH = 100
M3_LEARNING_RATE = 1e-4
M3_BATCH_SIZE = 16  # per GPU
M3_MASK_RATIO = 0.45  # share of a piece's patches whose characters are to be reconstructed
M3_DETERMINISTIC = True  # the same weights from the same run; what cannot be done so is an error
M3_WANDB_LOG = True
M3_LOAD_CKPT = True  # resume from M3_WEIGHTS_PATH if it is there

# -------------------- CLaMP 3: text, symbolic music and audio in one space --------------------
CLAMP3_TRAIN_JSONL = "<YOUR_TRAINING_JSONL_FILE>"
CLAMP3_EVAL_JSONL = ""  # empty: EVAL_SPLIT of the training items is held out
CLAMP3_HIDDEN_SIZE = 768  # of the shared space
TEXT_MODEL_NAME = "FacebookAI/xlm-roberta-base"  # a name on the Hugging Face hub, or a local folder
MAX_TEXT_LENGTH = 128  # tokens
AUDIO_HIDDEN_SIZE = 768
AUDIO_NUM_LAYERS = 12
MAX_AUDIO_LENGTH = 128  # frames of 5 s each: 640 s
CLAMP3_NUM_EPOCH = 100
CLAMP3_LEARNING_RATE = 1e-5
CLAMP3_BATCH_SIZE = 256  # per GPU
CLAMP3_MICRO_BATCH = 0  # at most so many items at once in memory, with the same result; 0: the whole batch
LOGIT_SCALE = 1.0
FREEZE_TEXT = False
TEXT_DROPOUT = True
CLAMP3_DETERMINISTIC = True  # as M3_DETERMINISTIC
CLAMP3_LOAD_M3 = True  # start the symbolic tower from M3_WEIGHTS_PATH if it is there
CLAMP3_WANDB_LOG = True
CLAMP3_LOAD_CKPT = True  # resume from CLAMP3_WEIGHTS_PATH if it is there
SAVE_EVERY = 5  # epochs

# -------------------- files --------------------
CLAMP3_WEIGHTS_PATH = CLAMP3_LOGS_PATH = M3_WEIGHTS_PATH = M3_LOGS_PATH = ""  # empty: named after the knobs
# The variant that an empty CLAMP3_WEIGHTS_PATH stands for.
_variant = "saas"

# -------------------- fine-tuning: docs/finetune.md --------------------
CLAMP3_INIT_WEIGHTS = ""  # where training starts: saas, c2, tiny, a file or a folder; it is only ever read
M3_INIT_WEIGHTS = ""  # likewise: m3, tiny, a file or a folder
LORA_RANK = 0  # train adapters of this rank beside the weights of CLaMP 3, which stay as they are; 0: the weights
LORA_TARGETS = ["query", "key", "value", "dense"]  # the linear layers that get an adapter, by name
LORA_MERGE = True  # save the weights with the adapters added; False: the adapters alone, as the folder ..._adapter
HARD_NEGATIVES = 0  # of a batch of each GPU, so many items are ones that the start takes for others of the batch
EARLY_STOPPING = 0  # end after so many epochs in which the evaluation loss has not fallen; 0: after the last one

override(globals(), os.environ.get("CLAMP3_CONFIG", ""))
CLAMP3_WEIGHTS_PATH = CLAMP3_WEIGHTS_PATH or (
    f"weights_clamp3_{_variant}"
    f"_h_size_{CLAMP3_HIDDEN_SIZE}_t_model_{TEXT_MODEL_NAME.replace('/', '_')}_t_length_{MAX_TEXT_LENGTH}"
    f"_a_size_{AUDIO_HIDDEN_SIZE}_a_layers_{AUDIO_NUM_LAYERS}_a_length_{MAX_AUDIO_LENGTH}"
    f"_s_size_{M3_HIDDEN_SIZE}_s_layers_{PATCH_NUM_LAYERS}_p_size_{PATCH_SIZE}_p_length_{PATCH_LENGTH}.pth"
)
M3_WEIGHTS_PATH = M3_WEIGHTS_PATH or (
    f"weights_m3_h_size_{M3_HIDDEN_SIZE}_t_layers_{TOKEN_NUM_LAYERS}_p_layers_{PATCH_NUM_LAYERS}"
    f"_p_size_{PATCH_SIZE}_p_length_{PATCH_LENGTH}"
    f"_lr_{M3_LEARNING_RATE}_batch_{M3_BATCH_SIZE}_mask_{M3_MASK_RATIO}.pth"
)
M3_LOGS_PATH = M3_LOGS_PATH or logs_path(M3_WEIGHTS_PATH)
CLAMP3_LOGS_PATH = CLAMP3_LOGS_PATH or logs_path(CLAMP3_WEIGHTS_PATH)
