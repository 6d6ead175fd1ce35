"""All checks by name, in the order in which they are run: first what the others need."""

from clamp3.tasks.diagnosis import converters, folders, installation, machine, model
from clamp3.tasks.diagnosis.findings import Check

CHECKS: dict[str, Check] = {
    "python": installation.python,
    "libraries": installation.libraries,
    "extras": installation.extras,
    "settings": installation.settings,
    "processor": machine.processor,
    "accelerators": machine.accelerators,
    "threads": machine.threads,
    "memory": machine.memory,
    "disk": machine.disk,
    "shared memory": machine.shared_memory,
    "temporary files": machine.temporary_files,
    "open files": machine.open_files,
    "cache": folders.cache,
    "outputs": folders.outputs,
    "decoders": converters.decoders,
    "converters": converters.converters,
    "hub": installation.hub,
    "weights": model.weights,
    "tensors": model.tensors,
    "tokenizer": model.tokenizer,
    "towers": model.towers,
    "pairs": model.pairs,
    "numerics": model.numerics,
}
