"""Training: objectives, data, the loop, checkpoints. It logs to the logger "clamp3", which is quiet unless asked."""

import logging

logging.getLogger("clamp3").addHandler(logging.NullHandler())
